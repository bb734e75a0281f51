"""csv and tsv files, plain or .gz, with or without a header, read in a stream; every value arrives as text.

Blank lines are skipped. A value holds no line break. Errors name the physical line: the file is read a second time to
find it.
"""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pyarrow as pa
import pyarrow.csv as pa_csv

from workers.samples.chunk import Chunk, Range, cut
from workers.samples.errors import DataError
from workers.samples.files import check_columns

if TYPE_CHECKING:
    from _csv import Reader

CHUNK_BYTES = 1 << 22


def open_text(path: Path) -> TextIO:
    """A text file, unpacked where its name ends in .gz; undecodable bytes are replaced."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


class DelimitedSource:
    """Rows of delimited files, one file after another. names: columns where the files have no header, else ()."""

    def __init__(
        self,
        paths: tuple[Path, ...],
        places: Mapping[str, str],
        *,
        delimiter: str = ",",
        names: tuple[str, ...] = (),
        quote: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.paths, self.places, self.names = paths, places, names
        self.delimiter, self.quote, self.chunk_bytes = delimiter, quote, chunk_bytes
        self._rows: int | None = None

    @property
    def known_rows(self) -> int | None:
        return self._rows

    def count_rows(self) -> int:
        if self._rows is None:
            self._rows = sum(chunk.size for chunk in self._all())
        return self._rows

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        return cut(self._all(), ranges)

    def _all(self) -> Iterator[Chunk]:
        return itertools.chain.from_iterable(self._file(path) for path in self.paths)

    def _file(self, path: Path) -> Iterator[Chunk]:
        present = self._header(path)
        check_columns(path, present, self.places)
        wanted = list(self.places)
        row = 0
        try:
            with pa_csv.open_csv(
                path,
                pa_csv.ReadOptions(block_size=self.chunk_bytes, column_names=list(self.names) or None),
                pa_csv.ParseOptions(delimiter=self.delimiter, quote_char='"' if self.quote else False),
                pa_csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
                ),
            ) as reader:
                for batch in reader:
                    if batch.num_rows:
                        yield Chunk(dict(zip(wanted, batch.columns)), batch.num_rows, partial(self._place, path), row)
                        row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise self._explained(path, present, error) from None
        if row == 0:
            raise DataError(f"{path}: empty: a header and no rows")

    def _header(self, path: Path) -> list[str]:
        with open_text(path) as file:
            try:
                first = next((row for row in self._reader(file) if row), None)
            except (OSError, EOFError) as error:
                raise DataError(f"{path}: cannot be read: {error}") from None
        if first is None:
            raise DataError(f"{path}: empty file")
        return list(self.names) or first

    def _reader(self, file: TextIO) -> Reader:
        if self.quote:
            return csv.reader(file, delimiter=self.delimiter)
        return csv.reader(file, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)

    def _place(self, path: Path, row: int) -> str:
        """'<path>:<line>' of a data row, counted from 0."""
        with open_text(path) as file:
            reader = self._reader(file)
            filled = (reader.line_num for fields in reader if fields)
            skipped = row if self.names else row + 1
            line = next(itertools.islice(filled, skipped, None), None)
        return f"{path}:{line}"

    def _explained(self, path: Path, present: list[str], error: Exception) -> DataError:
        """What the reader could not take, with its line where a line has another number of values."""
        try:
            with open_text(path) as file:
                reader = self._reader(file)
                for fields in reader:
                    if fields and len(fields) != len(present):
                        return DataError(
                            f"{path}:{reader.line_num}: {len(fields)} values, expected {len(present)}, one a column"
                        )
        except (OSError, EOFError, csv.Error) as second:
            return DataError(f"{path}: cannot be read: {second}")
        return DataError(f"{path}: cannot be read: {' '.join(str(error).split())}")
