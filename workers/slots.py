"""Statistics of slots by the names of fields, from a checkpoint's records or a running cluster, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ps.errors import CheckpointError
from ps.psfuncs import SlotStatistics, SlotSummary
from ps.psfuncs.statistics import SlotSums
from ps.record import Record, layout_digest
from ps.spec import ClusterSpec
from ps.storage.table import Table
from workers.config import Config
from workers.text import aligned, as_yaml
from workers.training.cluster import connect

SLOT_STATISTICS = "slot_statistics"  # in the answers of `weir inspect` and `weir status`
_OF_SLOT = ("slot", "rows", "share", "bytes")
_COUNTS = ("shows", "clicks")
_OF_SEGMENT = ("segment", "norm mean", "norm max", "zero", "coverage")


class RecordedSlots:
    """Takes the records of a checkpoint and gives the slots of its tables, in the same bits as SlotStatistics does."""

    def __init__(self, spec: ClusterSpec) -> None:
        # A record's rows pass through a table of its layout, which decodes them.
        self._tables = {name: Table(name, table, seed=spec.seed, num_buckets=1) for name, table in spec.tables.items()}
        self._sums = {name: SlotSums.of(table) for name, table in spec.tables.items()}

    def add(self, record: Record) -> None:
        """Raises CheckpointError for rows of another layout than the checkpoint's spec has."""
        if not len(record.keys):
            return
        table = self._tables[record.table]
        if layout_digest(table.image_layout()) != record.layout:
            raise CheckpointError(
                f"table {record.table!r}: the rows have another layout than its spec gives here; "
                "use the psfunc modules that the checkpoint was made with"
            )
        table.write_images(record.keys, record.images)
        for block in table.scan(0):
            self._sums[record.table].add(record.bucket, table, block)
        table.clear()

    def summaries(self) -> dict[str, dict[int, SlotSummary]]:
        """By table and slot."""
        return {name: sums.summary() for name, sums in self._sums.items()}


def with_live_slots(status: dict[str, Any], config: Config) -> dict[str, Any]:
    """The answer of `weir status`, and what the slots of the recipe's running cluster hold."""
    names = names_of(config)
    with connect(config.name, security=config.cluster.security) as client:
        found = {table: client.get(table, SlotStatistics()) for table in client.spec.tables}
    return {**status, SLOT_STATISTICS: {table: by_name(slots, names) for table, slots in found.items()}}


def names_of(config: Config) -> dict[int, str]:
    """The field of each slot."""
    return {slot: name for name, slot in config.slots().items()}


def by_name(found: Mapping[int, SlotSummary], names: Mapping[int, str]) -> dict[str, Any]:
    """Maps and numbers; a slot without a name keeps its number."""
    return {names.get(slot, str(slot)): asdict(each) for slot, each in found.items()}


def shown(result: Mapping[str, Any]) -> str:
    """For a person: the statistics as tables, a line for each segment of each slot; the rest as YAML."""
    rest = {name: value for name, value in result.items() if name != SLOT_STATISTICS}
    tables = [f"\ntable {name}\n{_lines(slots)}" for name, slots in result.get(SLOT_STATISTICS, {}).items()]
    return as_yaml(rest) + "".join(tables)


def _lines(slots: Mapping[str, Any]) -> str:
    rows, kept = [], any(found["shows"] is not None for found in slots.values())
    counts = _COUNTS if kept else ()
    for slot, found in slots.items():
        left = [slot, str(found["rows"]), f"{found['share']:.2%}", str(found["num_bytes"])]
        left += [f"{found[name]:.6g}" for name in counts]
        for segment, each in found["segments"].items():
            norms = [f"{each['norm_mean']:.4g}", f"{each['norm_max']:.4g}"]
            rows.append([*left, segment, *norms, f"{each['share_zero']:.2%}", f"{each['coverage']:.2%}"])
            left = [""] * len(left)
    return aligned((*_OF_SLOT, *counts, *_OF_SEGMENT), rows)
