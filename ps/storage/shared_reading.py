"""Reads rows of a table with room of its own for a search: several readers may work at once while nobody writes.

`Table.pull` searches in room that belongs to the table. A reader belongs to one thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels import index
from ps.storage.kernels.build import Compiled
from ps.storage.kernels.generate import spread_of
from ps.storage.spreading import Spread
from ps.storage.table import Table
from ps.types import Keys, Rows


class Reader:
    """Of a table without late segments."""

    def __init__(self, table: Table) -> None:
        assert not table._layout.has_late
        self._table = table
        self._misses = np.zeros(table.num_buckets, np.int64)
        floats = np.zeros(table._layout.scratch_floats, np.float32)
        hashes, addresses = np.zeros(index.CHUNK, np.uint64), np.zeros(index.CHUNK, np.int64)
        self._room = (hashes, addresses, floats, floats.view(np.uint16))
        self._pull_spread: Compiled | None = None
        self._row = np.zeros(table._layout.width, np.float32)
        self._nothing = np.zeros((1, index.COLUMNS), np.int64)  # one bucket, without rows

    def read(self, keys: Keys, out: Rows) -> int:
        """Decoded rows, or initial values, into out, C-contiguous float32 [n, width]; returns how many keys have no
        row.
        """
        table = self._table
        room = (table._bits, table._hyper, table._streams, out, *self._room)
        return int(table._kernels.pull(*table._memory, keys, *room))

    def spread(self, keys: Keys, begin: int, spread: Spread, absent: NDArray[np.int64]) -> int:
        """Rows, or initial values, to where they are wanted, of the keys from place `begin` on; each is in a run.
        Returns how many have no row; the first of absent (int64 [n]) are their places.
        """
        table = self._table
        if self._pull_spread is None:
            self._pull_spread = spread_of(table._layout.kernels)
        return int(
            self._pull_spread(
                *table._memory,
                keys,
                begin,
                table._bits,
                table._hyper,
                table._streams,
                spread.runs,
                spread.segments,
                spread.offsets,
                spread.first,
                spread.number,
                spread.out,
                absent,
                self._row,
                *self._room,
            )
        )

    def absent(self, keys: Keys) -> NDArray[np.int64]:
        """Places of the keys that have no row."""
        table = self._table
        addresses, (words, _, _, buckets) = np.empty(len(keys), np.int64), table._memory
        index.locate(words, buckets, keys, *table._place, addresses, self._misses, *self._room[:2])
        return np.flatnonzero(addresses < 0)

    def initial_values(self, keys: Keys) -> Rows:
        """As Table.initial_values."""
        table, out = self._table, np.empty((len(keys), self._table._layout.width), np.float32)
        memory = (*table._memory[:3], self._nothing)
        table._kernels.pull(*memory, keys, 0, table._hyper, table._streams, out, *self._room)
        return out
