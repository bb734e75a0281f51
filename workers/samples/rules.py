"""How numbers become dense values and keys: the rules that reading samples and serving share. numpy only.

These rules are part of what a trained model is: whoever changes one changes what served models mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.keys import hash_texts, pack
from ps.types import Keys
from workers.config.fields import Numeric

EMPTY_HASH = hash_texts([""])[0]  # of a missing value


def dense_values(field: Numeric, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [n] of a raw or log field. values: float64 [n], NaN where missing."""
    values = np.where(np.isnan(values), field.missing, values)
    return np.copysign(np.log1p(np.abs(values)), values) if field.transform == "log" else values


def first_beyond_float32(values: NDArray[np.float64]) -> int | None:
    """The first place whose value no float32 can hold."""
    too_large = np.abs(values) > np.finfo(np.float32).max
    return int(np.argmax(too_large)) if too_large.any() else None


class Intervals:
    """The keys of a field with transform: buckets."""

    def __init__(self, field: Numeric, slot: int) -> None:
        self._boundaries = np.array(field.boundaries)
        names = [str(i) for i in range(len(self._boundaries) + 1)] + [""]
        self._keys = pack(slot, hash_texts(names))

    def keys(self, values: NDArray[np.float64]) -> Keys:
        """uint64 [n]. values: float64 [n], NaN where missing."""
        intervals = np.searchsorted(self._boundaries, values, side="right")
        intervals[np.isnan(values)] = len(self._boundaries) + 1
        return self._keys.take(intervals)


def without_empty(hashes: Keys, lengths: NDArray[np.int64], max_length: int | None) -> tuple[Keys, NDArray[np.int64]]:
    """Of a multi field: the first `max_length` values of each row that are not empty, end to end, and how many each
    row has. hashes: XXH64 of all values' texts; lengths: int64 [n].
    """
    kept = hashes != EMPTY_HASH
    owner = np.repeat(np.arange(len(lengths)), lengths)
    if not kept.all():
        hashes, owner = hashes[kept], owner[kept]
        lengths = np.bincount(owner, minlength=len(lengths))
    if max_length is not None and len(lengths) and lengths.max() > max_length:
        starts = np.cumsum(lengths) - lengths
        kept = np.arange(len(hashes)) - starts[owner] < max_length
        hashes, lengths = hashes[kept], np.minimum(lengths, max_length)
    return hashes, lengths
