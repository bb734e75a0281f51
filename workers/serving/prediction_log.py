"""A sampled log of predictions: what was asked, what was answered, by which version, when.

record := one line of JSON {"request_id", "time": seconds since 1970, "version", "num_candidates",
                            "shared": {column: value}, "candidates": {column: [value]}, "scores": {task: [score]}}
file   := record*   named predictions-<time begun, microseconds>-<process id>.jsonl; only ever appended to

Whether a request is logged depends on its request_id alone: the same requests from every server that sees them.
Scoring never waits for the log: where records come faster than they are written, they are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson

from ps.errors import RequestError
from ps.keys import hash_texts
from workers.serving.options import LogOptions
from workers.serving.predictor import Prediction

MAX_WAITING = 256  # predictions that are not yet written
_log = logging.getLogger("weir.serving")


class RecordStream(Protocol):
    """Where records go; used by one thread."""

    def append(self, record: bytes) -> None:
        """Raises OSError where it cannot be written."""

    def close(self) -> None: ...


class RotatingFiles:
    """Records as lines of files of bounded size and number. A folder is one server's, and what it had before counts."""

    def __init__(self, options: LogOptions) -> None:
        """Raises RequestError for a folder that cannot be made."""
        self._folder, self._options = Path(options.directory), options
        self._file: BinaryIO | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"log.directory {options.directory} cannot be made: {error.strerror}") from error

    def append(self, record: bytes) -> None:
        line = record + b"\n"
        if self._file is not None and self._file.tell() + len(line) > self._options.file_bytes:
            self.close()
        if self._file is None:
            self._file = (self._folder / f"predictions-{time.time_ns() // 1000}-{os.getpid()}.jsonl").open("ab", 0)
            self._remove_oldest()
        self._file.write(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _remove_oldest(self) -> None:
        for path in sorted(self._folder.glob("predictions-*.jsonl"))[: -self._options.files]:
            path.unlink(missing_ok=True)


class PredictionLog:
    """Thread-safe. num_written, num_dropped: records so far."""

    def __init__(self, stream: RecordStream, rate: float, max_waiting: int = MAX_WAITING) -> None:
        """rate: share of the requests that are logged."""
        self.num_written = self.num_dropped = 0
        self._stream, self._rate = stream, rate
        self._waiting: queue.Queue[tuple[float, Prediction] | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._run, name="weir-prediction-log", daemon=True)
        self._thread.start()

    def offer(self, prediction: Prediction) -> None:
        """Log it if its request is chosen. Never blocks."""
        if not is_chosen(prediction.request.request_id, self._rate):
            return
        try:
            self._waiting.put_nowait((time.time(), prediction))
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()
        self._stream.close()

    def _run(self) -> None:
        is_failing = False
        while (item := self._waiting.get()) is not None:
            try:
                self._stream.append(record_of(*item))
                self.num_written += 1
                is_failing = False
            except OSError as error:
                self.num_dropped += 1
                if not is_failing:
                    _log.error("predictions are not logged: %s", error)
                is_failing = True


def is_chosen(request_id: str, rate: float) -> bool:
    """Whether a request is among the share `rate` that is logged."""
    return int(hash_texts([request_id])[0]) < rate * 2.0**64


def record_of(at: float, prediction: Prediction) -> bytes:
    """One line of the log, without its end. at: seconds since 1970."""
    request = prediction.request
    return orjson.dumps(
        {
            "request_id": request.request_id,
            "time": at,
            "version": prediction.version,
            "num_candidates": request.num_candidates,
            "shared": {name: column.to_list()[0] for name, column in request.shared.items()},
            "candidates": {name: column.to_list() for name, column in request.candidates.items()},
            "scores": prediction.by_task(),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
