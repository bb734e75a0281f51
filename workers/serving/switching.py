"""The version that a server answers with follows the pointer of a model directory.

A thread looks at the pointer. A new one is built beside what serves and takes over between two runs; one that cannot be
served is named in `trouble`, and what serves goes on. Damage is looked at again when the pointer changes, what may get
better (a shard that is down, rows that are behind) every few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ps.errors import RequestError, WeirError
from workers.serving.building import Behind, Served, Sources, build
from workers.serving.predictor import Predictor
from workers.serving.versions import Models, Pointer, VersionError

POLL_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
_STALLED_SECONDS = 10.0  # for which the stream may bring nothing, short of a version's markers
_log = logging.getLogger("weir.serving")


@dataclass(frozen=True)
class Switch:
    """seconds: from the pointer's change being seen to the first answer. bytes_before, bytes_peak: memory of the
    process when it began, and at most while it lasted.
    """

    version: str
    seconds: float
    bytes_before: int
    bytes_peak: int


class Switcher:
    """served: what answers now. trouble: why the pointer's version does not answer, None where it does. switches: how
    many so far; refused: versions that could not be served; last: the newest switch.
    """

    def __init__(self, models: Models, sources: Sources | None, *, threads: int) -> None:
        """Builds the current version, which takes a while. Raises what `build` raises, and VersionError where nothing
        was published.
        """
        self._models, self._sources, self._threads = models, sources, threads
        pointer = models.current()
        if pointer is None:
            raise VersionError(f"{models.directory} has no version that serves; `weir model publish` makes one serve")
        self.served: Served = self._build(pointer, None)
        self.trouble: str | None = None
        self.switches = self.refused = 0
        self.last: Switch | None = None
        self._tried = pointer.serial  # the newest pointer that was tried
        self._again_at = 0.0
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, predictor: Predictor) -> None:
        """Follow the pointer from now on, and have the predictor answer with what it names."""
        predictor.trouble = self._troubles
        self._thread = threading.Thread(target=self._run, args=(predictor,), name="weir-switching", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no more: neither the pointer nor the stream."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        if self.served.follower is not None:
            self.served.follower.close()

    def _run(self, predictor: Predictor) -> None:
        while not self._ends.wait(POLL_SECONDS):
            try:
                self._look(predictor)
            except Exception as error:  # a thread that died here would leave the server with this version for ever
                self._complain(str(error) if isinstance(error, WeirError) else f"{type(error).__name__}: {error}")
                if not isinstance(error, WeirError):
                    _log.error("switching failed unexpectedly", exc_info=error)

    def _look(self, predictor: Predictor) -> None:
        pointer = self._models.current()
        if pointer is None or pointer.serial == self.served.pointer.serial:
            self.trouble = None
            return
        if pointer.serial == self._tried and time.monotonic() < self._again_at:
            return
        is_new, self._tried = pointer.serial != self._tried, pointer.serial
        began, memory = time.perf_counter(), _Memory()
        try:
            served = self._build(pointer, self.served)
        except WeirError as error:
            may_pass = isinstance(error, Behind) or not isinstance(error, RequestError)
            self._again_at = time.monotonic() + _AGAIN_SECONDS if may_pass else float("inf")
            self.refused += is_new
            raise
        before, self.served = self.served, served
        predictor.replace(served.model)
        if before.follower is not None and before.follower is not served.follower:
            before.follower.close()
        self.trouble, self.switches = None, self.switches + 1
        seconds = time.perf_counter() - began
        name, former = served.version.name, before.version.name
        del before, served  # memory of rows that nobody needs is free from here on
        self.last = Switch(name, seconds, memory.before, memory.peak())
        _log.warning(
            "version %s serves after %.2f s in place of %s%s; memory %.0f MiB, at most %.0f MiB while both were there",
            *(name, seconds, former, ", rows as they were then" if pointer.pinned else ""),
            *(self.last.bytes_before / (1 << 20), self.last.bytes_peak / (1 << 20)),
        )

    def _build(self, pointer: Pointer, before: Served | None) -> Served:
        seconds, threads = _STALLED_SECONDS, self._threads
        return build(self._models, pointer, self._sources, before, threads=threads, stalled_seconds=seconds)

    def _troubles(self) -> str:
        follower = self.served.follower
        return "; ".join(filter(None, (self.trouble, "" if follower is None else follower.trouble)))

    def _complain(self, text: str) -> None:
        if text != self.trouble:
            _log.warning("version %s serves on: %s", self.served.version.name, text)
        self.trouble = text


class _Memory:
    """Resident memory of this process: before, and at most since then. 0 where the kernel does not say."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
        self.before = _status_bytes("VmRSS")

    def peak(self) -> int:
        return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
