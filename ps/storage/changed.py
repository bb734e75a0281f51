"""Which rows of a table have changed or gone since a mark, by key. Single-threaded, with its table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.storage.remembered import Remembered, most_of, reserved
from ps.storage.table import Table
from ps.types import Floats, Keys

_BYTES_PER_KEY = 32
_PART = 4  # one row in so many may change; then it is as well to read them all
_LEAST_KEYS = 1 << 16  # that are remembered however few rows there are


class Changed:
    """Marks when it is made; ps.storage.watching.Watcher of its table until `freeze`.

    It is sure of a bucket as long as no more keys than a quarter of the table's rows changed, and the bucket was not
    dropped. Takes 20 to 40 bytes for each key, those that were not admitted too. buckets: int64 [k], those it watches.
    """

    def __init__(self, table: Table, buckets: NDArray[np.int64]) -> None:
        self._table, self._limit = table, _LEAST_KEYS
        self._most = most_of(_BYTES_PER_KEY)
        self._remembered: Remembered | None = Remembered(table.num_buckets, buckets, self._most)
        self._had_row = reserved(np.bool_, self._most)  # when the key was first changed, so at the mark
        table.watchers.add(self)

    @property
    def memory_bytes(self) -> int:
        """Of the keys."""
        return 0 if self._remembered is None else self._remembered.memory_bytes + self._remembered.num_keys

    @property
    def is_sure(self) -> NDArray[np.bool_]:
        """bool [num_buckets]: of which buckets all that changed is known."""
        return np.zeros(self._table.num_buckets, np.bool_) if self._remembered is None else self._remembered.watched

    def keys_of(self, bucket: int) -> tuple[Keys, NDArray[np.bool_]]:
        """What changed in a bucket that it is sure of: unique keys, and which of them had a row at the mark."""
        assert self._remembered is not None
        numbers = self._remembered.numbers_in(bucket)
        return self._remembered.keys[numbers], self._had_row[numbers]

    def freeze(self) -> None:
        """See no more changes."""
        self._table.watchers.remove(self)

    def forget(self) -> None:
        """Be sure of no bucket any more, and give the memory back."""
        if self._remembered is not None:
            self._remembered.close()
            self._remembered = None
            del self._had_row

    # A watcher's calls.

    def changing(self, keys: Keys) -> None:
        if self._remembered is None:
            return
        first = self._remembered.num_keys
        if first + len(keys) > self._limit:
            self._limit = min(self._most, max(_LEAST_KEYS, self._table.num_rows // _PART))
        if first + len(keys) > self._limit:
            self.forget()
            return
        keys = np.ascontiguousarray(keys, np.uint64)
        fresh = keys[self._remembered.add(keys)]
        self._had_row[first : first + len(fresh)] = self._table.contains(fresh)

    def removing(self, keys: Keys) -> None:
        self.changing(keys)

    def dropping(self, bucket: int) -> None:
        if self._remembered is not None:
            self._remembered.ignore(bucket)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        """What keys without rows gather is no row."""
