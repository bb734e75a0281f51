"""From the files of a journal back to a shard's state, to the last acknowledged update. Runs no optimizer and no code
of users.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ps import checkpoint
from ps.errors import JournalError, RequestError
from ps.holding import Holding
from ps.journal.frames import RowsFrame
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.segments import Acknowledged, Segment, check_segments, find_segments, read_frames
from ps.journal.snapshot import POINTER, Pointer, read_pointer, remove_snapshots
from ps.keys import bucket_of
from ps.moving import load_windows
from ps.places import LocalPlace
from ps.record import layout_digest
from ps.routing import Routing
from ps.spec import ClusterSpec


@dataclass(eq=False)
class Recovered:
    """A shard's state. num_updates: those replayed; seconds: what it took."""

    holding: Holding
    journal: Journal
    num_updates: int
    seconds: float


def recover(folder: Path, lock: Lock, *, now: float) -> Recovered | None:
    """The state that the folder's journal says, with the journal open to go on; None where there is none.

    Raises JournalError with file and byte where an acknowledged update is damaged, and then changes nothing.
    """
    began = time.monotonic()
    acknowledged = Acknowledged(folder)
    try:
        pointer = read_pointer(folder)
        segments = check_segments(folder, acknowledged.read(), None if pointer is None else pointer.segment)
    finally:
        acknowledged.close()
    if not segments:
        if pointer is not None:
            raise JournalError(f"{folder} has a snapshot but no journal: its files are gone; restore a checkpoint")
        return None
    replay = _Replay(folder, segments, pointer, now)
    replay.run()
    if pointer is not None:
        remove_snapshots(folder, kept=pointer.file)
    journal = Journal(
        folder, lock, replay.holding, last=segments[-1], next_number=replay.next_number, group_steps=replay.group_steps
    )
    return Recovered(replay.holding, journal, replay.num_updates, seconds=time.monotonic() - began)


def remove_journal(folder: Path) -> None:
    """Drop all that a folder's journal has. The caller holds its lock."""
    (folder / POINTER).unlink(missing_ok=True)
    (folder / Acknowledged.NAME).unlink(missing_ok=True)
    for name in find_segments(folder):
        (folder / str(name)).unlink()
    remove_snapshots(folder, kept="")


class _Replay:
    def __init__(self, folder: Path, segments: list[Segment], pointer: Pointer | None, now: float) -> None:
        self.folder, self.segments, self.now = folder, segments, now
        start = segments[0].start
        try:
            spec = ClusterSpec.model_validate_json(segments[-1].start["spec"])
        except (ValidationError, RequestError, KeyError) as error:
            raise JournalError(f"{segments[-1].path}: its cluster spec cannot be read: {error}") from error
        self.holding = Holding(spec)
        for _ in self.holding.warm_up():
            pass
        self.positions: NDArray[np.int64] = np.zeros(spec.num_buckets, np.int64)
        self.group_steps = [(int(generation), int(step)) for generation, step in start.get("groups", ())]
        self.num_updates = 0
        self.next_number = segments[0].name.first
        self._layouts = {name: layout_digest(text) for name, text in self.holding.layouts().items()}
        self._move(start["routing"], segments[0], 0)
        self._moving(start)
        if pointer is not None:
            self._load(pointer)

    def run(self) -> None:
        for segment in self.segments:
            for frame, rows in read_frames(segment):
                if rows is not None:
                    self._apply(rows, segment)
                else:
                    self._commit(frame.header, segment)

    def _load(self, pointer: Pointer) -> None:
        path = self.folder / pointer.file
        if len(pointer.positions) != len(self.positions):
            raise JournalError(f"{path} has {len(pointer.positions)} buckets, the journal {len(self.positions)}")
        if not path.is_file() or path.stat().st_size != pointer.num_bytes:
            raise JournalError(f"{path} is missing or cut off; restore a checkpoint")
        self.positions[:] = pointer.positions
        self.next_number = max(self.next_number, int(self.positions.max()))
        with checkpoint.open_part(LocalPlace(self.folder), pointer.file, shown=str(path)) as part:
            for name, ids in part.start.get("expired", {}).items():
                self.holding.applied[name].load_expired(ids)
            for record in part.records:
                self.holding.load(record, now=self.now)

    def _apply(self, frame: RowsFrame, segment: Segment) -> None:
        table = self.holding.tables.get(frame.table)
        if table is None or self._layouts[frame.table] != frame.layout:
            raise JournalError(f"{segment.path}: rows of table {frame.table!r} have another layout than the spec says")
        for bucket in frame.dropped:
            if frame.number >= self.positions[bucket]:
                table.drop_bucket(bucket)
        for keys, images in (frame.full, frame.early):
            chosen = self._is_new(keys, frame.number)
            if chosen.any():
                table.write_images(keys[chosen], images[chosen])
        if len(frame.removed):
            table.delete(frame.removed[self._is_new(frame.removed, frame.number)])
        keys, amounts = frame.gathered
        chosen = self._is_new(keys, frame.number)
        if chosen.any():
            table.admission.gather(keys[chosen], amounts[chosen], np.empty(int(chosen.sum()), np.bool_))

    def _commit(self, header: dict[str, Any], segment: Segment) -> None:
        number, holding = header["number"], self.holding
        self.num_updates += 1
        self.next_number = max(self.next_number, number + 1)
        try:
            for table, identities, packed in header.get("marks", ()):
                buckets = np.frombuffer(packed, "<i4").astype(np.int64)
                buckets = buckets[self.positions[buckets] <= number]
                for client, sequence in identities:
                    holding.applied[table].mark(client, sequence, buckets, now=self.now)
            for table, ids in header.get("expired", {}).items():
                holding.applied[table].drop_clients(ids)
            if "group" in header:
                generation, step = header["group"]
                self.group_steps.append((int(generation), int(step)))
            if "routing" in header:
                self._move(header["routing"], segment, number)
            self._moving(header)
            if "windows" in header:
                is_new = [number >= position for position in self.positions.tolist()]
                load_windows(holding, header["windows"], now=self.now, wanted=is_new.__getitem__)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise JournalError(f"{segment.path}: update {number} cannot be read: {error}") from error

    def _moving(self, header: dict[str, Any]) -> None:
        """Buckets that are given away, or come, as a start or a commit says."""
        for name, mask in (("leaving", self.holding.is_leaving), ("arriving", self.holding.is_arriving)):
            if name in header:
                mask[np.array(header[name], np.int64)] = True

    def _is_new(self, keys: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
        """bool [n]: keys of buckets that do not have the update of this number from the snapshot."""
        new: NDArray[np.bool_] = self.positions[bucket_of(keys, len(self.positions))] <= number
        return new

    def _move(self, routing: Any, segment: Segment, number: int) -> None:
        """Rows of buckets that went with it are named by frames of their own."""
        held = self.holding.held
        try:
            epoch, owners, addresses, shard, least_epoch = routing
            place = Routing(epoch, np.frombuffer(owners, "<i4").astype(np.int32), tuple(addresses))
            self.holding.move(place, shard, drops=False)
            self.holding.least_epoch = least_epoch
        except (TypeError, ValueError) as error:
            raise JournalError(f"{segment.path}: a routing cannot be read: {error}") from error
        for bucket in np.setdiff1d(held, self.holding.held).tolist():
            if self.positions[bucket] <= number:
                for applied in self.holding.applied.values():
                    applied.drop_bucket(bucket)
