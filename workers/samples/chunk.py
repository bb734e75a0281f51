"""Some consecutive rows of a source as Arrow columns, before they are parsed; and the interface of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Range = tuple[int, int]  # rows [start, stop) of a source; what lies beyond its end is not there


@dataclass(frozen=True)
class Chunk:
    """columns: Arrow arrays of `size` rows by name. place(row) names a row in errors, '<file>:<line>'; row 0 is
    `first_row`.

    probability: float64 [size], known in the generated log only.
    """

    columns: dict[str, pa.Array]
    size: int
    place: Callable[[int], str]
    first_row: int = 0
    probability: NDArray[np.float64] | None = None

    def where(self, row: int) -> str:
        """The place of a row of this chunk."""
        return self.place(self.first_row + row)

    def slice(self, start: int, stop: int) -> Chunk:
        """Rows [start, stop), without a copy."""
        columns = {name: column.slice(start, stop - start) for name, column in self.columns.items()}
        probability = None if self.probability is None else self.probability[start:stop]
        return Chunk(columns, stop - start, self.place, self.first_row + start, probability)


class Source(Protocol):
    """Rows in a fixed order, those of several files one after another."""

    @property
    def known_rows(self) -> int | None:
        """Number of rows, or None where finding out costs a pass over the data."""

    def count_rows(self) -> int:
        """Number of rows; may read everything once."""

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        """The rows of ascending ranges that do not overlap, in order; no chunk spans two ranges. Raises DataError."""


def cut(chunks: Iterable[Chunk], ranges: Iterable[Range]) -> Iterator[Chunk]:
    """Of chunks that lie end to end from row 0 on, the rows in ascending ranges."""
    wanted = iter(ranges)
    start, stop = next(wanted, (0, 0))
    at = 0
    for chunk in chunks:
        end = at + chunk.size
        while start < stop:
            low, high = max(start, at), min(stop, end)
            if low < high:
                yield chunk.slice(low - at, high - at)
            if stop > end:
                break
            start, stop = next(wanted, (0, 0))
        else:
            return
        at = end
