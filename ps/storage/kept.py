"""A table as it was at one instant, read bucket by bucket while it goes on changing.

Nothing is copied at the mark. Before a row of a bucket that was not read yet changes or goes, its image is kept; of a
key that had no row it is kept that it had none. What is kept of a bucket is dropped when the bucket has been read, so
it takes as much memory as the rows that changed meanwhile, twice at most in indexes and blocks. Single-threaded, with
its table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ps.keys import bucket_of
from ps.lifetime import Always
from ps.storage.kernels import index
from ps.storage.reading import BLOCK_ROWS, blocks_of, images_of
from ps.storage.table import Table
from ps.types import Floats, Images, Keys

_NO_KEYS: Keys = np.empty(0, np.uint64)


class Kept:
    """Marks when it is made; ps.storage.watching.Watcher of its table until `close`.

    buckets: int64 [k], those that will be read, each once.
    """

    def __init__(self, table: Table, buckets: NDArray[np.int64]) -> None:
        self._table = table
        self._is_open = np.zeros(table.num_buckets, np.bool_)  # to be read yet
        self._is_open[buckets] = True
        self._old: Table | None = None  # images of before, where they differ or are gone
        self._absent: Table | None = None  # keys that had no row
        self._gathered: dict[int, NDArray[np.uint16]] = {}  # by bucket, what admission had
        table.watchers.add(self)

    @property
    def memory_bytes(self) -> int:
        """Of what is kept."""
        rows = sum(table.memory_bytes for table in (self._old, self._absent) if table is not None)
        return rows + sum(sketch.nbytes for sketch in self._gathered.values())

    def close(self) -> None:
        """Keep nothing any more."""
        self._table.watchers.remove(self)
        self._old = self._absent = None

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
                yield from self._images(keys[start : start + BLOCK_ROWS])
        self._is_open[bucket] = False
        self._gathered.pop(bucket, None)
        for table in (self._old, self._absent):
            if table is not None:
                table.drop_bucket(bucket)

    # A watcher's calls.

    def changing(self, keys: Keys) -> None:
        fresh = self._not_kept(np.ascontiguousarray(keys, np.uint64))
        if not len(fresh):
            return
        if self._old is None or self._absent is None:
            self._old, self._absent = self._room(), self._room()
        for found, images in images_of(self._table, fresh):
            if len(found):
                self._old.write_images(found, images)
        none = fresh[~self._table.contains(fresh)]
        if len(none):
            self._absent.write_images(none, np.zeros((len(none), 4 * self._smallest()), np.uint8))

    def removing(self, keys: Keys) -> None:
        self.changing(np.unique(keys))

    def dropping(self, bucket: int) -> None:
        if not self._is_open[bucket]:
            return
        self._keep_gathered(bucket)
        for keys, _ in blocks_of(self._table, bucket):
            self.changing(keys)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        for bucket in np.unique(bucket_of(keys, self._table.num_buckets)).tolist():
            self._keep_gathered(bucket)

    # Inside.

    def _keep_gathered(self, bucket: int) -> None:
        if self._is_open[bucket] and bucket not in self._gathered:
            self._gathered[bucket] = self._table.admission.gathered(bucket)

    def _not_kept(self, keys: Keys) -> Keys:
        keys = keys[self._is_open[bucket_of(keys, self._table.num_buckets)]]
        for table in (self._old, self._absent):
            if table is not None and len(keys):
                keys = keys[~table.contains(keys)]
        return keys

    def _keys_of(self, bucket: int) -> Iterator[Keys]:
        """Keys that had rows: full ones, early ones, and those that have gone."""
        early: dict[bool, list[Keys]] = {False: [], True: []}
        for keys, addresses in blocks_of(self._table, bucket):
            present = keys if self._absent is None else keys[~self._absent.contains(keys)]
            early[bool(addresses[0] >= index.EARLY)].append(present)
        for found in early.values():
            yield np.concatenate(found) if found else _NO_KEYS
        if self._old is not None:
            kept = [keys for keys, _ in blocks_of(self._old, bucket)]
            yield from (keys[~self._table.contains(keys)] for keys in kept)

    def _images(self, keys: Keys) -> Iterator[tuple[Keys, Images]]:
        """Of each key once: its kept image, or the present one; full rows, then early ones."""
        sources = [(self._table, keys)]
        if self._old is not None:
            is_old = self._old.contains(keys)
            sources = [(self._table, keys[~is_old]), (self._old, keys[is_old])]
        found = [images_of(table, some) for table, some in sources]
        for kind in range(2):
            parts = [pair[kind] for pair in found if len(pair[kind][0])]
            if parts:
                yield np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _room(self) -> Table:
        """An empty table of the same rows. Its kernels are there already."""
        spec = self._table.spec.model_copy(update={"admission": Always(), "memory_limit_bytes": None})
        return Table(self._table.name, spec, seed=0, num_buckets=self._table.num_buckets)

    def _smallest(self) -> int:
        return self._table._layout.kinds[-1].image_words
