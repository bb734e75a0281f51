"""The memory of a table: one reserved stretch of address space, given out in extents. Physical pages come when touched.

    extent    consecutive units; a unit is 64 words (256 bytes)
    held      free, its pages still there: what a grown index leaves. Used again first, by rows: giving pages back one
              by one would break up the huge pages around them
    released  free, its whole pages given back to the system: what a dropped bucket leaves
    unit 0    is never given out and stays 0: an empty bucket's index points there

Not thread-safe.
"""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np

from ps.errors import MemoryLimitError

UNIT_WORDS = 64
UNIT_BYTES = 4 * UNIT_WORDS
_FLOOR_BYTES = 64 << 20
_HUGE_PAGES_FROM = 64 << 20
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
        self.resident_units = 1  # in use or held
        self._end = 1  # all units from here on were never used
        self._held: dict[int, list[int]] = {}  # length -> starts
        self._released: dict[int, list[int]] = {}
        self._huge = False

    def room_for(self, units: int) -> bool:
        """Whether extents of so many units in all can be given out."""
        return self._end + units <= self.num_units

    def allocate(self, units: int) -> int:
        """Start of a new extent, contents undefined. The caller has asked `room_for`."""
        for free in (self._held, self._released):
            length = min((length for length, starts in free.items() if starts and length >= units), default=0)
            if length:
                start = free[length].pop()
                if length > units:
                    free.setdefault(length - units, []).append(start + units)
                if free is self._released:
                    self.resident_units += units
                return start
        start = self._end
        if start + units > self.num_units:
            raise MemoryLimitError(f"the {self.num_units * UNIT_BYTES >> 20} MiB reserved for a table are used up")
        self._end += units
        self.resident_units += units
        if not self._huge and self._end * UNIT_BYTES >= _HUGE_PAGES_FROM:
            self._advise_huge_pages()
        return start

    def hold(self, start: int, units: int) -> None:
        """Take an extent back for later use, with its memory."""
        self._held.setdefault(units, []).append(start)

    def release(self, start: int, units: int) -> None:
        """Take an extent back and give its whole pages to the system."""
        self.resident_units -= units
        self._released.setdefault(units, []).append(start)
        first = -(-start * UNIT_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + units) * UNIT_BYTES // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def release_held(self) -> None:
        """Give the pages of held extents to the system."""
        held, self._held = self._held, {}
        for units, starts in held.items():
            for start in starts:
                self.release(start, units)

    def clear(self) -> None:
        """Take everything back."""
        self._map.madvise(mmap.MADV_DONTNEED, 0, self._end * UNIT_BYTES)
        self.resident_units, self._end = 1, 1
        self._held.clear()
        self._released.clear()

    def _advise_huge_pages(self) -> None:
        self._huge = True
        with contextlib.suppress(OSError):  # a kernel without huge pages is only slower
            self._map.madvise(mmap.MADV_HUGEPAGE)
            self._map.madvise(_MADV_COLLAPSE, 0, _HUGE_PAGES_FROM)
