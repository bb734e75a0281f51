"""Served rows as Parquet, one file a table: key uint64, slot uint16, and a fixed-size list of float32 a segment."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ps.keys import slot_of
from ps.spec import ClusterSpec
from ps.types import Keys, Rows

_GROUP_ROWS = 1 << 16


def file_name(table: str) -> str:
    """Of a table whose name may be anything."""
    return f"{quote(table, safe='').replace('.', '%2E')}.parquet"


class ParquetRows:
    """A sink of rows (workers/exporting/rows.py) and a context manager. Rows are written as they come, at least
    _GROUP_ROWS in a group.
    """

    def __init__(self, folder: Path, spec: ClusterSpec) -> None:
        folder.mkdir(parents=True)
        self._stack, self._spec = ExitStack(), spec
        self._schemas = {
            name: pa.schema(
                [
                    ("key", pa.uint64()),
                    ("slot", pa.uint16()),
                    *((segment, pa.list_(pa.float32(), each.dim)) for segment, each in table.segments.items()),
                ]
            )
            for name, table in spec.tables.items()
        }
        self._writers = {
            name: self._stack.enter_context(pq.ParquetWriter(folder / file_name(name), schema))
            for name, schema in self._schemas.items()
        }
        self._waiting: dict[str, list[pa.RecordBatch]] = {name: [] for name in spec.tables}

    def __call__(self, table: str, keys: Keys, values: Rows) -> None:
        """Take rows; values: float32 [n, width]."""
        segments = self._spec.tables[table].columns().values()
        arrays = [pa.array(keys), pa.array(slot_of(keys))]
        for place in segments:
            flat = pa.array(np.ascontiguousarray(values[:, place]).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, place.stop - place.start))
        waiting = self._waiting[table]
        waiting.append(pa.RecordBatch.from_arrays(arrays, schema=self._schemas[table]))
        if sum(batch.num_rows for batch in waiting) >= _GROUP_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        if waiting := self._waiting[table]:
            self._writers[table].write_table(pa.Table.from_batches(waiting))
            waiting.clear()

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                for table in self._waiting:
                    self._flush(table)
