"""The thread that opens a shard's partition and writes its batches, so that the shard waits for no disk; and writes
every second that the shard lives.

What fails is tried again until it succeeds; `trouble` says why meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ps.delta_options import DeltaOptions
from ps.deltas.alive import BEAT_SECONDS
from ps.deltas.partition import Partition
from ps.errors import WeirError
from ps.record import Buffer

_RETRY_SECONDS = 0.25
_log = logging.getLogger("weir.deltas")


@dataclass(eq=False)
class _Item:
    pieces: Sequence[Buffer]
    num_bytes: int
    records: int
    since: float
    told: Callable[[], None] | None


_NOTHING = _Item((), 0, 0, 0.0, None)


class Writer:
    """`put` and `next_offset` are the shard's; the rest is thread-safe. Counters: num_batches, num_bytes, num_records,
    written so far.
    """

    def __init__(
        self,
        open_partition: Callable[[], Partition],
        options: DeltaOptions,
        *,
        first: int,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """open_partition: may block, and raise WeirError. first: the least offset that it will have. leads: whether no
        other process can have the shard's place; it is asked on the writer's thread.
        """
        self.trouble = ""
        self.num_batches = self.num_bytes = self.num_records = 0
        self.backlog_bytes = 0
        self.next_offset, self.total = first, 0
        self.end_offset = self.end_total = 0  # next offset behind what is written; 0 before the partition is open
        self._open_partition, self._options, self._leads = open_partition, options, leads
        self._place: tuple[int, int] | None = None  # epoch and number of shards
        self._beat_due, self._beat_failed = 0.0, False  # monotonic
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._waiting: deque[float] = deque()  # `since` of batches that are not written
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._synced_at, self._is_dirty = time.monotonic(), False
        self._thread = threading.Thread(target=self._run, name="weir-deltas", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes a batch: the partition is open, and little waits for the disk."""
        return self.end_offset > 0 and self.backlog_bytes <= self._options.backlog_bytes

    @property
    def is_closed(self) -> bool:
        return self._stopping.is_set()

    @property
    def since(self) -> float | None:
        """Unix seconds of the oldest change that waits for the disk."""
        with self._changed:
            return min(self._waiting, default=None)

    def put(
        self, pieces: Sequence[Buffer], *, records: int, since: float, told: Callable[[], None] | None = None
    ) -> None:
        """Write the batch of `next_offset`. told: called, on the writer's thread, when it is written."""
        item = _Item(pieces, sum(len(piece) for piece in pieces), records, since, told)
        with self._changed:
            self._waiting.append(since)
            self.backlog_bytes += item.num_bytes
        self.next_offset += 1
        self.total += records
        self._items.put(item)

    def wait(self, offset: int, seconds: float) -> bool:
        """Wait until a batch of this offset or a later one is written; 0: until the partition is open. False after so
        many seconds.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self.end_offset > offset or self.is_closed, seconds)

    def move(self, epoch: int, shards: int) -> None:
        """The shard is at this routing epoch, of so many shards. From the first call on it is said every second that it
        lives, while no batch waits.
        """
        self._place, self._beat_due = (epoch, shards), 0.0
        self._items.put(_NOTHING)

    def use(self, options: DeltaOptions) -> None:
        """Other options from now on."""
        self._options = options

    def close(self) -> None:
        """Write what waits, if the disk takes it now, and let the folder go."""
        self._stopping.set()
        self._items.put(None)
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        partition = self._open()
        if partition is None:
            return
        self._partition = partition
        try:
            while (item := self._next()) is not None:
                if item.pieces and not self._until_done(item):
                    return
                if isinstance(self._options.fsync, float) and self._is_dirty and self._sync_due <= time.monotonic():
                    self._sync()
                self._beat()
        finally:
            with suppress(OSError):
                if self._is_dirty and self._options.fsync != "never":
                    partition.sync()
            partition.close()

    def _open(self) -> Partition | None:
        while True:
            try:
                partition = self._open_partition()
                break
            except (WeirError, OSError) as error:
                self._say(str(error))
            if self._stopping.wait(_RETRY_SECONDS):
                return None
        self._say("")
        with self._changed:
            self.next_offset, self.total = partition.next_offset, partition.total
            self.end_offset, self.end_total = partition.next_offset, partition.total
            self._changed.notify_all()
        return partition

    def _next(self) -> _Item | None:
        """What came next; or nothing, when it is time to sync or to say that the shard lives."""
        due = [self._beat_due] if self._place is not None else []
        if isinstance(self._options.fsync, float) and self._is_dirty:
            due.append(self._sync_due)
        try:
            return self._items.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
        except queue.Empty:
            return _NOTHING

    def _until_done(self, item: _Item) -> bool:
        """Try until the disk takes it. False when the partition is to close first."""
        partition = self._partition
        partition.options = self._options
        while True:
            try:
                partition.append(item.pieces, records=item.records)
                break
            except OSError as error:
                self._say(f"{error.strerror}; free space there")
            if self._stopping.wait(_RETRY_SECONDS):
                return False
        self._say("")
        self._is_dirty = True
        if self._options.fsync == "always":
            self._sync()
        self.num_batches += 1
        self.num_bytes += item.num_bytes
        self.num_records += item.records
        with self._changed:
            self._waiting.popleft()
            self.backlog_bytes -= item.num_bytes
            self.end_offset, self.end_total = partition.next_offset, partition.total
            self._changed.notify_all()
        if item.told is not None:
            item.told()
        try:
            partition.roll(time.time())
        except OSError as error:  # the segment simply becomes longer
            self._say(f"a segment cannot be begun: {error.strerror}")
        return True

    @property
    def _sync_due(self) -> float:
        return self._synced_at + float(self._options.fsync)

    def _beat(self) -> None:
        """Say that the shard lives, where it is time. It is not said where another process may have its place."""
        if self._place is None or time.monotonic() < self._beat_due or self.backlog_bytes:
            return
        self._beat_due = time.monotonic() + BEAT_SECONDS
        if not self._leads():
            return
        epoch, shards = self._place
        try:
            self._partition.beat(time.time(), epoch=epoch, shards=shards)
        except OSError as error:
            self._beat_failed = True
            self._say(f"it cannot be said that the shard lives: {error.strerror}")
        else:
            if self._beat_failed:
                self._say("")
            self._beat_failed = False

    def _sync(self) -> None:
        try:
            self._partition.sync()
        except OSError as error:
            self._say(f"the disk failed to sync: {error.strerror}")
        self._synced_at, self._is_dirty = time.monotonic(), False

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            _log.error("deltas cannot be written: %s", trouble)
        self.trouble = trouble
