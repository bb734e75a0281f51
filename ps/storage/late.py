"""Late segments: early rows, which do not have them yet, are made full, and full ones early again.

A row begins early. The push that brings its score makes it full before it is applied, `Table.promote` does so at will,
and so does a keyed write that names a late segment. Made by a Table for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError
from ps.storage.blame import blame_optimizers
from ps.storage.buckets import EARLY, FULL
from ps.storage.kernels import changes, index
from ps.types import Floats, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table

_END = np.iinfo(np.int64).max  # no row stands there: behind the last one


class Grown(NamedTuple):
    """Rows that were made full, and where each stood among the early rows of its bucket (int64 [n])."""

    keys: UniqueKeys
    places: NDArray[np.int64]


class LateSegments:
    """See the file's head. Single-threaded, as its table is."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.unreachable_score = table._score.copy()  # as layout.score_of, for a push in which no row grows any more
        self.unreachable_score[3] = np.nan

    def grow(self, keys: UniqueKeys, rates: Floats) -> Grown:
        """Make the early rows of these keys full, their late segments as initial. Keys with a full row or none stay.

        Raises MemoryLimitError, or RequestError where a user's init_state fails; then nothing has changed.
        """
        table = self._table
        early = keys[table._locate(keys)[0] >= index.EARLY]
        if not len(early):
            return Grown(early, np.empty(0, np.int64))
        table._buckets.reserve(self._changes(early, FULL))
        grown, addresses = self._promote(early)
        arena, rest = table._buckets.arena, (rates, table._hyper, table._streams, table._workspace[2])
        try:
            table._kernels.create(arena.floats, arena.halves, early, addresses, *rest, True)
        except Exception as error:
            self.take_back(grown)
            raise blame_optimizers(table, error, "init_state", early, rates) from error
        return grown

    def ripen(self, keys: UniqueKeys, rates: Floats) -> Grown:
        """`grow` the rows of keys that reach the score. Where there is no room all of them stay early, counted as
        turned away, until they are pushed again.
        """
        try:
            return self.grow(keys, rates)
        except MemoryLimitError:
            self._table.turned_away += len(keys)
            return Grown(keys[:0], np.empty(0, np.int64))

    def take_back(self, grown: Grown) -> None:
        """Undo `grow`, to the order of rows; rows that came since are gone again."""
        self._demote(grown.keys[::-1], grown.places[::-1])

    def demote(self, keys: UniqueKeys) -> None:
        """Make the full rows of these keys, all of which have been grown since the last reservation, early again."""
        self._demote(keys, np.full(len(keys), _END))

    @contextmanager
    def complete(
        self, keys: UniqueKeys, addresses: NDArray[np.int64], segment: str | None
    ) -> Iterator[tuple[UniqueKeys, NDArray[np.int64]]]:
        """Inside, the rows of these keys (at these addresses) have the segment: they are full where it is late. Gives
        those that grew for it, which are early again when the body raises, and the addresses of all.
        """
        table = self._table
        if segment is None or not table._layout.segment(segment)[1].late:
            yield keys[:0], addresses
            return
        grown = self.grow(keys, table._own_rates)
        try:
            yield grown.keys, table._locate(keys)[0]
        except Exception:
            self.take_back(grown)
            raise

    def make_room(self, keys: UniqueKeys, addresses: NDArray[np.int64], kind: int) -> None:
        """Have a row of this kind for each key: room for the missing ones (address -1), present ones changed.

        A row that grows has zeros behind its early part. Raises MemoryLimitError, and nothing has changed.
        """
        table = self._table
        changing = keys[(addresses >= 0) & ((addresses >= index.EARLY) != (kind == EARLY))]
        missing = table._buckets.count(keys[addresses < 0], kind)
        table._buckets.reserve(missing + self._changes(changing, kind))
        if kind == FULL:
            self._promote(changing)
        else:
            self.demote(changing)

    def _changes(self, keys: UniqueKeys, kind: int) -> NDArray[np.int64]:
        """Rows that each line of the buckets gains and loses when the rows of these keys become of this kind."""
        buckets = self._table._buckets
        return buckets.count(keys, kind) - buckets.count(keys, EARLY if kind == FULL else FULL)

    def _promote(self, keys: UniqueKeys) -> tuple[Grown, NDArray[np.int64]]:
        words, _, _, buckets = self._table._memory
        addresses, places = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        changes.promote(words, buckets, keys, *self._table._place, addresses, places)
        return Grown(keys, places), addresses

    def _demote(self, keys: UniqueKeys, places: NDArray[np.int64]) -> None:
        words, _, _, buckets = self._table._memory
        keys, places = np.ascontiguousarray(keys), np.ascontiguousarray(places)
        changes.demote(words, buckets, keys, *self._table._place, places)
