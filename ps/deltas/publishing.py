"""Publishes what changes in a shard's tables: plain logic, driven by the shard between its other work.

`poll` looks what is due, and starts at most one job, which makes one batch: what has changed since the window began,
then buckets that are to come whole, until the batch has `window_rows` rows. Jobs run between updates, in slices, so a
row is read as some update left it, and its batch goes to the writer's thread. While the disk takes nothing, keys wait.

A change is published when it was applied, whether or not it has been acknowledged. With a journal a crash may then
leave a published change that the shard does not have any more; nobody was told of it, and a shard that starts, or takes
over, publishes every bucket whole, so those who follow come to have what the shard has. For the same reason nothing of
this is written down: after a crash there is nothing to go on with but to publish all.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ps.delta_options import DeltaOptions
from ps.deltas.batches import Marker
from ps.deltas.encoding import BatchEncoder
from ps.deltas.pending import Pending
from ps.deltas.writer import Writer
from ps.errors import UnavailableError, WeirError, WrongEpochError
from ps.holding import Holding
from ps.schedule import Mode
from ps.types import Keys

RunJob: TypeAlias = Callable[[Mode, Generator[None, None, Any], Callable[[Any, Exception | None], None]], None]
_FAILED_SECONDS = 1.0
_LOOK_SECONDS = 0.02  # while the disk is behind
_PIECE_KEYS = 4096
_log = logging.getLogger("weir.deltas")


class Publisher:
    """Single-threaded but for its counters. Counter: num_failed, batches that could not be made."""

    def __init__(
        self,
        holding: Holding,
        options: DeltaOptions,
        writer: Writer,
        encoder: BatchEncoder,
        run_job: RunJob,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        """Begins with every owned bucket. run_job: as Shard has it. clock: seconds, monotonic. now: unix seconds."""
        self.writer, self.options, self.num_failed = writer, options, 0
        self.shard = holding.shard
        self._holding, self._encoder, self._run_job = holding, encoder, run_job
        self._clock, self._now = clock, now
        self._opened: float | None = None  # when the window began, on the clock
        self._since: float | None = None  # the same in unix seconds
        self._taken_since: float | None = None  # of the keys that are being published
        self._whole_since: float | None = None  # of the buckets that are to come whole
        self._not_before = 0.0  # on the clock: no job starts, for one has failed
        self._pending = {name: Pending(table, self._happened) for name, table in holding.tables.items()}
        self._work: deque[tuple[Callable[[str, Keys], Iterator[None]], str, Keys]] = deque()
        self._marks: deque[tuple[Marker, Future[int]]] = deque()  # of the present epoch
        self._is_marking = False  # all that precedes the first mark has been taken
        self._is_running, self._epoch = False, -1
        self._begins = True  # nothing has gone to the writer yet

    @property
    def num_shards(self) -> int:
        """Of the routing."""
        return self._holding.routing.num_shards

    @property
    def collected(self) -> int:
        """Keys and buckets that tables have told of."""
        return sum(pending.collected for pending in self._pending.values())

    @property
    def saved_bytes(self) -> int:
        """Of rows that were not published, for their keys changed again in the same window."""
        return sum(each.num_saved * self._encoder.row_bytes(name) for name, each in self._pending.items())

    @property
    def saturated(self) -> int:
        """Published elements that did not fit the codec."""
        return self._encoder.saturated

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest change that is not written waits."""
        times = [
            since
            for since in (self._since, self._taken_since, self._whole_since, self.writer.since)
            if since is not None
        ]
        return max(0.0, self._now() - min(times)) if times else 0.0

    @property
    def num_waiting(self) -> int:
        """Keys that wait to be published."""
        waiting = sum(pending.num_keys for pending in self._pending.values())
        return waiting + sum(len(keys) for _, _, keys in self._work.copy())

    @property
    def num_whole(self) -> int:
        """Buckets, of all tables, that wait to be published whole."""
        return sum(pending.num_whole for pending in self._pending.values())

    @property
    def idle_seconds(self) -> float | None:
        """After how long `poll` may have something to do though nothing happened; None: never."""
        if self._holding.routing.epoch != self._epoch:
            return 0.0  # a shard that recovered has heard nothing yet, and is to publish all the same
        if self._is_running or not (self._is_due or any(each.num_keys for each in self._pending.values())):
            return None
        if not self.writer.is_ready or self._clock() < self._not_before:
            return _LOOK_SECONDS
        if self._is_due or self._opened is None:
            return 0.0
        return max(0.0, self._opened + self.options.window_seconds - self._clock())

    def poll(self) -> None:
        """Start a job where something is due. Between jobs, and often."""
        if self._holding.routing.epoch != self._epoch:
            self._move()
        if self._is_running or not self._is_due or not self.writer.is_ready or self._clock() < self._not_before:
            return
        self._is_running = True
        if not self._work and not self._is_marking and (self._marks or self._is_ripe):
            self._take()
        self._run_job("yielding", self._publish(), self._finished)

    def mark(self, marker: Marker, epoch: int, answer: Future[int]) -> None:
        """Publish what has changed so far, then the marker, all in this routing epoch. `answer`: the offset of its
        batch; WrongEpochError where the shard is at another epoch, or comes to one before.

        Markers of one epoch at all shards have all rows before them. With one from before and one from after a bucket
        moved, neither its old owner nor its new one might have published what it had learnt.
        """
        if self._holding.routing.epoch != self._epoch:
            self._move()
        if epoch != self._epoch:
            _fail(answer, WrongEpochError(f"a marker of routing epoch {epoch}; this shard is at {self._epoch}"))
        else:
            self._marks.append((marker, answer))

    def close(self) -> None:
        """See no more changes, and let the partition go."""
        for pending in self._pending.values():
            pending.close()
        self.writer.close()
        self._fail_marks(UnavailableError("the shard was stopped before the marker was written"))

    # Inside.

    @property
    def _is_due(self) -> bool:
        return bool(self._work or self._marks or self.num_whole or self._is_ripe)

    @property
    def _is_ripe(self) -> bool:
        """Whether keys wait whose window is over."""
        num_keys = sum(pending.num_keys for pending in self._pending.values())
        if not num_keys or self._opened is None:
            return False
        return num_keys >= self.options.window_rows or self._clock() - self._opened >= self.options.window_seconds

    def _happened(self, is_whole: bool) -> None:
        if is_whole:
            self._whole_since = self._whole_since or self._now()
        elif self._opened is None:
            self._opened, self._since = self._clock(), self._now()

    def _move(self) -> None:
        """Another routing: what is owned now for the first time comes whole; marks of the one before are refused."""
        self._epoch, before = self._holding.routing.epoch, self._epoch
        self._fail_marks(
            WrongEpochError(f"the routing moved from epoch {before} to {self._epoch} before the marker was written")
        )
        is_owned = np.zeros(self._holding.spec.num_buckets, np.bool_)
        is_owned[self._holding.owned] = True
        for pending in self._pending.values():
            pending.own(is_owned)
        self.writer.move(self._epoch, self.num_shards)

    def _take(self) -> None:
        """All that waits is going to be published, in pieces."""
        self._is_marking = bool(self._marks)
        self._taken_since = self._since
        self._since = self._opened = None
        for name, pending in self._pending.items():
            taken = pending.take()
            for work, keys in ((self._encoder.set_rows, taken.changed), (self._encoder.remove_rows, taken.removed)):
                for start in range(0, len(keys), _PIECE_KEYS):
                    self._work.append((work, name, keys[start : start + _PIECE_KEYS]))

    def _publish(self) -> Generator[None, None, None]:
        """One batch."""
        encoder, most = self._encoder, self.options.window_rows
        times: list[float | None] = []
        encoder.begin(self.writer.next_offset)
        while self._work and encoder.records < most:
            work, table, keys = self._work.popleft()
            times = [self._taken_since]
            yield from work(table, self._pending[table].owned(keys))
        is_first = True  # at least one bucket, however many keys there are
        while (encoder.records < most or is_first) and (found := self._next_whole()) is not None:
            is_first = False
            yield from encoder.replace_bucket(*found)
        if not is_first:
            times.append(self._whole_since)
        self._end(min((time for time in times if time is not None), default=self._now()))

    def _next_whole(self) -> tuple[str, int] | None:
        """Table and bucket."""
        for name, pending in self._pending.items():
            if (bucket := pending.take_whole()) is not None:
                return name, bucket
        return None

    def _end(self, since: float) -> None:
        """Give the batch to the writer, with the mark where all before that is in it."""
        if not self._work:
            self._taken_since = None
        if not self.num_whole:
            self._whole_since = None
        marker, told = None, None
        if self._is_marking and not self._work and not self.num_whole:
            self._is_marking = False
            marker, answer = self._marks.popleft()
            told = partial(_tell, answer, self.writer.next_offset)
        encoder = self._encoder
        if encoder.num_bytes or marker is not None:
            end = {"epoch": self._epoch, "total": self.writer.total}
            pieces = encoder.end(at=self._now(), since=since, marker=marker, begins=self._begins, **end)
            self.writer.put(pieces, records=encoder.records, since=since, told=told)
            self._begins = False

    def _fail_marks(self, error: WeirError) -> None:
        self._is_marking = False
        while self._marks:
            _fail(self._marks.popleft()[1], error)

    def _finished(self, _: Any, error: Exception | None) -> None:
        self._is_running = False
        if error is None:
            return
        _log.error("a batch could not be made; all is published anew", exc_info=error)
        self.num_failed += 1
        self._not_before = self._clock() + _FAILED_SECONDS
        self._work.clear()
        for pending in self._pending.values():
            pending.want_all()


def _tell(answer: Future[int], offset: int) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_result(offset)


def _fail(answer: Future[Any], error: Exception) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)
