"""Where a batch wants the rows of a table: the kernels write them there, without a copy in between."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels.spreading import spread_rows
from ps.types import Floats, Rows


class Spread(NamedTuple):
    """runs, segments, offsets: as kernels/spreading.py has them; runs ascend. Lines `first` to `first + number` of out
    (float32, one-dimensional) are to be written. The caller answers for all of it: nothing is checked.
    """

    runs: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]
    first: int
    number: int
    out: Floats

    def put(self, rows: Rows, keys: NDArray[np.int64] | None = None) -> None:
        """Put rows, float32 [m, width], of these keys (int64 [m], places among all keys, ascending; None: of all)."""
        if keys is None:
            keys = np.arange(len(rows))
        spread_rows(
            np.ascontiguousarray(rows), keys, self.runs, self.segments, self.offsets, self.first, self.number, self.out
        )
