"""A table as it was at one instant, read bucket by bucket while it goes on changing.

Nothing is copied at the mark. Before a row of a bucket that was not read yet changes or goes, its image is kept; of a
key that had no row it is kept that it had none. So it takes as much memory as the rows that changed meanwhile, until
`close`. Single-threaded, with its table.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError
from ps.keys import bucket_of
from ps.storage.kernels import index
from ps.storage.kernels import kept as kernels
from ps.storage.kernels.images import read_images
from ps.storage.reading import BLOCK_ROWS, blocks_of, images_of
from ps.storage.table import Table
from ps.types import Floats, Images, Keys

_ABSENT, _NOT_KEPT = -1, -2
_EARLY = 1 << 40  # added to places of early rows
_LEAST_CAPACITY = 256
_MAP_NORESERVE = 0x4000


class Kept:
    """Marks when it is made; ps.storage.watching.Watcher of its table until `close`.

    buckets: int64 [k], those that will be read, each once.
    """

    def __init__(self, table: Table, buckets: NDArray[np.int64]) -> None:
        self._table = table
        self._bits = table.num_buckets.bit_length() - 1
        self._sizes = [kind.image_words for kind in table._layout.kinds]  # full rows, early ones
        memory = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._most = min(memory // (4 * self._sizes[-1] + 20), np.iinfo(np.int32).max)  # keys
        self._heads = np.full(table.num_buckets, kernels.UNWATCHED, np.int32)
        self._heads[buckets] = kernels.NONE
        self._keys, self._nexts = _reserved(np.uint64, self._most), _reserved(np.int32, self._most)
        self._places = _reserved(np.int64, self._most)  # among the images of its kind, or _ABSENT
        self._images = [_reserved(np.uint32, self._most * size).reshape(-1, size) for size in self._sizes]
        self._slots = _reserved(np.uint32, 8 * self._most)
        self._parts = np.zeros((kernels.PARTS, 3), np.int64)
        self._parts[:, kernels.CAPACITY] = _LEAST_CAPACITY + _LEAST_CAPACITY * np.arange(kernels.PARTS) // kernels.PARTS
        self._parts[1:, kernels.START] = np.cumsum(self._parts[:-1, kernels.CAPACITY])
        self._used = np.array([self._parts[:, kernels.CAPACITY].sum(), 0])
        self._num_images = [0 for _ in self._sizes]
        self._gathered: dict[int, NDArray[np.uint16]] = {}  # by bucket, what admission had
        table.watchers.add(self)

    @property
    def memory_bytes(self) -> int:
        """Of what is kept."""
        images = sum(4 * count * size for count, size in zip(self._num_images, self._sizes, strict=True))
        sketches = sum(sketch.nbytes for sketch in self._gathered.values())
        return images + sketches + (20 * self._num_keys + 4 * int(self._used[0]) if self._num_keys else 0)

    def close(self) -> None:
        """Keep nothing any more, and give the memory back."""
        self._table.watchers.remove(self)
        self._used[1], self._num_images = 0, [0 for _ in self._sizes]
        self._gathered.clear()
        del self._keys, self._nexts, self._places, self._images, self._slots

    def admission(self, bucket: int) -> bytes:
        """Admission.save of a bucket that was not read yet, as of the mark."""
        admission = self._table.admission
        return admission.packed(self._gathered[bucket]) if bucket in self._gathered else admission.save(bucket)

    def read_images(self, bucket: int) -> Iterator[tuple[Keys, Images]]:
        """As Table.read_images, of the mark: rows in their order at the first call, then those that went. The table may
        change between two pieces.
        """
        for keys in list(self._keys_of(bucket)):
            for start in range(0, len(keys), BLOCK_ROWS):
                yield from self._pieces(keys[start : start + BLOCK_ROWS])
        self._heads[bucket] = kernels.UNWATCHED
        self._gathered.pop(bucket, None)

    # A watcher's calls.

    def changing(self, keys: Keys) -> None:
        keys, first = np.ascontiguousarray(keys, np.uint64), self._num_keys
        if first + len(keys) > self._most:
            raise MemoryLimitError(f"table {self._table.name!r}: a save keeps {first} old rows; wait for its end")
        fresh = np.empty(len(keys), np.int64)
        count = kernels.remember(
            *(self._slots, self._parts, self._used, self._keys, self._nexts, self._heads, keys, self._bits, fresh)
        )
        if not count:
            return
        addresses = self._table._locate(keys[fresh[:count]])[0]
        places = self._places[first : first + count]
        places[:] = _ABSENT
        is_early = addresses >= index.EARLY
        for kind, chosen in enumerate(((addresses >= 0) & ~is_early, is_early)[: len(self._sizes)]):
            some = addresses[chosen]
            start = self._num_images[kind]
            self._num_images[kind] = end = start + len(some)
            images = self._images[kind][start:end]
            read_images(self._table.arena.words, some, images, self._table._layout.early_words)
            places[chosen] = np.arange(start, end) + kind * _EARLY

    def removing(self, keys: Keys) -> None:
        self.changing(keys)

    def dropping(self, bucket: int) -> None:
        if self._heads[bucket] == kernels.UNWATCHED:
            return
        self._keep_gathered(bucket)
        for keys, _ in blocks_of(self._table, bucket):
            self.changing(keys)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        for bucket in np.unique(bucket_of(keys, self._table.num_buckets)).tolist():
            self._keep_gathered(bucket)

    # Inside.

    @property
    def _num_keys(self) -> int:
        return int(self._used[1])

    def _keep_gathered(self, bucket: int) -> None:
        if self._heads[bucket] != kernels.UNWATCHED and bucket not in self._gathered:
            self._gathered[bucket] = self._table.admission.gathered(bucket)

    def _places_of(self, keys: Keys) -> NDArray[np.int64]:
        """_NOT_KEPT where a key's row is as it was."""
        numbers = np.empty(len(keys), np.int64)
        kernels.numbers_of(self._slots, self._parts, self._keys, keys, numbers)
        places: NDArray[np.int64] = np.where(numbers >= 0, self._places[np.maximum(numbers, 0)], _NOT_KEPT)
        return places

    def _keys_of(self, bucket: int) -> Iterator[Keys]:
        """Keys that had rows: full ones, early ones, and those that have gone."""
        present: list[list[Keys]] = [[], []]
        for keys, addresses in blocks_of(self._table, bucket):
            present[int(addresses[0] >= index.EARLY)].append(keys[self._places_of(keys) != _ABSENT])
        yield from (np.concatenate(found) for found in present if found)
        numbers = np.empty(kernels.chain(self._nexts, self._heads[bucket], np.empty(0, np.int64)), np.int64)
        kernels.chain(self._nexts, self._heads[bucket], numbers)
        kept = self._keys[numbers[self._places[numbers] != _ABSENT]]
        yield kept[~self._table.contains(kept)]

    def _pieces(self, keys: Keys) -> Iterator[tuple[Keys, Images]]:
        """Of each key once: its kept image, or the present one; full rows, then early ones."""
        places = self._places_of(keys)
        is_old = places != _NOT_KEPT
        present = images_of(self._table, keys[~is_old])
        for kind, size in enumerate(self._sizes):
            chosen = is_old & (places // _EARLY == kind)
            old = self._images[kind][places[chosen] % _EARLY].view(np.uint8).reshape(-1, 4 * size)
            parts = [pair for pair in (present[kind], (keys[chosen], old)) if len(pair[0])]
            if parts:
                yield np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _reserved(dtype: Any, count: int) -> NDArray[Any]:
    """Zeros, whose memory comes when touched and goes with the array."""
    size = max(1, count) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, flags=flags), dtype, count)
