"""A checkpoint's rows as images that serve: read once, record by record, in memory that does not grow with them.

A row is written as a pull reads it: weights that an optimizer computes (FTRL) are computed, a late segment that the row
lacks has its initial value, state is left out. What has no row is not written: it reads as in training without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgpack
import numpy as np
from numpy.typing import NDArray

from ps import checkpoint
from ps.chain import live_records
from ps.checkpoint import Manifest
from ps.errors import CheckpointError
from ps.lifetime import Always
from ps.record import Record, encode_record, layout_digest
from ps.serving_rows import RowEncoder
from ps.spec import ClusterSpec, TableSpec
from ps.storage.table import Table
from ps.types import Keys, Rows

_BLOCK_ROWS = 4096


class Sink(Protocol):
    """Takes served rows, too."""

    def __call__(self, table: str, keys: Keys, values: Rows) -> None: ...


class ChosenRows:
    """Values of chosen keys out of a stream of rows. Single-threaded."""

    def __init__(self, keys: Mapping[str, Keys], spec: ClusterSpec) -> None:
        """keys: by table, ascending and unique; what has no row reads as tables of `spec` say."""
        self.keys = dict(keys)
        self.values = {name: _scratch(name, spec, spec.tables[name]).pull(own) for name, own in keys.items()}

    def see(self, table: str, keys: Keys, values: Rows) -> None:
        """Rows as they come by: float32 [n, width]."""
        own = self.keys.get(table)
        if own is None or not len(own):
            return
        places = np.minimum(np.searchsorted(own, keys), len(own) - 1)
        found = own[places] == keys
        self.values[table][places[found]] = values[found]


@dataclass(frozen=True)
class WrittenRows:
    """rows, row_bytes: by table. differences: by table and segment, the greatest between a value and the served one.
    saturated: elements that the codec could not hold.
    """

    rows: dict[str, int]
    row_bytes: dict[str, int]
    differences: dict[str, dict[str, float]]
    saturated: int


def read_rows(manifest: Manifest) -> Iterator[tuple[str, int, Keys, Rows]]:
    """Table, bucket, keys and values (float32 [n, width], as pulled) of all rows of a checkpoint, at most 4096 at once.

    Raises CheckpointError, also where there are not as many as the manifest says.
    """
    tables = {name: _scratch(name, manifest.spec, spec) for name, spec in manifest.spec.tables.items()}
    layouts = {name: layout_digest(table.image_layout()) for name, table in tables.items()}
    counts = dict.fromkeys(tables, 0)
    for record, _ in live_records(manifest):
        table = tables[record.table]
        if len(record.keys) and record.layout != layouts[record.table]:
            raise CheckpointError(
                f"{manifest.directory}: rows of table {record.table!r} have another layout than its spec gives here; "
                "use the psfunc modules that the checkpoint was made with"
            )
        for start in range(0, len(record.keys), _BLOCK_ROWS):
            keys = record.keys[start : start + _BLOCK_ROWS]
            table.write_images(keys, record.images[start : start + _BLOCK_ROWS])
            values = table.pull(keys)
            table.clear()
            counts[record.table] += len(keys)
            yield record.table, record.bucket, keys, values
    if counts != manifest.rows:
        raise CheckpointError(
            f"{manifest.directory} holds rows {counts}, its manifest says {manifest.rows}; use another checkpoint"
        )


def write_rows(source: Manifest, serving: ClusterSpec, directory: Path, sinks: Mapping[str, list[Sink]]) -> WrittenRows:
    """Write all rows of a checkpoint as a checkpoint of the serving spec. sinks: what takes the values of "training",
    and what those that are "served". Raises CheckpointError.
    """
    encoders = {name: RowEncoder(spec) for name, spec in serving.tables.items()}
    layouts = {name: encoder.image_layout for name, encoder in encoders.items()}
    counts = dict.fromkeys(encoders, 0)
    greatest: dict[str, Rows] = {name: np.zeros(spec.width, np.float32) for name, spec in serving.tables.items()}

    def pieces() -> Iterator[bytes]:
        yield checkpoint.start_frame(shard=0, spec=serving, layouts=layouts, expired={})
        num_records = 0
        for table, bucket, keys, values in read_rows(source):
            images = encoders[table].encode(values)
            served = encoders[table].decode(images)
            np.maximum(greatest[table], np.abs(served - values).max(0), out=greatest[table])
            for name, rows in (("training", values), ("served", served)):
                for sink in sinks.get(name, ()):
                    sink(table, keys, rows)
            counts[table] += len(keys)
            num_records += 1
            yield encode_record(Record(table, bucket, layouts[table], keys, images))
        present = {name: count for name, count in counts.items() if count}
        yield checkpoint.end_frame(num_records=num_records, rows=present)

    part = checkpoint.write_part(directory, 0, 1, pieces())
    summary = {"rows": counts, "num_owned_buckets": serving.num_buckets}
    checkpoint.write_manifest(directory, serving, [msgpack.packb({**part, **summary})])
    return WrittenRows(
        counts,
        {name: 8 + encoder.image_bytes for name, encoder in encoders.items()},
        {name: _by_segment(greatest[name], spec) for name, spec in serving.tables.items()},
        sum(encoder.saturated for encoder in encoders.values()),
    )


def _by_segment(columns: NDArray[np.float32], spec: TableSpec) -> dict[str, float]:
    return {name: float(columns[place].max()) for name, place in spec.columns().items()}


def _scratch(name: str, spec: ClusterSpec, table: TableSpec) -> Table:
    """A table of one bucket that takes every key and reads as the training one."""
    own = table.model_copy(update={"admission": Always(), "memory_limit_bytes": None})
    return Table(name, own, seed=spec.seed, num_buckets=1)
