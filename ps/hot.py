"""Gradients of hot keys, summed at the client for a few steps before they are pushed. An approximation, off by default.

The optimizer sees one sum where it would have seen several gradients, at the step of the last of them. Not thread-safe.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.storage.unique import sum_by_key, unique_by_bucket
from ps.types import Gradients, Keys, Offsets, UniqueKeys


class HotGradients:
    """What one table's hot keys have gathered. At most num_steps batches are held."""

    def __init__(self, width: int, *, num_steps: int, num_buckets: int) -> None:
        self._width = width
        self._num_steps = num_steps
        self._num_buckets = num_buckets
        self._keys: list[Keys] = []
        self._gradients: list[Gradients] = []
        self._steps = 0

    def __len__(self) -> int:
        """Gradient rows held."""
        return sum(map(len, self._keys))

    def exchange(
        self, keys: UniqueKeys, starts: Offsets, gradients: Gradients, is_hot: NDArray[np.bool_]
    ) -> tuple[UniqueKeys, Offsets, Gradients]:
        """One step: keep the hot rows and return the others to push; every num_steps steps, return everything kept as
        well.

        keys: grouped by bucket, from `starts`; gradients: float32 [n, width]; the result has the same form.
        """
        self._steps += 1
        if self._steps >= self._num_steps:
            return self.drain(keys, gradients)
        self._keys.append(keys[is_hot])
        self._gradients.append(gradients[is_hot])
        cold = np.flatnonzero(~is_hot)
        return keys[cold], np.searchsorted(cold, starts).astype(np.int64), np.ascontiguousarray(gradients[cold])

    def drain(
        self, keys: UniqueKeys | None = None, gradients: Gradients | None = None
    ) -> tuple[UniqueKeys, Offsets, Gradients]:
        """Everything kept, summed per key in the order of steps, together with the rows given. Nothing is held
        afterwards.
        """
        if keys is not None and gradients is not None:
            self._keys.append(keys)
            self._gradients.append(gradients)
        all_keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        all_gradients = np.concatenate([np.empty((0, self._width), np.float32), *self._gradients])
        self._keys, self._gradients, self._steps = [], [], 0
        distinct, inverse, starts = unique_by_bucket(all_keys, self._num_buckets)
        return distinct, starts, sum_by_key(all_gradients, inverse, len(distinct))
