"""Rows of the hottest keys, kept at the client for a bounded number of steps. Not thread-safe: one owner.

A cached row is a copy as it was pulled; own pushes never change it. Its age, counted in pulls, is therefore part of the
client's staleness, and at staleness 0 there is no cache. Which keys are kept is decided by how often they were
pulled: a count-min sketch (Cormode and Muthukrishnan 2005) whose counters are halved every now and then (TinyLFU,
Einziger et al. 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels import cache as kernels
from ps.types import Keys, Rows, UniqueKeys

_SKETCH_BLOCKS_PER_ROW = 0.5  # eight counters a row
_HALVE_AFTER_COUNTS_PER_ROW = 10  # the sample size that TinyLFU recommends


class HotCache:
    """At most max_rows rows (a multiple of 8) of one table, none read that is older than max_age_steps pulls."""

    def __init__(self, max_rows: int, width: int, *, max_age_steps: int, min_count: int = 2) -> None:
        places = max(1, max_rows // kernels.WAYS) * kernels.WAYS
        self._keys = np.zeros(places, np.uint64)
        self._rows = np.zeros((places, width), np.float32)
        self._stamps = np.full(places, -1, np.int64)
        blocks = 1 << max(4, (int(places * _SKETCH_BLOCKS_PER_ROW) - 1).bit_length())
        self._sketch = np.zeros((blocks, 16), np.uint32)
        self._counts = 0
        self._now = 0
        self._max_age_steps = max_age_steps
        self._min_count = min_count

    @property
    def num_rows(self) -> int:
        """Rows held, expired ones included."""
        return int((self._stamps >= 0).sum())

    @property
    def max_rows(self) -> int:
        return len(self._keys)

    def read(self, keys: UniqueKeys, out: Rows) -> tuple[NDArray[np.int64], int]:
        """Fill out[i] for the keys held; return the ascending positions of the others [k], and the stamp for `admit`.

        Each call is one step of age. out: float32 [n, width].
        """
        self._now += 1
        missing = np.empty(len(keys), np.int64)
        found = kernels.read(
            self._keys, self._rows, self._stamps, self._sketch, keys, self._oldest(self._now), out, missing
        )
        self._counts += len(keys)
        if self._counts > _HALVE_AFTER_COUNTS_PER_ROW * self.max_rows:
            self._sketch >>= np.uint32(1)
            self._counts //= 2
        return missing[:found], self._now

    def admit(self, keys: UniqueKeys, rows: Rows, positions: NDArray[np.int64], stamp: int) -> int:
        """Offer the rows at `positions` as they were pulled at `stamp`. Returns how many were stored."""
        oldest = self._oldest(self._now)
        if stamp < oldest:
            return 0
        return int(
            kernels.admit(
                *(self._keys, self._rows, self._stamps, self._sketch),
                *(keys, rows, positions, stamp, oldest, self._min_count),
            )
        )

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """bool [n]: whether a row of the key is held, of any age."""
        out = np.empty(len(keys), np.bool_)
        kernels.contains(self._keys, self._stamps, keys, out)
        return out

    def clear(self) -> None:
        """Forget every row; frequencies stay."""
        self._stamps.fill(-1)

    def _oldest(self, now: int) -> int:
        return max(0, now - self._max_age_steps)
