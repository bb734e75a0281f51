"""What each slot of a table has learnt and costs: rows, bytes, norms, rows at zero, rows that moved.

Sums are float64 by (bucket, slot), in row order; they are joined in bucket order. So a table gives the same bits on one
shard or four, and its checkpoint does, which `weir inspect` reads through the same SlotSums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ps.keys import slot_of
from ps.psfunc import Answer, Kind, Psfunc, Running, Task, register
from ps.spec import TableSpec

if TYPE_CHECKING:
    from ps.storage.reading import Block
    from ps.storage.table import Table

_OF_ROWS = 4  # sums of whole rows: rows, bytes, shows, clicks
_OF_SEGMENT = 3  # sums of a segment: L2 norms, rows at zero, rows that moved


@dataclass(frozen=True)
class SegmentStatistics:
    """One segment of a slot's rows. norm_*: of a row's L2 norm. share_zero: the rows whose elements are all 0.
    coverage: the rows that moved: that have an element which is not the initial value of its key. A late segment that a
    row does not have counts as initial.
    """

    norm_mean: float
    norm_max: float
    share_zero: float
    coverage: float


@dataclass(frozen=True)
class SlotSummary:
    """One slot of a table. share: of the table's rows. num_bytes: of its rows with key, metadata, values and state; the
    index and room for rows to come are not counted. shows, clicks: sums over its rows, each as decayed when it was last
    pushed; None where the table keeps none.
    """

    rows: int
    share: float
    num_bytes: int
    shows: float | None
    clicks: float | None
    segments: Mapping[str, SegmentStatistics]


@dataclass
class SlotSums:
    """Sums by (bucket, slot): float64 [4 + 3 * segments], and the greatest norm of each segment, float64 [segments]."""

    columns: Mapping[str, slice]  # of each segment in a decoded row
    keeps_counts: bool  # whether rows have shows and clicks
    sums: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)
    greatest: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: TableSpec) -> SlotSums:
        return cls(spec.columns(), spec.keeps_counts)

    def add(self, bucket: int, table: Table, block: Block) -> None:
        """Take rows of a bucket in, a block of them as the table gives it."""
        slots, place = np.unique(slot_of(block.keys), return_inverse=True)
        initial = table.initial_values(block.keys)
        sums = np.zeros((len(slots), _OF_ROWS + _OF_SEGMENT * len(self.columns)))
        greatest = np.zeros((len(slots), len(self.columns)))
        sums[:, 0] = np.bincount(place)
        sums[:, 1] = sums[:, 0] * block.row_bytes
        for offset, counts in enumerate(block.counts().T):
            sums[:, 2 + offset] = np.bincount(place, counts)
        for number, columns in enumerate(self.columns.values()):
            part = block.values[:, columns]
            norms = np.sqrt(np.sum(np.square(part, dtype=np.float64), axis=1))
            moved = np.any(part != initial[:, columns], axis=1)
            at = _OF_ROWS + _OF_SEGMENT * number
            for offset, weights in enumerate((norms, norms == 0, moved)):
                sums[:, at + offset] = np.bincount(place, weights)
            np.maximum.at(greatest[:, number], place, norms)
        for slot, added, largest in zip(slots.tolist(), sums, greatest, strict=True):
            pair = bucket, slot
            self.sums[pair] = self.sums[pair] + added if pair in self.sums else added
            self.greatest[pair] = np.maximum(self.greatest[pair], largest) if pair in self.greatest else largest

    def summary(self) -> dict[int, SlotSummary]:
        """By slot, in ascending order."""
        totals: dict[int, NDArray[np.float64]] = {}
        greatest: dict[int, NDArray[np.float64]] = {}
        for pair in sorted(self.sums):
            slot = pair[1]
            totals[slot] = totals[slot] + self.sums[pair] if slot in totals else self.sums[pair]
            greatest[slot] = np.maximum(greatest.get(slot, 0.0), self.greatest[pair])
        num_rows = sum(total[0] for total in totals.values())
        return {slot: self._slot(totals[slot], greatest[slot], num_rows) for slot in sorted(totals)}

    def encode(self) -> dict[str, Any]:
        """As numbers, texts and bytes."""
        numbers = [np.concatenate([self.sums[pair], self.greatest[pair]]) for pair in self.sums]
        return {
            "segments": [[name, columns.start, columns.stop] for name, columns in self.columns.items()],
            "keeps_counts": self.keeps_counts,
            "pairs": np.array(list(self.sums), "<i4").tobytes(),
            "numbers": np.array(numbers, "<f8").tobytes(),
        }

    @classmethod
    def decode(cls, encoded: Sequence[Mapping[str, Any]]) -> SlotSums:
        """The sums of all shards: at least one, each with buckets of its own."""
        columns = {name: slice(start, stop) for name, start, stop in encoded[0]["segments"]}
        found = cls(columns, encoded[0]["keeps_counts"])
        split = _OF_ROWS + _OF_SEGMENT * len(found.columns)
        for part in encoded:
            pairs = np.frombuffer(part["pairs"], "<i4").reshape(-1, 2)
            numbers = np.frombuffer(part["numbers"], "<f8").reshape(len(pairs), split + len(found.columns))
            for (bucket, slot), row in zip(pairs.tolist(), numbers, strict=True):
                found.sums[bucket, slot], found.greatest[bucket, slot] = row[:split], row[split:]
        return found

    def _slot(self, total: NDArray[np.float64], greatest: NDArray[np.float64], num_rows: float) -> SlotSummary:
        rows, num_bytes, *counts = total[:_OF_ROWS].tolist()
        shows, clicks = counts if self.keeps_counts else (None, None)
        segments = {
            name: SegmentStatistics(norms / rows, largest, zero / rows, moved / rows)
            for name, (norms, zero, moved), largest in zip(
                self.columns, total[_OF_ROWS:].reshape(-1, _OF_SEGMENT).tolist(), greatest.tolist(), strict=True
            )
        }
        return SlotSummary(int(rows), rows / num_rows, int(num_bytes), shows, clicks, segments)


@register("slot_statistics")
@dataclass(frozen=True)
class SlotStatistics(Psfunc):
    """{slot: SlotSummary} of a table's rows.

    Runs in slices of a block of rows. While the table changes, each block is as it is when its turn comes: a row that a
    deletion moves meanwhile may be missing or count twice.
    """

    kind: ClassVar[Kind] = "get"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "never"

    def apply(self, task: Task) -> Running:
        table = task.table
        found = SlotSums.of(table.spec)
        for bucket in task.buckets[table.rows_per_bucket[task.buckets] > 0].tolist():
            for block in table.scan(bucket):
                found.add(bucket, table, block)
                yield
        return Answer(values=found.encode())

    def merge(self, answers: Sequence[Answer]) -> dict[int, SlotSummary]:
        """Empty for a table without rows."""
        return SlotSums.decode([answer.values for answer in answers]).summary()
