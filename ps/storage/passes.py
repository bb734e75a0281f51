"""One push, as passes of a table's kernel: over all keys, over rows made for them, over rows that have grown.

A row changes in one pass only. A key without a row waits until it has one, and an early row that reaches the score with
this push until it has its late segments. So what a row becomes does not depend on what else the push carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ps.storage.blame import blame_optimizers
from ps.storage.late import Grown
from ps.types import Floats, Gradients, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table

_AT, _REMEMBERED, _RIPE = 3, 4, 5  # of the counts of a push


class Passes:
    """Of one push. Single-threaded, as its table is."""

    def __init__(
        self,
        table: Table,
        keys: UniqueKeys,
        gradients: Gradients,
        shown: Floats,
        *,
        rates: Floats,
        step: int,
        event_time: int,
    ) -> None:
        """shown: as NewRows.shown; the rest as Table.push has checked it."""
        self._table, self._keys, self._gradients, self._shown = table, keys, gradients, shown
        self._rates, self._step, self._event_time = rates, step, event_time
        self._waiting, self._counts = np.empty(len(keys), np.int64), np.zeros(6, np.int64)
        self._at_work = (keys, gradients)  # of the latest pass
        self._fresh, self._grown = keys[:0], Grown(keys[:0], np.empty(0, np.int64))

    def apply(self) -> tuple[NDArray[np.int64], int, int]:
        """Rows applied and not finite and elements saturated (int64 [3]); rows made; keys that got no row.

        Raises MemoryLimitError before any row is written, RequestError where a user's optimizer fails; then nothing has
        changed.
        """
        table, chosen = self._table, None
        if not table.new_rows.surely_fit(len(self._keys)):
            chosen = self._admitted(np.flatnonzero(table._locate(self._keys)[0] < 0))
        try:
            num_absent = self._run(chosen)
        except Exception as error:
            if not table.may_raise:
                raise
            self._undo()
            (keys, gradients), at = self._at_work, slice(self._counts[_AT], self._counts[_AT] + 1)
            raise blame_optimizers(table, error, "update", keys[at], self._rates, self._step, gradients[at]) from error
        return self._counts[:3], len(self._fresh), num_absent - len(self._fresh)

    def _run(self, chosen: NDArray[np.int64] | None) -> int:
        """chosen: places of the keys that get a row; None: not known yet, but there is room. Returns how many have
        none.
        """
        table, keys = self._table, self._keys
        absent, ripe = self._pass(slice(None), table._score)
        if len(absent):
            chosen = self._admitted(absent) if chosen is None else chosen
            table.new_rows.create(keys[chosen], self._rates, self._event_time)
            self._fresh = keys[chosen]
            _, ripe_at_once = self._pass(chosen, table._score)
            ripe = np.concatenate([ripe, chosen[ripe_at_once]])
        if len(ripe):
            self._grown = table.late.ripen(keys[ripe], self._rates)
            self._pass(ripe, table.late.unreachable_score)
        return len(absent)

    def _pass(self, part: slice | NDArray[np.int64], score: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
        """Update the rows of a part of the keys. Places, in that part, of the keys that wait: those without a row, and
        early rows that reach the score.
        """
        table, waiting, counts = self._table, self._waiting, self._counts
        keys, gradients = self._at_work = self._keys[part], self._gradients[part]
        shown = self._shown[part] if len(self._shown) else self._shown
        counts[_RIPE] = 0
        num_absent = table._kernels.push(
            *(*table._memory, keys, gradients, table._bits, self._rates, table._hyper, table._streams, self._step),
            *(waiting, counts, *table._before.room(len(self._keys)), shown, self._event_time, score),
            *table._workspace,
        )
        return waiting[:num_absent].copy(), waiting[len(waiting) - counts[_RIPE] :][::-1].copy()

    def _admitted(self, absent: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._table.new_rows.admitted(self._keys, absent, self._shown, self._step)

    def _undo(self) -> None:
        """Rows that grew are early again, rows that were made are gone, and the others are what they were."""
        table = self._table
        table.late.take_back(self._grown)
        table.new_rows.take_back(self._fresh)
        table._before.put_back(table, int(self._counts[_REMEMBERED]))
