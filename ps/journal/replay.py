"""After-images back into a holding, frame by frame: what recovery does with files, and a standby with what streams in.
Runs no optimizer and no code of users. Single-threaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.errors import JournalError
from ps.holding import Holding
from ps.journal.frames import RowsFrame
from ps.keys import bucket_of
from ps.moving import load_windows
from ps.record import Record, layout_digest
from ps.routing import Routing
from ps.spec import ClusterSpec


class Replay:
    """positions: int64 [num_buckets], of each bucket the number of the first update that it does not have; earlier ones
    pass it by. now: seconds, on the clock of whoever will expire clients.
    """

    def __init__(self, holding: Holding, *, now: float) -> None:
        self.holding, self.now = holding, now
        self.positions: NDArray[np.int64] = np.zeros(holding.spec.num_buckets, np.int64)
        self.group_steps: list[tuple[int, int]] = []
        self.num_updates = 0
        self.next_number = 1
        self._layouts = {name: layout_digest(text) for name, text in holding.layouts().items()}

    def begin(self, start: dict[str, Any], place: object) -> None:
        """Take over what the start of a segment says. Raises JournalError naming the place, as all that follow."""
        with _readable(f"{place}: its start"):
            self.group_steps = [(int(generation), int(step)) for generation, step in start.get("groups", ())]
            self.next_number = int(start["first"])
            self._move(start["routing"], place, 0)
            self._moving(start)

    def load(self, record: Record, place: object) -> None:
        """Rows of a bucket as they are, and what it has had."""
        if self._layouts.get(record.table) != record.layout:
            raise JournalError(f"{place}: rows of table {record.table!r} have another layout than the spec says")
        self.holding.load(record, now=self.now)

    def apply(self, frame: RowsFrame, place: object) -> None:
        """Rows of an update; it has happened with its commit only."""
        table = self.holding.tables.get(frame.table)
        if table is None or self._layouts[frame.table] != frame.layout:
            raise JournalError(f"{place}: rows of table {frame.table!r} have another layout than the spec says")
        if any(bucket >= len(self.positions) for bucket in frame.dropped):
            raise JournalError(f"{place}: update {frame.number} drops a bucket that there is not")
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

    def commit(self, header: dict[str, Any], place: object) -> None:
        """The end of an update: what is remembered of it."""
        number, holding = header["number"], self.holding
        self.num_updates += 1
        self.next_number = max(self.next_number, number + 1)
        with _readable(f"{place}: update {number}"):
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
            if "spec" in header:
                holding.spec = self._other_options(header["spec"])
            if "routing" in header:
                self._move(header["routing"], place, number)
            self._moving(header)
            if "windows" in header:
                is_new = ((self.positions <= number) & holding.is_arriving).tolist()
                load_windows(holding, header["windows"], now=self.now, wanted=is_new.__getitem__)

    def _other_options(self, text: str) -> ClusterSpec:
        spec = ClusterSpec.model_validate_json(text)
        if spec.rows_only() != self.holding.spec.rows_only():
            raise ValueError("a spec of other rows")
        return spec

    def _moving(self, header: dict[str, Any]) -> None:
        """Buckets that are given away, or come, as a start or a commit says."""
        for name, mask in (("leaving", self.holding.is_leaving), ("arriving", self.holding.is_arriving)):
            if name in header:
                mask[np.array(header[name], np.int64)] = True

    def _is_new(self, keys: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
        """bool [n]: keys of buckets that do not have the update of this number yet."""
        new: NDArray[np.bool_] = self.positions[bucket_of(keys, len(self.positions))] <= number
        return new

    def _move(self, routing: Any, source: object, number: int) -> None:
        """Rows of buckets that went with it are named by frames of their own."""
        held = self.holding.held
        try:
            epoch, owners, addresses, shard, least_epoch = routing
            place = Routing(epoch, np.frombuffer(owners, "<i4").astype(np.int32), tuple(addresses))
            self.holding.move(place, shard, drops=False)
            self.holding.least_epoch = least_epoch
        except (TypeError, ValueError) as error:
            raise JournalError(f"{source}: a routing cannot be read: {error}") from error
        for bucket in np.setdiff1d(held, self.holding.held).tolist():
            if self.positions[bucket] <= number:
                for applied in self.holding.applied.values():
                    applied.drop_bucket(bucket)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Values of another kind than they must be become a JournalError."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise JournalError(f"{what} cannot be read: {error}") from error
