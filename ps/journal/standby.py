"""A standby: what a primary streams (stream.py), applied as it comes and written to a journal of its own before it is
answered.

Single-threaded, on the shard's thread of work: a message is a job of its schedule, as updates are, so that snapshots
come between them.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from ps.errors import JournalError, UnavailableError, WeirError
from ps.holding import Holding
from ps.journal.frames import JournalReader, RowsFrame
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.recovery import Recovered, remove_journal
from ps.journal.replay import Replay
from ps.journal.role import Kept, write_role
from ps.journal.snapshot import SnapshotWriter
from ps.record import Buffer, Frame
from ps.spec import ClusterSpec

_PLACE = "what the primary sent"
_NOT_YET = np.iinfo(np.int64).max  # position of a bucket that has not come
_PAUSE_SECONDS = 0.001


class Standby:
    """role: empty until a primary begins to fill it, then filling, then standby: it may take over. broken: it has to be
    started anew.
    """

    def __init__(self, folder: Path, lock: Lock, term: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Drops what the folder has. The caller holds its lock. Raises JournalError."""
        self.role: Literal["empty", "filling", "standby", "broken"] = "empty"
        self.term = term
        self.answered_at = clock()
        self.journal: Journal | None = None
        self._folder, self._lock, self._clock = folder, lock, clock
        self._replay: Replay | None = None
        self._snapshot: SnapshotWriter | None = None  # of what the filling brings
        self._is_filled = False
        self._update: list[tuple[RowsFrame, Buffer]] = []  # without its commit it has not happened
        self._number = 0  # of the message taken last
        self._is_written = True  # that message
        self._answers: list[Future[None]] = []
        self._answering = threading.Lock()
        self._drop()

    @property
    def seconds(self) -> float:
        """After its last answer, in which the primary may still serve."""
        return 0.0 if self._replay is None else self._replay.holding.spec.durability.standby_seconds

    def receive(self, number: int, frames: bytes, answer: Future[None]) -> Generator[None, None, None] | None:
        """Take in a message: a job that wants to run as an update, or None for one that came before. `answer` resolves
        once the journal has it.
        """
        with self._answering:
            if number > self._number + 1:
                self.role = "broken"  # messages are missing
            if self.role == "broken" or number < self._number:
                answer.set_exception(UnavailableError(f"this standby cannot go on with message {number}; fill it anew"))
                return None
            if number == self._number and self._is_written:
                self._tell([answer])
                return None
            self._answers.append(answer)
            if number == self._number:
                return None
            self._number, self._is_written = number, False
        return self._take(frames)

    def begin_snapshot(self) -> SnapshotWriter | None:
        """Where one is due."""
        journal = self.journal
        return journal.begin_snapshot() if journal is not None and journal.wants_snapshot else None

    def recovered(self) -> Recovered:
        """All that it has, for a shard that goes on with it; an update without its end is left out."""
        assert self._replay is not None
        assert self.journal is not None
        return Recovered(self._replay.holding, self.journal, self._replay.num_updates, seconds=0.0)

    def close(self) -> None:
        """Let the journal's files go; the folder's lock stays."""
        if self.journal is not None:
            self.journal.close(lets_go=False)

    def _take(self, frames: bytes) -> Generator[None, None, None]:
        file = io.BytesIO(frames)
        reader = JournalReader(file, _PLACE, num_bytes=len(frames))
        try:
            while (begin := file.tell()) < len(frames):
                yield from self._take_frame(
                    reader, reader.read_frame(), lambda: memoryview(frames)[begin : file.tell()]
                )
                if self.journal is not None:
                    self.journal.changes.forget()
                yield
        except (WeirError, ValueError, KeyError, TypeError, IndexError) as error:
            self.role = "broken"
            with self._answering:
                answers, self._answers = self._answers, []
            for answer in answers:
                answer.set_exception(UnavailableError(f"this standby has to be filled anew: {error}"))
            return
        if self.journal is None:
            self._written()
        else:
            self.journal.after(self._written)

    def _take_frame(
        self, reader: JournalReader, frame: Frame, raw: Callable[[], Buffer]
    ) -> Generator[None, None, None]:
        header, kind = frame.header, frame.header.get("kind")
        if kind == "start":
            yield from self._start(header)
            return
        assert self._replay is not None, "a primary begins with a start"
        assert self.journal is not None
        self._replay.now = self._clock()
        if kind == "rows" and "bucket" in header:
            record = reader.read_record(frame)
            if record is not None:
                self._replay.load(record, _PLACE)
        elif kind == "rows":
            self._update.append((reader.read_rows(frame), raw()))
        elif kind == "commit":
            number, update = reader.read_number(frame), self._update
            self._update = []
            self.journal.copy([*(each for _, each in update), raw()], number)
            for rows, _ in update:
                self._replay.apply(rows, _PLACE)
            self._replay.commit(header, _PLACE)
            if "group" in header:
                self.journal.group_steps.append(self._replay.group_steps[-1])
        elif kind == "bucket" and self._snapshot is not None:
            bucket, position = int(header["bucket"]), int(header["number"])
            self._replay.positions[bucket] = position
            yield from self._snapshot.write_bucket(bucket, position)
        elif kind == "filled":
            yield from self._finish()
        elif kind == "joined" and self._is_filled:
            write_role(self._folder, Kept(self.term, "standby"))
            self.role = "standby"

    def _start(self, header: dict[str, Any]) -> Generator[None, None, None]:
        self._drop()
        try:
            spec = ClusterSpec.model_validate_json(header["spec"])
        except ValidationError as error:
            raise JournalError(f"{_PLACE}: its cluster spec cannot be read: {error}") from error
        holding = Holding(spec)
        yield from holding.warm_up()
        self._replay = Replay(holding, now=self._clock())
        self._replay.begin(header, _PLACE)
        self._replay.positions[holding.held] = _NOT_YET
        for table, ids in header["expired"].items():
            holding.applied[table].load_expired(ids)
        self.journal = Journal(
            self._folder,
            self._lock,
            holding,
            next_number=self._replay.next_number,
            group_steps=self._replay.group_steps,
        )
        self._snapshot = self.journal.begin_snapshot(self._outcome.append)
        self.role = "filling"

    def _finish(self) -> Generator[None, None, None]:
        """All rows have come: they are to be on the disk before updates rely on this standby."""
        if self._snapshot is None:
            return
        self._snapshot.finish()
        while not self._outcome:
            time.sleep(_PAUSE_SECONDS)
            yield
        if not self._outcome[0]:
            raise JournalError(f"its rows could not be written: {self._snapshot.failed}; free space there")
        self._snapshot, self._is_filled = None, True

    def _drop(self) -> None:
        """Have nothing, here and in the folder."""
        self.role = "empty"
        write_role(self._folder, Kept(self.term, "filling"))
        if self.journal is not None:
            self.journal.close(lets_go=False)
        self._replay = self.journal = self._snapshot = None
        self._outcome: list[bool] = []
        self._is_filled = False
        self._update = []
        remove_journal(self._folder)

    def _written(self) -> None:
        with self._answering:
            self._is_written = True
            answers, self._answers = self._answers, []
            self._tell(answers)

    def _tell(self, answers: list[Future[None]]) -> None:
        self.answered_at = self._clock()
        for answer in answers:
            answer.set_result(None)
