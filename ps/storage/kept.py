"""A table as it was at one instant, read bucket by bucket while it goes on changing.

Nothing is copied at the mark. Before a row of a bucket that was not read yet changes or goes, its image is kept; of a
key that had no row it is kept that it had none. So it takes as much memory as the rows that changed meanwhile, until
`close`. Single-threaded, with its table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError
from ps.keys import bucket_of
from ps.storage.buckets import MAX_ROWS
from ps.storage.kernels import index
from ps.storage.kernels.images import read_images
from ps.storage.reading import BLOCK_ROWS, blocks_of, images_at, images_of, rows_of_kind
from ps.storage.remembered import Remembered, most_of, reserved
from ps.storage.table import Table
from ps.types import Floats, Images, Keys

_ABSENT, _NOT_KEPT = -1, -2
_EARLY = 1 << 40  # added to places of early rows
_NOWHERE = np.empty(0, np.int64)


class Kept:
    """Marks when it is made; ps.storage.watching.Watcher of its table until `close`.

    buckets: int64 [k], those that will be read, each once.
    """

    def __init__(self, table: Table, buckets: NDArray[np.int64]) -> None:
        self._table = table
        self._sizes = [kind.image_words for kind in table._layout.kinds]  # full rows, early ones
        self._most = most_of(4 * self._sizes[-1] + 20)  # keys
        self._remembered = Remembered(table.num_buckets, buckets, self._most)
        self._places = reserved(np.int64, self._most)  # among the images of its kind, or _ABSENT
        self._images = [reserved(np.uint32, self._most * size).reshape(-1, size) for size in self._sizes]
        self._num_images = [0 for _ in self._sizes]
        self._gathered: dict[int, NDArray[np.uint16]] = {}  # by bucket, what admission had
        table.watchers.add(self)

    @property
    def memory_bytes(self) -> int:
        """Of what is kept."""
        images = sum(4 * count * size for count, size in zip(self._num_images, self._sizes, strict=True))
        sketches = sum(sketch.nbytes for sketch in self._gathered.values())
        return images + sketches + 8 * self._remembered.num_keys + self._remembered.memory_bytes

    def close(self) -> None:
        """Keep nothing any more, and give the memory back."""
        self._table.watchers.remove(self)
        self._num_images = [0 for _ in self._sizes]
        self._gathered.clear()
        self._remembered.close()
        del self._places, self._images

    def admission(self, bucket: int) -> bytes:
        """Admission.save of a bucket that was not read yet, as of the mark."""
        admission = self._table.admission
        return admission.packed(self._gathered[bucket]) if bucket in self._gathered else admission.save(bucket)

    def read_images(self, bucket: int, only: Keys | None = None) -> Iterator[tuple[Keys, Images]]:
        """As Table.read_images, of the mark: rows in their order at the first call, then those that went. The table may
        change between two pieces. only: unique keys of the bucket, whose rows alone are read.
        """
        if only is not None:
            listed = [(only[self.had_row(only)], _NOWHERE)]
        elif self._remembered.has_any(bucket):
            listed = [(keys, _NOWHERE) for keys in self._keys_of(bucket)]
        else:
            listed = [rows_of_kind(self._table, bucket, kind, 0, MAX_ROWS) for kind in range(len(self._sizes))]
        for keys, addresses in listed:
            for start in range(0, len(keys), BLOCK_ROWS):
                piece = slice(start, start + BLOCK_ROWS)
                if len(addresses) and not self._remembered.has_any(bucket):  # all is where it was
                    yield keys[piece], images_at(self._table, addresses[piece])
                else:
                    yield from self._pieces(keys[piece])
        self._remembered.ignore(bucket)
        self._gathered.pop(bucket, None)

    def had_row(self, keys: Keys) -> NDArray[np.bool_]:
        """bool [n]: which keys, of buckets that were not read yet, had a row."""
        places = self._places_of(keys)
        had: NDArray[np.bool_] = np.where(places == _NOT_KEPT, self._table.contains(keys), places != _ABSENT)
        return had

    # A watcher's calls.

    def changing(self, keys: Keys) -> None:
        keys, first = np.ascontiguousarray(keys, np.uint64), self._remembered.num_keys
        if first + len(keys) > self._most:
            raise MemoryLimitError(f"table {self._table.name!r}: a save keeps {first} old rows; wait for its end")
        fresh = self._remembered.add(keys)
        if not len(fresh):
            return
        addresses = self._table._locate(keys[fresh])[0]
        places = self._places[first : first + len(fresh)]
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
        if not self._remembered.watches(bucket):
            return
        self._keep_gathered(bucket)
        for keys, _ in blocks_of(self._table, bucket):
            self.changing(keys)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        for bucket in np.unique(bucket_of(keys, self._table.num_buckets)).tolist():
            self._keep_gathered(bucket)

    # Inside.

    def _keep_gathered(self, bucket: int) -> None:
        if self._remembered.watches(bucket) and bucket not in self._gathered:
            self._gathered[bucket] = self._table.admission.gathered(bucket)

    def _places_of(self, keys: Keys) -> NDArray[np.int64]:
        """_NOT_KEPT where a key's row is as it was."""
        numbers = self._remembered.numbers_of(keys)
        places: NDArray[np.int64] = np.where(numbers >= 0, self._places[np.maximum(numbers, 0)], _NOT_KEPT)
        return places

    def _keys_of(self, bucket: int) -> Iterator[Keys]:
        """Keys that had rows: full ones, early ones, and those that have gone."""
        present: list[list[Keys]] = [[], []]
        for keys, addresses in blocks_of(self._table, bucket):
            present[int(addresses[0] >= index.EARLY)].append(keys[self._places_of(keys) != _ABSENT])
        yield from (np.concatenate(found) for found in present if found)
        numbers = self._remembered.numbers_in(bucket)
        kept = self._remembered.keys[numbers[self._places[numbers] != _ABSENT]]
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
            if len(parts) == 1:
                yield parts[0]
            elif parts:
                yield np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
