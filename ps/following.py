"""Keeps a replica up with the partitions of a delta stream, on threads of its own, and tries again for ever.

One thread finds partitions: those of new shards are followed from their beginning, those of shards that are gone count
no more. One thread a partition reads it from where the replica is, applies what comes, and begins anew with back-off
after any failure. Meanwhile the replica answers with what it has, and its age says how old that is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from ps.deltas.batches import Batch
from ps.errors import TrimmedError, WeirError
from ps.replica import Replica

_FIND_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0
_log = logging.getLogger("weir.replica")


class Delivery(NamedTuple):
    """What a line has now. at: unix seconds when it was looked. is_end: then nothing stood behind these batches.
    total: records of the partition then, as far as known.
    """

    batches: list[Batch]
    at: float
    is_end: bool
    total: int | None


class Line(Protocol):
    """One partition, read from an offset on."""

    def read(self) -> Delivery:
        """What comes next, or that nothing does: waits a moment for it. Raises WeirError where the line is cut,
        TrimmedError where batches are gone.
        """
        ...

    def close(self) -> None:
        """End it; a `read` on another thread ends soon."""
        ...


class Source(Protocol):
    """Where partitions come from. Thread-safe."""

    def partitions(self, wanted: Collection[int] = ()) -> Collection[int]:
        """Those that there are. wanted: where only these matter; then those of them too whose shards are gone and whose
        batches somebody has. Raises WeirError where that cannot be told.
        """
        ...

    def open(self, partition: int, next_offset: int) -> Line:
        """Raises WeirError."""
        ...

    def close(self) -> None: ...


class Follower:
    """num_applied: batches. num_restarts: lines that were begun anew after a failure. trouble: by partition why it
    is not followed at present; -1: why partitions cannot be found.
    """

    def __init__(self, replica: Replica, source: Source, *, stop_at: Mapping[int, int] | None = None) -> None:
        """Begins at once, and owns the source from then on. stop_at: by partition the offset of the last batch to
        apply, such as a marker's; others are not followed. It builds a version as it was.
        """
        self.num_restarts = 0
        self._replica, self._source = replica, source
        self._stop_at = None if stop_at is None else dict(stop_at)
        self._troubles: dict[int, str] = {}
        self._trimmed: set[int] = set()
        self._followed: dict[int, threading.Thread] = {}
        self._lines: dict[int, Line] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._finder = threading.Thread(target=self._find, name="weir-follow", daemon=True)
        self._finder.start()

    @property
    def trouble(self) -> str:
        """Why the replica is not kept up at present, or empty."""
        with self._lock:
            told = sorted(self._troubles.items())
        return "; ".join(said if number < 0 else f"partition {number}: {said}" for number, said in told)

    @property
    def needs_bundle(self) -> bool:
        """Whether batches are gone that the replica does not have: only a newer bundle has what they said. They are
        still asked for, because a folder may come back.
        """
        return bool(self._trimmed)

    def wait_until(self, positions: Mapping[int, int], timeout_seconds: float) -> bool:
        """Block until the replica has all before these next offsets. False: it has not, after so long."""
        return self._replica.wait_until(positions, timeout_seconds)

    def wait_until_stopped(self, timeout_seconds: float) -> bool:
        """Block until the replica has all up to `stop_at`. False: it has not, after so long."""
        return self.wait_until({number: last + 1 for number, last in (self._stop_at or {}).items()}, timeout_seconds)

    def close(self) -> None:
        """Follow no more. The replica stays as it is."""
        self._closed.set()
        with self._lock:
            lines, threads = list(self._lines.values()), [self._finder, *self._followed.values()]
        for line in lines:
            line.close()
        for thread in threads:
            thread.join()
        self._source.close()

    def _find(self) -> None:
        while not self._closed.is_set():
            try:
                found = set(self._source.partitions(self._stop_at or ()))
                missing = sorted((self._stop_at or {}).keys() - found)
                self._tell(-1, f"nobody has partitions {missing} any more: take a newer version" if missing else "")
            except WeirError as error:
                self._tell(-1, str(error))
            else:
                self._attend(found if self._stop_at is None else found & self._stop_at.keys())
            self._closed.wait(_FIND_SECONDS)

    def _attend(self, found: set[int]) -> None:
        """Follow these partitions and no others."""
        with self._lock:
            if self._closed.is_set():
                return
            gone = [number for number in self._followed if number not in found]
            for number in sorted(found - self._followed.keys()):
                thread = threading.Thread(
                    target=self._follow, args=(number,), name=f"weir-follow-{number}", daemon=True
                )
                self._followed[number] = thread
                thread.start()
            threads = {number: self._followed.pop(number) for number in gone}
            lines = [self._lines[number] for number in gone if number in self._lines]
        for line in lines:
            line.close()
        for number, thread in threads.items():
            thread.join()
            self._tell(number, "")
        if self._stop_at is None:
            for number in self._replica.positions.keys() - found:  # of a bundle from before they went, too
                self._replica.retire(number)

    def _follow(self, number: int) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._is_followed(number):
            line = None
            try:
                line = self._source.open(number, self._replica.positions.get(number, 0))
                with self._lock:
                    self._lines[number] = line
                while self._is_followed(number):
                    if self._take(number, line.read()):
                        return
                    pause = _FIRST_PAUSE_SECONDS
                    self._tell(number, "")
            except Exception as error:
                if not isinstance(error, WeirError):
                    _log.error("partition %d failed unexpectedly", number, exc_info=error)
                if self._is_followed(number):
                    self._tell(number, str(error) or type(error).__name__, is_trimmed=isinstance(error, TrimmedError))
                    self.num_restarts += 1
            finally:
                with self._lock:
                    self._lines.pop(number, None)
                if line is not None:
                    line.close()
            self._closed.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _take(self, number: int, delivery: Delivery) -> bool:
        """Apply what came; whether that was all that is to be applied."""
        last = None if self._stop_at is None else self._stop_at[number]
        for batch in delivery.batches:
            if last is not None and batch.offset > last:
                if self._replica.positions.get(number, 0) > last:
                    return True
                raise TrimmedError(
                    f"the batch of offset {last} is not there any more, {batch.offset} follows: the shard was started "
                    "anew with another deltas.directory, as where each process of a pair has its own; take a newer "
                    "version, or one that is whole"
                )
            self._replica.apply(batch, number)
        self._replica.heard(number, at=delivery.at, is_end=delivery.is_end, total=delivery.total)
        return last is not None and self._replica.positions.get(number, 0) > last

    def _is_followed(self, number: int) -> bool:
        with self._lock:
            is_mine = self._followed.get(number) is threading.current_thread()
        return is_mine and not self._closed.is_set()

    def _tell(self, number: int, trouble: str, *, is_trimmed: bool = False) -> None:
        with self._lock:
            known = self._troubles.get(number, "")
            (self._trimmed.add if is_trimmed else self._trimmed.discard)(number)
            if trouble:
                self._troubles[number] = trouble
            else:
                self._troubles.pop(number, None)
        if trouble and trouble != known:
            _log.warning("the replica cannot be kept up: %s", trouble)
        elif known and not trouble:
            _log.warning("the replica is kept up again")
