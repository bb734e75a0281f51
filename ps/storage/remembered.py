"""Keys that a mark remembers: a growing set, in chains by bucket. See ps/storage/kernels/kept.py."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels import kept as kernels
from ps.types import Keys

_LEAST_CAPACITY = 256
_MAP_NORESERVE = 0x4000


class Remembered:
    """Keys of watched buckets, each with a number, from 0 on. buckets: int64 [k], those that are watched. most: keys,
    of which the caller never adds more.
    """

    def __init__(self, num_buckets: int, buckets: NDArray[np.int64], most: int) -> None:
        self._bits = num_buckets.bit_length() - 1
        self._heads = np.full(num_buckets, kernels.UNWATCHED, np.int32)
        self._heads[buckets] = kernels.NONE
        self.keys, self._nexts = reserved(np.uint64, most), reserved(np.int32, most)  # by number
        self._slots = reserved(np.uint32, 8 * most + 2 * _LEAST_CAPACITY * kernels.PARTS)
        self._parts = np.zeros((kernels.PARTS, 3), np.int64)
        self._parts[:, kernels.CAPACITY] = _LEAST_CAPACITY + _LEAST_CAPACITY * np.arange(kernels.PARTS) // kernels.PARTS
        self._parts[1:, kernels.START] = np.cumsum(self._parts[:-1, kernels.CAPACITY])
        self._used = np.array([self._parts[:, kernels.CAPACITY].sum(), 0])

    @property
    def num_keys(self) -> int:
        return int(self._used[1])

    @property
    def memory_bytes(self) -> int:
        return 12 * self.num_keys + 4 * int(self._used[0]) if self.num_keys else 0

    def add(self, keys: Keys) -> NDArray[np.int64]:
        """Give the next numbers to the keys (C-contiguous) that have none; their places among the given ones."""
        fresh = np.empty(len(keys), np.int64)
        count = kernels.remember(
            *(self._slots, self._parts, self._used, self.keys, self._nexts, self._heads, keys, self._bits, fresh)
        )
        return fresh[:count]

    def numbers_of(self, keys: Keys) -> NDArray[np.int64]:
        """int64 [n]; negative for a key that has none."""
        numbers = np.empty(len(keys), np.int64)
        kernels.numbers_of(self._slots, self._parts, self.keys, keys, numbers)
        return numbers

    def numbers_in(self, bucket: int) -> NDArray[np.int64]:
        """Those of a bucket's keys, the latest first."""
        numbers = np.empty(kernels.chain(self._nexts, self._heads[bucket], np.empty(0, np.int64)), np.int64)
        kernels.chain(self._nexts, self._heads[bucket], numbers)
        return numbers

    def has_any(self, bucket: int) -> bool:
        """Whether any key of a bucket has a number."""
        return bool(self._heads[bucket] >= 0)

    def watches(self, bucket: int) -> bool:
        return bool(self._heads[bucket] != kernels.UNWATCHED)

    @property
    def watched(self) -> NDArray[np.bool_]:
        """bool [num_buckets]."""
        watched: NDArray[np.bool_] = self._heads != kernels.UNWATCHED
        return watched

    def ignore(self, bucket: int) -> None:
        """Watch a bucket no more."""
        self._heads[bucket] = kernels.UNWATCHED

    def watch(self, bucket: int) -> None:
        """Watch a bucket (again). Keys that it had before are known, but in no chain."""
        if not self.watches(bucket):
            self._heads[bucket] = kernels.NONE

    def clear(self) -> None:
        """Forget all keys. What is watched stays so, and the memory is kept for the next ones."""
        self._slots[: self._used[0]] = 0
        self._heads[self._heads != kernels.UNWATCHED] = kernels.NONE
        self._parts[:, kernels.COUNT] = 0
        self._parts[1:, kernels.START] = np.cumsum(self._parts[:-1, kernels.CAPACITY])
        self._parts[0, kernels.START] = 0
        self._used[:] = self._parts[:, kernels.CAPACITY].sum(), 0

    def close(self) -> None:
        """Give the memory back."""
        self._used[1] = 0
        del self.keys, self._nexts, self._slots


def most_of(bytes_per_key: int) -> int:
    """How many keys of so many bytes can be reserved: what twice the machine's memory holds."""
    memory = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(memory // bytes_per_key, np.iinfo(np.int32).max))


def reserved(dtype: Any, count: int) -> NDArray[Any]:
    """Zeros, whose memory comes when touched and goes with the array."""
    size = max(1, count) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, flags=flags), dtype, count)
