"""Rows for keys that have none: admitted, given room, made, and taken back. Made by a Table for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ps.errors import MemoryLimitError, RequestError
from ps.storage.blame import blame_optimizers
from ps.storage.kernels import changes, index
from ps.storage.kernels.metadata import LAST_SEEN
from ps.types import Floats, Keys, Seen, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table

_NEW = -1  # kind of new rows: the last one


class NewRows:
    """See the file's head. Single-threaded, as its table is."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def surely_fit(self, num_keys: int) -> bool:
        """Whether even all-new keys would fit, so that no row need be looked up before the first is written."""
        table = self._table
        kind = table._layout.kinds[_NEW]
        rows, block_bytes = table.num_rows + num_keys, 256 * kind.block_units
        # Generously: new rows, a sixteenth more in runs, 16 bytes a row for new indexes and directories, and a least
        # size per bucket.
        worst = num_keys * kind.row_bytes + rows * kind.row_bytes // 16 + 16 * rows
        worst += min(num_keys, table.num_buckets) * (2 * block_bytes + 2048)
        limit, buckets = table._buckets.limit_bytes, table._buckets
        return (
            buckets.arena.room_for(worst // 256 + 1)
            and (limit is None or buckets.memory_bytes + worst <= limit)
            and int(buckets.rows.max()) + num_keys <= buckets.max_rows
        )

    def shown(self, keys: UniqueKeys, seen: Seen) -> Floats:
        """float32 [n, 2]: shows and clicks of each key; [0, 2] where the table wants none."""
        if seen.counts is not None:
            if seen.counts.shape != (len(keys), 2):
                raise RequestError(f"table {self._table.name!r}: counts {seen.counts.shape} for {len(keys)} keys")
            return np.ascontiguousarray(seen.counts, np.float32)
        return np.tile(np.array([1, 0], np.float32), (len(keys) if self._table.spec.wants_counts else 0, 1))

    def admitted(self, keys: Keys, absent: NDArray[np.int64], shown: Floats, step: int) -> NDArray[np.int64]:
        """Of the places of keys without a row those that get one, in their order: admitted, and there is room.

        Raises MemoryLimitError when there is none, unless the table refuses then.
        """
        table, chosen = self._table, absent
        if not table.admission.is_open:
            mask = table.admission.admit(keys[absent], shown[absent] if len(shown) else None, step=step)
            chosen = absent[mask]
            table.refused += len(absent) - len(chosen)
        try:
            self.reserve(keys[chosen])
        except MemoryLimitError:
            if table.spec.when_full == "error":
                raise
            table.turned_away += len(chosen)
            chosen = chosen[:0]
        return chosen

    def rows_for(self, keys: UniqueKeys, seen: Seen, step: int) -> tuple[NDArray[np.int64], UniqueKeys]:
        """The rows of keys, made where they are missing and admitted: their addresses, -1 where there is none, and the
        keys of those that were made.
        """
        table = self._table
        absent = np.flatnonzero(table._locate(keys)[0] < 0)
        made = keys[self.admitted(keys, absent, self.shown(keys, seen), step)]
        self.create(made, table._own_rates, seen.event_time)
        table.created += len(made)
        return table._locate(keys)[0], made

    def reserve(self, keys: UniqueKeys, kind: int = _NEW) -> None:
        """Room for the rows of keys that have none. Raises MemoryLimitError."""
        self._table._buckets.reserve(self._table._buckets.count(keys, kind))

    def create(self, keys: UniqueKeys, rates: Floats, event_time: int) -> None:
        """A row of first values and state for each of these keys."""
        table = self._table
        if not len(keys):
            return
        arena = table.arena
        self.reserve(keys)
        addresses = self.append(keys, len(table._layout.kinds) - 1)
        if table.spec.keeps_time:
            arena.words[(addresses & index.PLACE) + LAST_SEEN] = event_time
        rest = (rates, table._hyper, table._streams, table._workspace[2], False)
        try:
            table._kernels.create(arena.floats, arena.halves, keys, addresses, *rest)
        except Exception as error:
            self.take_back(keys)
            raise blame_optimizers(table, error, "init_state", keys, rates) from error

    def append(self, keys: UniqueKeys, kind: int) -> NDArray[np.int64]:
        """Rows of zeros for keys that have none, where there is room; their addresses."""
        table, addresses = self._table, np.empty(len(keys), np.int64)
        rest = (*table._place, kind, addresses, table._workspace[0])
        changes.append(table.arena.words, table._buckets.table, keys, *rest)
        return addresses

    def take_back(self, keys: UniqueKeys) -> None:
        """Remove rows that were just made: the newest first, so that the others keep their order."""
        if len(keys):
            self._table.remove(keys[::-1])
