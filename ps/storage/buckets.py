"""Room for rows: the blocks, directory and index of every bucket, and when they grow.

Blocks come in runs that belong to one bucket and grow with it (about a thirty-second of its rows, at most 256 KiB), so
growth copies no row and a bucket is freed whole; only less than one block is copied when it grows. An index grows
by 1.2 when it is 4/5 full; where in that cycle a bucket stands is staggered over the buckets, so that they do not
all grow in one push. Not thread-safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError
from ps.storage.arena import UNIT_BYTES, UNIT_WORDS, Arena
from ps.storage.kernels import index
from ps.storage.layout import RowLayout

_FULL = 0.8
GROWTH = 1.2
_LEAST_CAPACITY = 64
_SPARE_ROOM = 0.1  # part of its room that a bucket may have to spare before rows that went give memory back,
_SPARE_INDEX = 0.6  # and how small a new index must be against the old one, to be worth building
_MAX_RUN_BYTES = 256 << 10
MAX_ROWS = 1 << 24  # of one bucket: an index entry has 24 bits for the row


@dataclass
class _Growth:
    """What one bucket is to get, in units and entries; 0 = nothing."""

    bucket: int
    run_units: int = 0
    blocks: int = 0
    room: int = 0  # rows that then have memory
    directory: int = 0
    capacity: int = 0

    def units(self) -> int:
        return self.run_units + (self.directory + self.capacity) // UNIT_WORDS


@dataclass
class Buckets:
    """`table`: int64 [num_buckets, 8], the columns of kernels/index.py."""

    name: str
    layout: RowLayout
    num_buckets: int
    limit_bytes: int | None
    arena: Arena = field(init=False)
    table: NDArray[np.int64] = field(init=False)
    _runs: dict[int, list[tuple[int, int]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Freed extents may not fit later requests: address space costs nothing, so there is more of it than memory.
        self.arena = Arena(2 * self.limit_bytes if self.limit_bytes else None)
        self.table = np.zeros((self.num_buckets, index.COLUMNS), np.int64)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 [num_buckets], a view."""
        return self.table[:, index.ROWS]

    @property
    def memory_bytes(self) -> int:
        return self.arena.used_units * UNIT_BYTES + self.table.nbytes

    def reserve(self, new_rows: NDArray[np.int64]) -> None:
        """Make room for new_rows [num_buckets] more rows. Raises MemoryLimitError, and changes nothing, if there is
        none.
        """
        rows, capacity, room = self.rows + new_rows, self.table[:, index.CAPACITY], self.table[:, index.ROOM]
        short = (rows > room) | (rows > capacity * _FULL)
        growths = [self._plan(int(b), int(rows[b])) for b in np.flatnonzero(short & (new_rows > 0))]
        units = sum(growth.units() for growth in growths)
        after = self.memory_bytes + units * UNIT_BYTES
        if (self.limit_bytes is not None and after > self.limit_bytes) or not self.arena.room_for(units):
            limit = self.limit_bytes or self.arena.num_units * UNIT_BYTES
            raise MemoryLimitError(
                f"table {self.name!r}: {int(new_rows.sum())} new rows need {after >> 20} MiB, "
                f"the limit is {limit >> 20} MiB; "
                "raise memory_limit_bytes, add shards, or admit fewer keys. Nothing was written"
            )
        for growth in growths:
            self._grow(growth)

    def drop(self, bucket: int) -> None:
        """Free everything of a bucket."""
        entry = self.table[bucket]
        for start, units in self._runs.pop(bucket, ()):
            self.arena.release(start, units)
        for column, length in ((index.INDEX, index.CAPACITY), (index.DIRECTORY, index.DIRECTORY_CAPACITY)):
            if entry[length]:
                self.arena.release(int(entry[column]) // UNIT_WORDS, int(entry[length]) // UNIT_WORDS)
        entry[:] = 0

    def shrink(self, bucket: int) -> None:
        """Free the blocks behind a bucket's last row, and change an index that is mostly empty for a smaller one."""
        entry, layout = self.table[bucket], self.layout
        rows, room = int(entry[index.ROWS]), int(entry[index.ROOM])
        if rows == 0:
            self.drop(bucket)
            return
        if rows > room - _SPARE_ROOM * room or room < layout.block_rows:
            return
        runs, surplus = self._runs[bucket], room // layout.block_rows - -(-rows // layout.block_rows)
        entry[index.ROOM] -= surplus * layout.block_rows
        while surplus:
            start, units = runs.pop()
            kept = max(0, units - surplus * layout.block_units)
            if kept:
                runs.append((start, kept))
            self.arena.release(start + kept, units - kept)
            surplus -= (units - kept) // layout.block_units
        capacity = self._capacity(bucket, rows)
        if capacity < _SPARE_INDEX * entry[index.CAPACITY]:
            old, length = int(entry[index.INDEX]), int(entry[index.CAPACITY])
            self._build_index(bucket, capacity)
            self.arena.release(old // UNIT_WORDS, length // UNIT_WORDS)

    def clear(self) -> None:
        """Free everything."""
        self.arena.clear()
        self._runs.clear()
        self.table[:] = 0

    def _plan(self, bucket: int, rows: int) -> _Growth:
        if rows > MAX_ROWS:
            raise MemoryLimitError(
                f"table {self.name!r}: bucket {bucket} would hold {rows} rows, more than {MAX_ROWS}; use more buckets"
            )
        entry, layout, growth = self.table[bucket], self.layout, _Growth(bucket)
        room = int(entry[index.ROOM])
        if rows > room:
            self._plan_run(growth, rows, kept=room // layout.block_rows)
            if growth.blocks + room // layout.block_rows > entry[index.DIRECTORY_CAPACITY]:
                blocks = growth.blocks + room // layout.block_rows
                growth.directory = UNIT_WORDS * -(-blocks * 5 // (4 * UNIT_WORDS))
        if rows > entry[index.CAPACITY] * _FULL:
            growth.capacity = self._capacity(bucket, rows)
        return growth

    def _plan_run(self, growth: _Growth, rows: int, kept: int) -> None:
        """A run of whole blocks behind the `kept` ones; or, for the first rows, a sixteenth or a quarter of a block."""
        layout = self.layout
        if rows <= layout.block_rows // 4:
            growth.room = max(1, layout.block_rows // (4 if rows > layout.block_rows // 16 else 16))
            growth.blocks, growth.run_units = 1, -(-growth.room * layout.kernels.stride // UNIT_WORDS)
            return
        run_bytes = min(rows * layout.row_bytes // 32, _MAX_RUN_BYTES)
        growth.blocks = max(-(-rows // layout.block_rows) - kept, run_bytes // (layout.block_units * UNIT_BYTES))
        growth.run_units = growth.blocks * layout.block_units
        growth.room = (kept + growth.blocks) * layout.block_rows

    def _capacity(self, bucket: int, rows: int) -> int:
        """The least entry of the bucket's series least * 1.2 ** (bucket / num_buckets + k) that is not full, in whole
        units.
        """
        phase = bucket / self.num_buckets
        steps: int = math.ceil(math.log(rows / (_FULL * _LEAST_CAPACITY), GROWTH) - phase)
        wanted = max(_LEAST_CAPACITY * GROWTH ** (phase + max(steps, 0)), rows / _FULL)
        return UNIT_WORDS * int(-(-wanted // UNIT_WORDS))

    def _grow(self, growth: _Growth) -> None:
        entry, words, arena = self.table[growth.bucket], self.arena.words, self.arena
        if growth.directory:
            old, length = int(entry[index.DIRECTORY]), int(entry[index.DIRECTORY_CAPACITY])
            new = arena.allocate(growth.directory // UNIT_WORDS, lasting=False) * UNIT_WORDS
            words[new : new + length] = words[old : old + length]
            if length:
                arena.release(old // UNIT_WORDS, length // UNIT_WORDS)
            entry[index.DIRECTORY], entry[index.DIRECTORY_CAPACITY] = new, growth.directory
        if growth.blocks:
            lasting = growth.room >= self.layout.block_rows  # the first few rows move when there are more
            start, runs = arena.allocate(growth.run_units, lasting=lasting), self._runs.setdefault(growth.bucket, [])
            if 0 < entry[index.ROOM] < self.layout.block_rows:
                [(old, units)] = runs
                length = units * UNIT_WORDS
                target, source = start * UNIT_WORDS, old * UNIT_WORDS
                words[target : target + length] = words[source : source + length]
                arena.release(old, units)
                runs.clear()
            runs.append((start, growth.run_units))
            first = int(entry[index.DIRECTORY] + entry[index.ROOM] // self.layout.block_rows)
            blocks = start + self.layout.block_units * np.arange(growth.blocks)
            words[first : first + growth.blocks] = blocks.astype(np.uint32)
            entry[index.ROOM] = growth.room
        if growth.capacity:
            old, length = int(entry[index.INDEX]), int(entry[index.CAPACITY])
            self._build_index(growth.bucket, growth.capacity)
            if length:
                arena.release(old // UNIT_WORDS, length // UNIT_WORDS)

    def _build_index(self, bucket: int, capacity: int) -> None:
        """A new index of so many entries; the memory of the old one is the caller's."""
        entry, layout, bits = self.table[bucket], self.layout.kernels, self.num_buckets.bit_length() - 1
        entry[index.INDEX] = self.arena.allocate(capacity // UNIT_WORDS, lasting=False) * UNIT_WORDS
        entry[index.CAPACITY], entry[index.ROW_BITS] = capacity, capacity.bit_length()
        index.rebuild(self.arena.words, self.table, bucket, bits, layout.block_shift, layout.stride)
