"""The memory of a table: one reserved stretch of address space, given out in extents. Physical pages come when touched.

    extent    consecutive units; a unit is 64 words (256 bytes)
    rows      extents from the bottom up: they last
    indexes   extents from the top down, with directories and the first few rows of buckets: a bucket that grows gets a
              new one, and the old one goes. As all buckets grow, what is in use is the youngest part of this end, and
              what went is one stretch behind it, so few huge pages are split
    free      its whole pages given back to the system; neighbours are one. What it has of pages that are partly in use
              stays in memory: resident_units counts it
    unit 0    is never given out and stays 0: an empty bucket's index points there

Not thread-safe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from bisect import bisect_left, insort

import numpy as np

from ps.errors import MemoryLimitError

UNIT_WORDS = 64
UNIT_BYTES = 4 * UNIT_WORDS
_FLOOR_BYTES = 64 << 20
_HUGE_ROWS_FROM, _HUGE_INDEXES_FROM = 64 << 20, 24 << 20  # bytes
_COLLAPSED_AT_ONCE, _COLLAPSED_EVERY = 8 << 20, 1 << 20  # bytes: so much as rows grow by so much; the rest waits
_MAP_NORESERVE = 0x4000
_MADV_COLLAPSE = 25  # Linux 6.1; makes huge pages of what was touched before


class Arena:
    """`words`, `floats`, `halves`: uint32, float32 and uint16 views of the same memory. Offsets count units."""

    def __init__(self, reserve_bytes: int | None = None) -> None:
        """Reserves `reserve_bytes` of address space (default: twice the physical memory), or half as often as it
        takes.
        """
        size = reserve_bytes or 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        size = max(size, _FLOOR_BYTES)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        while True:
            try:
                self._map = mmap.mmap(-1, size - size % mmap.PAGESIZE, flags=flags)
                break
            except OSError as error:
                if size // 2 < _FLOOR_BYTES:
                    raise MemoryLimitError(
                        f"cannot reserve {size >> 20} MiB of address space for a table ({error.strerror}); "
                        "raise the address-space limit (ulimit -v)"
                    ) from error
                size //= 2
        self.words = np.frombuffer(self._map, np.uint32)
        self.floats = self.words.view(np.float32)
        self.halves = self.words.view(np.uint16)
        self.num_units = len(self.words) // UNIT_WORDS
        self._begin()

    def _begin(self) -> None:
        self.used_units = 1
        self._bottom, self._top = 1, self.num_units  # what lies between was never used, or is free again
        self._free_rows, self._free_indexes = _Free(), _Free()
        self._huge_rows = self._huge_indexes = False
        self._collapsed, self._next_collapse = 0, _HUGE_ROWS_FROM  # bytes, from the bottom

    @property
    def resident_units(self) -> int:
        """Units in use, and free ones on pages that cannot be given back."""
        return self.used_units + self._free_rows.kept_units + self._free_indexes.kept_units

    def room_for(self, units: int) -> bool:
        """Whether extents of so many units in all can be given out."""
        return self._bottom + units <= self._top

    def allocate(self, units: int, *, lasting: bool = True) -> int:
        """Start of a new extent, contents undefined. The caller has asked `room_for`."""
        # An index in a hole would lie in small pages: the huge ones around it were split when its part was given back.
        avoids_holes = self._huge_indexes and 2 * (self._top - self._bottom - units) > self.num_units
        start = self._free_rows.take(units) if lasting else None if avoids_holes else self._free_indexes.take(units)
        if start is None:
            if self._bottom + units > self._top:
                raise MemoryLimitError(f"the {self.num_units * UNIT_BYTES >> 20} MiB reserved for a table are used up")
            if lasting:
                start, self._bottom = self._bottom, self._bottom + units
            else:
                start = self._top = self._top - units
        self.used_units += units
        if not self._huge_rows and self._bottom * UNIT_BYTES >= _HUGE_ROWS_FROM:
            self._make_rows_huge()
        if self._collapsed < _HUGE_ROWS_FROM and self._bottom * UNIT_BYTES >= self._next_collapse:
            self._collapse()
        if not self._huge_indexes and (self.num_units - self._top) * UNIT_BYTES >= _HUGE_INDEXES_FROM:
            self._make_indexes_huge()
        return start

    def release(self, start: int, units: int) -> None:
        """Take an extent back and give its pages to the system."""
        self.used_units -= units
        is_row, end = start < self._bottom, start + units
        free = self._free_rows if is_row else self._free_indexes
        first, last = free.give(start, end)
        # Pages that are free as a whole now; those inside `first` to `last` but outside `start` to `end` were before.
        low = max(_page_from(first), _page_of(start))
        high = min(_page_of(last), _page_from(end))
        if is_row and last == self._bottom:
            free.take(last - first, first)
            self._bottom, high = first, min(_page_from(last), _page_of(self._top))
        elif not is_row and first == self._top:
            free.take(last - first, first)
            self._top, low = last, max(_page_of(first), _page_from(self._bottom))
        if high > low:
            self._map.madvise(mmap.MADV_DONTNEED, low * mmap.PAGESIZE, (high - low) * mmap.PAGESIZE)

    def expect(self, row_bytes: int, index_bytes: int) -> None:
        """About so many bytes of rows and indexes are to come, and there are none: with huge pages from the first one
        on, where they pay, none need be made of small ones later, and none stay small.
        """
        if row_bytes >= _HUGE_ROWS_FROM and not self._huge_rows:
            self._collapsed = _HUGE_ROWS_FROM
            self._make_rows_huge()
        if index_bytes >= _HUGE_INDEXES_FROM and not self._huge_indexes:
            self._make_indexes_huge()

    def clear(self) -> None:
        """Take everything back."""
        self._map.madvise(mmap.MADV_DONTNEED, 0, _page_from(self._bottom) * mmap.PAGESIZE)
        top = _page_of(self._top) * mmap.PAGESIZE
        if top < len(self._map):
            self._map.madvise(mmap.MADV_DONTNEED, top, len(self._map) - top)
        self._begin()

    def _make_rows_huge(self) -> None:
        self._huge_rows = True
        self._advise_huge_pages(0, len(self._map) // 2)

    def _make_indexes_huge(self) -> None:
        self._huge_indexes = True
        self._advise_huge_pages(len(self._map) // 2, len(self._map) - len(self._map) // 2)

    def _advise_huge_pages(self, start: int, length: int) -> None:
        """For what of a part of the memory is touched from now on."""
        page = mmap.PAGESIZE
        with contextlib.suppress(OSError):  # a kernel without huge pages is only slower
            self._map.madvise(mmap.MADV_HUGEPAGE, start // page * page, length // page * page)

    def _collapse(self) -> None:
        """Huge pages for the next piece of the rows that came before the advice. It copies them, at about a millisecond
        a megabyte: no request is to wait for all.
        """
        with contextlib.suppress(OSError):
            self._map.madvise(_MADV_COLLAPSE, self._collapsed, _COLLAPSED_AT_ONCE)
        self._collapsed += _COLLAPSED_AT_ONCE
        self._next_collapse = self._bottom * UNIT_BYTES + _COLLAPSED_EVERY


def _page_of(unit: int) -> int:
    """The page that a unit begins in."""
    return unit * UNIT_BYTES // mmap.PAGESIZE


def _page_from(unit: int) -> int:
    """The first page that begins at a unit or behind."""
    return -(-unit * UNIT_BYTES // mmap.PAGESIZE)


class _Free:
    """Free extents, [start, end), neighbours merged; the least that fits is used first. kept_units: those of their
    units that share a page with what is no part of the extent.
    """

    def __init__(self) -> None:
        self.kept_units = 0
        self._ends: dict[int, int] = {}  # start -> end
        self._starts: dict[int, int] = {}  # end -> start
        self._by_length: list[tuple[int, int]] = []  # (length, start), ascending

    def give(self, start: int, end: int) -> tuple[int, int]:
        """Add an extent; the free extent that it is part of now."""
        before, after = self._starts.get(start), self._ends.get(end)
        if before is not None:
            self._remove(before, start)
            start = before
        if after is not None:
            self._remove(end, after)
            end = after
        self._add(start, end)
        return start, end

    def take(self, units: int, start: int | None = None) -> int | None:
        """The start of so many units, no longer free; of the extent at `start`, or of the least that has them."""
        place = bisect_left(self._by_length, (units, -1 if start is None else start))
        if place == len(self._by_length):
            return None
        length, start = self._by_length[place]
        self._remove(start, start + length)
        if length > units:
            self._add(start + units, start + length)
        return start

    def _add(self, start: int, end: int) -> None:
        self._ends[start], self._starts[end] = end, start
        self.kept_units += _units_beside_whole_pages(start, end)
        insort(self._by_length, (end - start, start))

    def _remove(self, start: int, end: int) -> None:
        del self._ends[start], self._starts[end]
        self.kept_units -= _units_beside_whole_pages(start, end)
        del self._by_length[bisect_left(self._by_length, (end - start, start))]


def _units_beside_whole_pages(start: int, end: int) -> int:
    return end - start - max(0, _page_of(end) - _page_from(start)) * mmap.PAGESIZE // UNIT_BYTES
