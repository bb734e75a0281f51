"""What has changed in a table and is not published yet: keys, each once, and buckets that are to come whole.

Rows are read when they are published, so a key that changed many times is published as it then is. Where more keys wait
than a million and a quarter of the rows, all buckets come whole instead: that bounds the memory. Single-threaded, with
its table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.keys import bucket_of
from ps.storage.remembered import Remembered, most_of
from ps.storage.table import Table
from ps.types import Floats, Keys

_BYTES_PER_KEY = 32
_PART = 4  # one row in so many may wait
_LEAST_KEYS = 1 << 20  # that may wait however few rows there are; more than a window usually has
_MUCH_MEMORY = 64 << 20  # of a set of keys: it is given back, and not kept for the next keys


class Taken(NamedTuple):
    """Unique keys whose rows may have been set; keys that may have gone, those twice that went twice."""

    changed: Keys
    removed: Keys


class Pending:
    """ps.storage.watching.Watcher of its table until `close`. Counters, so far: collected, keys and buckets told of;
    num_saved, keys that changed again in their window.
    """

    def __init__(self, table: Table, happened: Callable[[bool], None]) -> None:
        """happened: called for every change, given whether buckets are to come whole. None is owned, at first."""
        self.collected = self.num_saved = 0
        self._table, self._happened = table, happened
        self._is_owned = np.zeros(table.num_buckets, np.bool_)
        self._is_whole = np.zeros(table.num_buckets, np.bool_)
        self._changed, self._spare = self._empty(), self._empty()
        self._removed: list[Keys] = []
        self._num_removed = 0
        table.watchers.add(self)

    @property
    def num_keys(self) -> int:
        """That wait."""
        return self._changed.num_keys + self._num_removed

    @property
    def num_whole(self) -> int:
        """Buckets that are to come whole."""
        return int(np.count_nonzero(self._is_whole))

    def own(self, is_owned: NDArray[np.bool_]) -> None:
        """bool [num_buckets]: from now on those count; new ones come whole."""
        fresh = is_owned & ~self._is_owned
        self._is_owned = is_owned.copy()
        self._is_whole &= is_owned
        self._want_whole(fresh)

    def owned(self, keys: Keys) -> Keys:
        """Those of the keys that count now."""
        found: Keys = keys[self._is_owned[bucket_of(keys, self._table.num_buckets)]]
        return found

    def want_all(self) -> None:
        """All buckets come whole."""
        self._want_whole(self._is_owned)
        self._forget_keys()

    def take(self) -> Taken:
        """What waits, but for buckets that come whole. From here on it waits no more."""
        taken, self._changed = self._changed, self._spare
        removed = np.concatenate(self._removed) if self._removed else np.empty(0, np.uint64)
        self._removed, self._num_removed = [], 0
        keys = taken.keys[: taken.num_keys].copy()
        self._spare = self._emptied(taken)
        self._watch()
        return Taken(self._wanted(keys), self._wanted(removed))

    def take_whole(self) -> int | None:
        """A bucket that is to come whole, and is not any more; None where there is none."""
        if not self._is_whole.any():
            return None
        bucket = int(np.argmax(self._is_whole))
        self._is_whole[bucket] = False
        self._changed.watch(bucket)
        return bucket

    def close(self) -> None:
        """See no more changes."""
        self._table.watchers.remove(self)

    # A watcher's calls.

    def changing(self, keys: Keys) -> None:
        self.collected += len(keys)
        self._make_room(len(keys))
        self.num_saved += len(keys) - len(self._changed.add(np.ascontiguousarray(keys, np.uint64)))
        self._happened(False)

    def removing(self, keys: Keys) -> None:
        keys = self._wanted(np.array(keys, np.uint64))  # a copy: they may lie in memory that a client shares
        self.collected += len(keys)
        self._make_room(len(keys))
        self._removed.append(keys)
        self._num_removed += len(keys)
        self._happened(False)

    def dropping(self, bucket: int) -> None:
        if self._is_owned[bucket]:
            self.collected += 1
            self._is_whole[bucket] = True
            self._changed.ignore(bucket)
            self._happened(True)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        """What keys without rows gather is no row."""

    # Inside.

    def _make_room(self, num_keys: int) -> None:
        if self.num_keys + num_keys > max(_LEAST_KEYS, self._table.num_rows // _PART):
            self.want_all()

    def _want_whole(self, buckets: NDArray[np.bool_]) -> None:
        if buckets.any():
            self._is_whole |= buckets
            self._happened(True)
        self._watch()

    def _watch(self) -> None:
        """Remember keys of buckets that are owned and do not come whole."""
        wanted, watched = self._is_owned & ~self._is_whole, self._changed.watched
        for bucket in np.flatnonzero(wanted & ~watched).tolist():
            self._changed.watch(bucket)
        for bucket in np.flatnonzero(watched & ~wanted).tolist():
            self._changed.ignore(bucket)

    def _wanted(self, keys: Keys) -> Keys:
        wanted: Keys = keys[(self._is_owned & ~self._is_whole)[bucket_of(keys, self._table.num_buckets)]]
        return wanted

    def _forget_keys(self) -> None:
        self._changed = self._emptied(self._changed)
        self._removed, self._num_removed = [], 0
        self._watch()

    def _emptied(self, keys: Remembered) -> Remembered:
        if keys.memory_bytes > _MUCH_MEMORY:
            keys.close()
            return self._empty()
        keys.clear()
        return keys

    def _empty(self) -> Remembered:
        return Remembered(self._table.num_buckets, np.empty(0, np.int64), most_of(_BYTES_PER_KEY))
