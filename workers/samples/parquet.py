"""Parquet files. The row groups' sizes are known before anything is read, so a worker reads only those that hold its
rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workers.samples.chunk import Chunk, Range
from workers.samples.errors import DataError
from workers.samples.files import check_columns

CHUNK_ROWS = 1 << 16


def _place(path: Path, row: int) -> str:
    return f"{path}: row {row + 1}"


class ParquetSource:
    """Rows of Parquet files, one file after another."""

    def __init__(self, paths: tuple[Path, ...], places: Mapping[str, str], *, chunk_rows: int = CHUNK_ROWS) -> None:
        self.places, self.chunk_rows = places, chunk_rows
        # Of each row group: its file, its number and first row in there; and the row of the source that it begins at.
        self._groups: list[tuple[Path, int, int]] = []
        sizes: list[int] = []
        for path in paths:
            with _open(path) as file:
                check_columns(path, file.schema_arrow.names, places)
                if file.metadata.num_rows == 0:
                    raise DataError(f"{path}: empty: no rows")
                own = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            starts = accumulate(own, initial=0)
            self._groups += [(path, i, start) for i, (start, _) in enumerate(zip(starts, own))]
            sizes += own
        self._starts = list(accumulate(sizes, initial=0))

    @property
    def known_rows(self) -> int:
        return self._starts[-1]

    def count_rows(self) -> int:
        return self._starts[-1]

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        group, held = 0, None
        for start, stop in ranges:
            end = min(stop, self.known_rows)
            if start >= end:
                return
            while start < end:
                while self._starts[group + 1] <= start:
                    group, held = group + 1, None
                held = self._read(group) if held is None else held
                first = self._starts[group]
                last = min(end, self._starts[group + 1], start + self.chunk_rows)
                yield held.slice(start - first, last - first)
                start = last

    def _read(self, group: int) -> Chunk:
        path, index, first_row = self._groups[group]
        with _open(path) as file:
            try:
                table = file.read_row_group(index, columns=list(self.places))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: row group {index} cannot be read: {error}") from None
        columns = {name: table.column(name).combine_chunks() for name in self.places}
        return Chunk(columns, table.num_rows, partial(_place, path), first_row)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
