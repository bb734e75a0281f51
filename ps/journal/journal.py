"""A shard's journal, open: what the shard's thread of work sees of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ps.durability import Durability
from ps.errors import WrongEpochError
from ps.holding import Holding
from ps.journal.changes import Changes
from ps.journal.filling import Filling
from ps.journal.frames import encode_start
from ps.journal.lock import Lock
from ps.journal.segments import Acknowledged, Segment, SegmentName
from ps.journal.snapshot import SnapshotWriter
from ps.journal.stream import Stream
from ps.journal.writer import Writer
from ps.record import Buffer
from ps.spec import ClusterSpec

_GROUP_STEPS = 64  # that are remembered


class Journal:
    """Writes what `changes` gathers of a holding's tables. Single-threaded but for `backlog_bytes`, `trouble` and the
    callbacks of `after`.
    """

    def __init__(
        self,
        folder: Path,
        lock: Lock,
        holding: Holding,
        *,
        last: Segment | None = None,
        next_number: int = 1,
        group_steps: Iterable[tuple[int, int]] = (),
    ) -> None:
        """last: the segment that this one follows. group_steps: (generation, step) of synchronous groups applied last.
        Raises JournalError.
        """
        self.folder, self.next_number = folder, next_number
        self.options = holding.spec.durability
        self.changes = holding.changes = Changes(holding.tables)
        self.group_steps = deque(group_steps, maxlen=_GROUP_STEPS)
        self.snapshot: SnapshotWriter | None = None
        self.num_snapshots, self.snapshot_bytes = 0, 0
        self._filling: Filling | None = None
        self._lock, self._holding = lock, holding
        self._acknowledged = Acknowledged(folder)
        epoch = 1 if last is None else last.name.epoch + 1
        self._writer = Writer(
            folder,
            self.options,
            self._acknowledged,
            name=SegmentName(epoch, next_number),
            start=self._start(),
            after=None if last is None else (str(last.name), last.end),
        )
        self._snapshot_from = 0  # written bytes when the last snapshot was begun

    @property
    def trouble(self) -> str:
        """Why updates cannot be acknowledged at present, or empty."""
        if self._writer.trouble:
            return self._writer.trouble
        if self._writer.backlog_bytes > self.options.backlog_bytes:
            return f"the journal in {self.folder} is {self._writer.backlog_bytes >> 20} MiB behind"
        return ""

    @property
    def refusal(self) -> WrongEpochError | None:
        """Once the standby has taken this shard's place: nothing is acknowledged any more."""
        return self._writer.refusal

    @property
    def stream(self) -> Stream | None:
        """To the standby, where there is one."""
        stream = self._writer.stream
        return None if stream is None or stream.is_over else stream

    @property
    def leads(self) -> bool:
        """Whether no other process can have taken this shard's place."""
        try:
            self.check_leads()
        except WrongEpochError:
            return False
        return True

    def check_leads(self) -> None:
        """Raise WrongEpochError unless no other process can have taken this shard's place."""
        if self.refusal is not None:
            raise WrongEpochError(f"this shard was replaced by its standby ({self.refusal})")
        stream = self._writer.stream
        if stream is not None and not stream.has_lease:
            raise WrongEpochError(
                f"this shard has not heard of its standby at {stream.standby} for {stream.silent_seconds:.1f} s, which "
                "may have taken its place"
            )

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait for the disk."""
        return self._writer.backlog_bytes

    @property
    def bytes_since_snapshot(self) -> int:
        """What would be replayed, nearly."""
        return self._writer.num_bytes - self._snapshot_from

    def commit(self) -> Iterator[None]:
        """Write the changes since the last commit as one update; yields between pieces. Nothing may change before its
        end.
        """
        if self.changes.is_empty:
            return
        number = self.next_number
        self.next_number += 1
        for pieces, is_last in self.changes.frames(number):
            self._writer.append(pieces, ends_update=is_last)
            yield
            while self._writer.backlog_bytes > self.options.backlog_bytes and not self._writer.trouble and not is_last:
                yield

    def commit_now(self) -> None:
        """`commit`, in one go."""
        for _ in self.commit():
            pass

    def after(self, told: Callable[[], None]) -> None:
        """Call back, on any thread, once all that was committed so far is in the journal."""
        self._writer.after(told)

    def copy(self, frames: Sequence[Buffer], number: int) -> None:
        """Write an update as it stands in another journal. number: its own."""
        self.changes.forget()
        self._writer.append_checked(frames)
        self.next_number = number + 1

    def begin_filling(self, stream: Stream) -> Filling:
        """Fill the standby with all rows, and send it every update from the next one on. stream: to a new standby, from
        now on instead of the one before; or to the one that is there, which is filled anew.
        """
        if self._filling is not None:
            self._filling.give_up()
        start = encode_start(
            {**self._start(), "first": self.next_number, "expired": self._holding.expired_ids()}, is_file=False
        )
        self._writer.fill(start, stream)
        self._filling = Filling(self._writer, stream, self._holding)
        return self._filling

    def use(self, options: Durability) -> None:
        """Other options from now on."""
        self.options = options
        self._writer.use(options)

    def respec(self, spec: ClusterSpec) -> None:
        """The holding has another place, and maybe a spec with other options: say so."""
        is_other, self._holding.spec = spec != self._holding.spec, spec
        self.use(spec.durability)
        if is_other:
            self.changes.note("spec", spec.model_dump_json())  # a standby takes over with it
        self.moved()
        if is_other:  # what recovers reads the spec where the last segment begins
            self._writer.begin_segment(self.next_number, self._start())

    def moved(self) -> None:
        """The holding has another place: say so."""
        self.changes.note("routing", self._place())
        self.commit_now()

    def grouped(self, generation: int, step: int) -> None:
        """The changes since the last commit are those of a step of a synchronous group."""
        self.group_steps.append((generation, step))
        self.changes.note("group", [generation, step])

    @property
    def wants_snapshot(self) -> bool:
        """Whether so much was written since the last one that a new one is due."""
        return self.snapshot is None and self.bytes_since_snapshot >= max(
            self.options.snapshot_after_bytes, self.snapshot_bytes
        )

    def begin_snapshot(self, done: Callable[[bool], None] = lambda succeeded: None) -> SnapshotWriter:
        """done: told on another thread whether it succeeded."""
        has_begun = threading.Event()
        self._writer.begin_segment(self.next_number, self._start())
        self._writer.after(has_begun.set)
        self._snapshot_from = self._writer.num_bytes + self._writer.backlog_bytes

        def told(num_bytes: int) -> None:
            self.snapshot = None
            self.snapshot_bytes = num_bytes or self.snapshot_bytes
            self.num_snapshots += num_bytes > 0
            done(num_bytes > 0)

        segment = SegmentName(self._writer.segment.epoch, self.next_number)
        self.snapshot = SnapshotWriter(self.folder, self._holding, segment, has_begun, done=told)
        return self.snapshot

    def close(self, *, lets_go: bool = True) -> None:
        """Write what waits. lets_go: of the folder too."""
        if self.snapshot is not None:
            self.snapshot.give_up()
        self._writer.close()
        self._acknowledged.close()
        if lets_go:
            self._lock.close()

    def _start(self) -> dict[str, Any]:
        """What a segment's start says of the shard."""
        groups = [list(place) for place in self.group_steps]
        spec = self._holding.spec.model_dump_json()
        moving = {
            "leaving": np.flatnonzero(self._holding.is_leaving).tolist(),
            "arriving": np.flatnonzero(self._holding.is_arriving).tolist(),
        }
        return {"shard": self._holding.shard, "spec": spec, "routing": self._place(), "groups": groups, **moving}

    def _place(self) -> list[Any]:
        routing = self._holding.routing
        owners = np.ascontiguousarray(routing.owners, "<i4").tobytes()
        return [routing.epoch, owners, list(routing.addresses), self._holding.shard, self._holding.least_epoch]


def logged(running: Generator[None, None, Any], journal: Journal, *, each_slice: bool) -> Generator[None, None, Any]:
    """Run, then give to the journal what changed, also where it failed. each_slice: at every yield and in one go, for
    other updates may come between.
    """
    error, result = None, None
    while True:
        try:
            next(running)
        except StopIteration as stop:
            result = stop.value
            break
        except Exception as failure:
            error = failure
            break
        if each_slice:
            journal.commit_now()
        yield
    if each_slice:
        journal.commit_now()
    else:
        yield from journal.commit()
    if error is not None:
        raise error
    return result
