"""libsvm and libfm files, plain or .gz: `label index:value index:value ... [qid:n] [# comment]`.

What the configuration calls a column is one of

    label     the first number of the line qid       the query's number 17        the value at index 17; missing where
    the index is not there 100-5000  the indices of this range (also `100-`, without end) that are there, for one-hot
    data: their values must be 1, or 0
              for not there. A categorical field takes the only one, a multi field all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workers.samples.chunk import Chunk, Range
from workers.samples.delimited import CHUNK_BYTES, DelimitedSource
from workers.samples.errors import DataError

_COLUMN = re.compile(r"^(?:label|qid|(?P<low>\d+)(?:(?P<dash>-)(?P<high>\d*))?)$")


class LibsvmSource:
    """Rows of libsvm files. multi: the columns that a multi field reads."""

    def __init__(
        self, paths: tuple[Path, ...], places: Mapping[str, str], multi: set[str], *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        for column, place in places.items():
            if not _COLUMN.match(column):
                raise DataError(
                    f"{place}: libsvm data has no column '{column}'; allowed: label, qid, an index such as 17,"
                    " a range of indices such as 100-5000"
                )
        self.columns, self.multi = tuple(places), multi
        # The delimiter is a character that no text file holds: a row is a line.
        self._lines = DelimitedSource(
            paths, {"line": "data"}, delimiter="\x01", names=("line",), quote=False, chunk_bytes=chunk_bytes
        )

    @property
    def known_rows(self) -> int | None:
        return self._lines.known_rows

    def count_rows(self) -> int:
        return self._lines.count_rows()

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        return map(self._parse, self._lines.chunks(ranges))

    def _parse(self, chunk: Chunk) -> Chunk:
        lines = pc.replace_substring_regex(chunk.columns["line"], r"\s*#.*", "")
        tokens = pc.ascii_split_whitespace(pc.utf8_trim_whitespace(lines))
        counts = pc.list_value_length(tokens).to_numpy(zero_copy_only=False).astype(np.int64)
        flat, starts = tokens.flatten(), np.cumsum(counts) - counts
        is_label = np.zeros(len(flat), bool)
        is_label[starts] = True
        owner = np.repeat(np.arange(chunk.size), counts)[~is_label]
        pairs = _Pairs(chunk, owner, flat.filter(pa.array(~is_label)))
        columns = {}
        for column in self.columns:
            match = _COLUMN.match(column)
            assert match is not None
            if column == "label":
                columns[column] = flat.take(pa.array(starts))
            elif column == "qid":
                columns[column] = pairs.value_of("qid")
            elif match["dash"]:
                columns[column] = pairs.present(int(match["low"]), int(match["high"] or 1 << 62), column in self.multi)
            else:
                columns[column] = pairs.value_of(int(column))
        return Chunk(columns, chunk.size, chunk.place, chunk.first_row)


class _Pairs:
    """The `index:value` tokens of a chunk. owner: int64 [nnz], the row of each, ascending; index: int64 [nnz], -1 for
    qid.
    """

    def __init__(self, chunk: Chunk, owner: NDArray[np.int64], tokens: pa.Array) -> None:
        self.chunk, self.owner = chunk, owner
        well_formed = pc.match_substring_regex(tokens, r"^(?:[0-9]{1,18}|qid):.").to_numpy(zero_copy_only=False)
        if not well_formed.all():
            first = int(np.argmin(well_formed))
            raise DataError(f"{chunk.where(owner[first])}: {tokens[first].as_py()!r} is not of the form index:value")
        halves = pc.split_pattern(tokens, ":", max_splits=1).flatten()
        names, self.values = halves[0::2], halves[1::2]
        names = pc.if_else(pc.equal(names, "qid"), "-1", names)
        self.index = names.cast(pa.int64()).to_numpy(zero_copy_only=False)

    def value_of(self, index: int | str) -> pa.Array:
        """Text [n], null where the index is not there."""
        hits = np.flatnonzero(self.index == (-1 if index == "qid" else index))
        self._check_single(hits, f"the index {index} comes more than once")
        return self.values.take(self._by_row(hits))

    def present(self, low: int, high: int, multi: bool) -> pa.Array:
        """The indices of low..high that are there: int64 lists [n], or int64 [n] with null for none unless `multi`."""
        hits = np.flatnonzero((self.index >= low) & (self.index <= high))
        values = self.values.take(pa.array(hits))
        is_one = pc.match_substring_regex(values, r"^1(?:\.0*)?$").to_numpy(zero_copy_only=False)
        is_zero = pc.match_substring_regex(values, r"^0(?:\.0*)?$").to_numpy(zero_copy_only=False)
        if not (is_one | is_zero).all():
            first = int(np.argmin(is_one | is_zero))
            raise DataError(
                f"{self.chunk.where(self.owner[hits[first]])}: index {self.index[hits[first]]} has the value"
                f" {values[first].as_py()!r}; in a range of one-hot indices it must be 1 or 0"
            )
        hits = hits[is_one]
        if multi:
            offsets = np.searchsorted(self.owner[hits], np.arange(self.chunk.size + 1)).astype(np.int32)
            return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.index[hits]))
        self._check_single(hits, f"several indices of {low}-{high}; type: multi takes them all")
        return pa.array(self.index).take(self._by_row(hits))

    def _check_single(self, hits: NDArray[np.int64], text: str) -> None:
        rows = self.owner[hits]
        twice = rows[1:] == rows[:-1]
        if twice.any():
            raise DataError(f"{self.chunk.where(int(rows[np.argmax(twice)]))}: {text}")

    def _by_row(self, hits: NDArray[np.int64]) -> pa.Array:
        positions = np.full(self.chunk.size, -1, np.int64)
        positions[self.owner[hits]] = hits
        return pa.array(positions, mask=positions < 0)
