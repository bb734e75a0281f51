"""Room for rows: the blocks, directory and index of every bucket, and when they grow.

Blocks come in runs that belong to one bucket and grow with it (about a thirty-second of its rows, at most 256 KiB), so
growth copies no row and a bucket is freed whole; only less than one block is copied when it grows. An index grows
by 1.15 when it is 82 % full; where in that cycle a bucket stands is staggered over the buckets, so that they do not
all grow in one push. Where there are late segments, a bucket's full rows and its early ones have blocks of their own,
and the index is for both. Not thread-safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError
from ps.storage.arena import UNIT_BYTES, UNIT_WORDS, Arena
from ps.storage.kernels import changes, index
from ps.storage.layout import RowKind, RowLayout
from ps.types import Keys

_FULL = 0.82
GROWTH = 1.15
_LEAST_CAPACITY = 64
_SPARE_ROOM = 0.1  # part of its room that a bucket may have to spare before rows that went give memory back,
_SPARE_INDEX = 0.6  # and how small a new index must be against the old one, to be worth building
_MAX_RUN_BYTES = 256 << 10
FULL, EARLY = 0, 1  # kinds of rows
MAX_ROWS = 1 << 24  # of one bucket: an index entry has 24 bits for the row


@dataclass
class _Growth:
    """What one line of the table of buckets is to get, in units and entries; 0 = nothing."""

    line: int
    run_units: int = 0
    blocks: int = 0
    room: int = 0  # rows that then have memory
    directory: int = 0
    capacity: int = 0

    def units(self) -> int:
        return self.run_units + (self.directory + self.capacity) // UNIT_WORDS


@dataclass
class Buckets:
    """`table`: int64 [lines, 8], the columns of kernels/index.py. Line b has bucket b's index and full rows; where
    there are early rows, line num_buckets + b has those. New rows are of the last num_buckets lines.
    """

    name: str
    layout: RowLayout
    num_buckets: int
    limit_bytes: int | None
    arena: Arena = field(init=False)
    table: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        # Freed extents may not fit later requests: address space costs nothing, so there is more of it than memory.
        self.arena = Arena(8 * self.limit_bytes if self.limit_bytes else None)
        self.table = np.zeros((len(self.layout.kinds) * self.num_buckets, index.COLUMNS), np.int64)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 [num_buckets], of all kinds."""
        return self._by_bucket(self.table[:, index.ROWS])

    def num_rows_of(self, bucket: int, kind: int) -> int:
        """Rows of one kind; 0 of one that the table does not have."""
        return int(self.table[bucket + kind * self.num_buckets, index.ROWS]) if kind < len(self.layout.kinds) else 0

    @property
    def max_rows(self) -> int:
        """Of one bucket: a bit of the number in an index entry may say the kind."""
        return MAX_ROWS >> self.layout.has_late

    @property
    def memory_bytes(self) -> int:
        return self.arena.resident_units * UNIT_BYTES + self.table.nbytes

    def count(self, keys: Keys, kind: int) -> NDArray[np.int64]:
        """int64 [lines]: how many of the keys belong to each line of a kind; -1: of new rows."""
        counts = np.zeros((len(self.layout.kinds), self.num_buckets), np.int64)
        index.count_by_bucket(keys, self.num_buckets.bit_length() - 1, counts[kind])
        return counts.reshape(-1)

    def expect(self, num_rows: int) -> None:
        """About so many rows are to come, and there are none: see Arena.expect."""
        index_bytes = int(num_rows / _FULL) * self.arena.words.itemsize
        self.arena.expect(num_rows * self.layout.kinds[FULL].row_bytes, index_bytes)

    def reserve(self, new_rows: NDArray[np.int64]) -> None:
        """Make room for so many more rows of each line, fewer where it is negative. Raises MemoryLimitError, and
        changes nothing, if there is none.
        """
        rows = self.table[:, index.ROWS] + new_rows
        short, both = (rows > self.table[:, index.ROOM]) & (new_rows > 0), self._by_bucket(rows)
        full_index = both > self.table[: self.num_buckets, index.CAPACITY] * _FULL
        short[: self.num_buckets] |= full_index & (self._by_bucket(new_rows) > 0)
        lines = np.flatnonzero(short).tolist()
        growths = [self._plan(line, int(rows[line]), int(both[line % self.num_buckets])) for line in lines]
        self._make_room(growths, int(new_rows[new_rows > 0].sum()))

    def reserve_in(self, bucket: int, kind: int, new_rows: int, expected: int = 0) -> None:
        """As `reserve`, for rows of one kind in one bucket. expected: how many it is to have in the end, about: an
        index that has to grow is made for them, or for four times what there is then if that is less.
        """
        line, rows = bucket + kind * self.num_buckets, self.table[bucket :: self.num_buckets, index.ROWS]
        wanted, both = int(rows[kind]) + new_rows, int(rows.sum()) + new_rows
        lines = [line] if wanted > self.table[line, index.ROOM] else []
        if both > self.table[bucket, index.CAPACITY] * _FULL:
            lines += [bucket] if bucket not in lines else []
            both = max(both, min(expected, 4 * both, self.max_rows))
        growths = [self._plan(each, wanted if each == line else int(rows[0]), both) for each in lines]
        self._make_room(growths, new_rows)

    def _make_room(self, growths: list[_Growth], new_rows: int) -> None:
        """Raises MemoryLimitError, and changes nothing, if there is none."""
        if not growths:
            return
        units = sum(growth.units() for growth in growths)
        after = self.memory_bytes + units * UNIT_BYTES
        if (self.limit_bytes is not None and after > self.limit_bytes) or not self.arena.room_for(units):
            limit = self.limit_bytes or self.arena.num_units * UNIT_BYTES
            raise MemoryLimitError(
                f"table {self.name!r}: {new_rows} new rows need {after >> 20} MiB, "
                f"the limit is {limit >> 20} MiB; "
                "raise memory_limit_bytes, add shards, or admit fewer keys. Nothing was written"
            )
        for growth in growths:
            self._grow(growth)

    def drop(self, bucket: int) -> None:
        """Free everything of a bucket."""
        for line in range(bucket, len(self.table), self.num_buckets):
            entry = self.table[line]
            self._release_blocks(line, 0)
            for column, length in ((index.INDEX, index.CAPACITY), (index.DIRECTORY, index.DIRECTORY_CAPACITY)):
                if entry[length]:
                    self.arena.release(int(entry[column]) // UNIT_WORDS, int(entry[length]) // UNIT_WORDS)
            entry[:] = 0

    def shrink(self, bucket: int) -> None:
        """Free the blocks behind a bucket's last rows, and change an index that is mostly empty for a smaller one."""
        lines = range(bucket, len(self.table), self.num_buckets)
        rows = int(self.table[lines, index.ROWS].sum())
        if rows == 0:
            self.drop(bucket)
            return
        has_spare = [self._shrink_line(line) for line in lines]
        if not any(has_spare):
            return
        entry, capacity = self.table[bucket], self._capacity(bucket, rows)
        if capacity < _SPARE_INDEX * entry[index.CAPACITY]:
            old, length = int(entry[index.INDEX]), int(entry[index.CAPACITY])
            self._build_index(bucket, capacity)
            self.arena.release(old // UNIT_WORDS, length // UNIT_WORDS)

    def _shrink_line(self, line: int) -> bool:
        """Free the blocks behind a line's last row; whether it had many to spare."""
        entry, kind = self.table[line], self._kind(line)
        rows, room = int(entry[index.ROWS]), int(entry[index.ROOM])
        if rows > room - _SPARE_ROOM * room or room < kind.block_rows:
            return False
        self._release_blocks(line, -(-rows // kind.block_rows))
        return True

    def _release_blocks(self, line: int, kept: int) -> None:
        """Free a line's blocks but for the first `kept`, run by run."""
        entry, kind = self.table[line], self._kind(line)
        room, first = int(entry[index.ROOM]), int(entry[index.DIRECTORY])
        if 0 < room < kind.block_rows:
            self.arena.release(int(self.arena.words[first]), _units_of_first_rows(kind, room))
        elif room > kept * kind.block_rows:
            starts = self.arena.words[first + kept : first + room // kind.block_rows].astype(np.int64)
            for run in np.split(starts, np.flatnonzero(np.diff(starts) != kind.block_units) + 1):
                self.arena.release(int(run[0]), len(run) * kind.block_units)
        entry[index.ROOM] = kept * kind.block_rows

    def clear(self) -> None:
        """Free everything."""
        self.arena.clear()
        self.table[:] = 0

    def _by_bucket(self, of_lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums over the kinds."""
        sums: NDArray[np.int64] = of_lines.reshape(-1, self.num_buckets).sum(axis=0)
        return sums

    def _kind(self, line: int) -> RowKind:
        return self.layout.kinds[line // self.num_buckets]

    def _plan(self, line: int, rows: int, both: int) -> _Growth:
        """rows: that the line is to hold; both: that its bucket is to hold."""
        bucket = line % self.num_buckets
        if both > self.max_rows:
            raise MemoryLimitError(
                f"table {self.name!r}: bucket {bucket} would hold {both} rows, more than {self.max_rows}; "
                "use more buckets"
            )
        entry, kind, growth = self.table[line], self._kind(line), _Growth(line)
        room = int(entry[index.ROOM])
        if rows > room:
            self._plan_run(growth, kind, rows, kept=room // kind.block_rows)
            if growth.blocks + room // kind.block_rows > entry[index.DIRECTORY_CAPACITY]:
                blocks = growth.blocks + room // kind.block_rows
                growth.directory = UNIT_WORDS * -(-blocks * 5 // (4 * UNIT_WORDS))
        if line == bucket and both > entry[index.CAPACITY] * _FULL:
            growth.capacity = self._capacity(bucket, both)
        return growth

    def _plan_run(self, growth: _Growth, kind: RowKind, rows: int, kept: int) -> None:
        """A run of whole blocks behind the `kept` ones; or, for the first rows, a sixteenth or a quarter of a block."""
        if rows <= kind.block_rows // 4:
            growth.room = max(1, kind.block_rows // (4 if rows > kind.block_rows // 16 else 16))
            growth.blocks, growth.run_units = 1, _units_of_first_rows(kind, growth.room)
            return
        run_bytes = min(rows * kind.row_bytes // 32, _MAX_RUN_BYTES)
        growth.blocks = max(-(-rows // kind.block_rows) - kept, run_bytes // (kind.block_units * UNIT_BYTES))
        growth.run_units = growth.blocks * kind.block_units
        growth.room = (kept + growth.blocks) * kind.block_rows

    def _capacity(self, bucket: int, rows: int) -> int:
        """The least entry of the bucket's series least * 1.15 ** (bucket / num_buckets + k) that is not full, in whole
        units.
        """
        phase = bucket / self.num_buckets
        steps: int = math.ceil(math.log(rows / (_FULL * _LEAST_CAPACITY), GROWTH) - phase)
        wanted = max(_LEAST_CAPACITY * GROWTH ** (phase + max(steps, 0)), rows / _FULL)
        return UNIT_WORDS * int(-(-wanted // UNIT_WORDS))

    def _grow(self, growth: _Growth) -> None:
        entry, words, arena = self.table[growth.line], self.arena.words, self.arena
        kind = self._kind(growth.line)
        if growth.directory:
            old, length = int(entry[index.DIRECTORY]), int(entry[index.DIRECTORY_CAPACITY])
            new = arena.allocate(growth.directory // UNIT_WORDS, lasting=False) * UNIT_WORDS
            words[new : new + length] = words[old : old + length]
            if length:
                arena.release(old // UNIT_WORDS, length // UNIT_WORDS)
            entry[index.DIRECTORY], entry[index.DIRECTORY_CAPACITY] = new, growth.directory
        if growth.blocks:
            lasting = growth.room >= kind.block_rows  # the first few rows move when there are more
            start, room = arena.allocate(growth.run_units, lasting=lasting), int(entry[index.ROOM])
            if 0 < room < kind.block_rows:
                old, units = int(words[entry[index.DIRECTORY]]), _units_of_first_rows(kind, room)
                length = units * UNIT_WORDS
                target, source = start * UNIT_WORDS, old * UNIT_WORDS
                words[target : target + length] = words[source : source + length]
                arena.release(old, units)
            first = int(entry[index.DIRECTORY] + entry[index.ROOM] // kind.block_rows)
            blocks = start + kind.block_units * np.arange(growth.blocks)
            words[first : first + growth.blocks] = blocks.astype(np.uint32)
            entry[index.ROOM] = growth.room
        if growth.capacity:
            old, length = int(entry[index.INDEX]), int(entry[index.CAPACITY])
            self._build_index(growth.line, growth.capacity)
            if length:
                arena.release(old // UNIT_WORDS, length // UNIT_WORDS)

    def _build_index(self, bucket: int, capacity: int) -> None:
        """A new index of so many entries; the memory of the old one is the caller's."""
        entry, bits = self.table[bucket], self.num_buckets.bit_length() - 1
        entry[index.INDEX] = self.arena.allocate(capacity // UNIT_WORDS, lasting=False) * UNIT_WORDS
        entry[index.CAPACITY], entry[index.ROW_BITS] = capacity, capacity.bit_length() + self.layout.has_late
        changes.rebuild(self.arena.words, self.table, bucket, bits, self.layout.kernels.shape)


def _units_of_first_rows(kind: RowKind, room: int) -> int:
    """Arena units of a bucket's first rows, which are fewer than a block."""
    return -(-room * kind.stride // UNIT_WORDS)
