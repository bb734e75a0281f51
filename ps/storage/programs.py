"""Users' row functions of psfuncs on a table's rows: update them, read them, fold them into one vector.

Made by a Table for itself. Compiled once for a row layout, whatever the segment and the arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ps.row_code import RowCode
from ps.storage.before import restored
from ps.storage.blame import Inputs, blame, seen_of
from ps.storage.kernels import generate
from ps.storage.reading import blocks_of, decoded
from ps.types import Keys, PushCounts, Rows, Seen, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table

_NO_TOTAL = np.zeros(0)


@dataclass(frozen=True)
class Program:
    """A call of a row function: which of ROLES, on which segment (None: whole rows), with which arguments."""

    code: RowCode
    role: str
    owner: object
    segment: str | None


class Programs:
    """See the file's head. Single-threaded, as its table is."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._modules: dict[str, Any] = {}
        layout = table._layout
        values, state = np.zeros(layout.width, np.float32), np.zeros(layout.state_columns(None)[2], np.float32)
        self._room = (values, state, *table._lone, table._workspace[2])

    def compile(self, code: RowCode, role: str) -> None:
        """Compile now what would be compiled at the first call. Raises RequestError with the user's file and line."""
        if code.digest not in self._modules:
            self._modules[code.digest] = generate.program_of(self._table._layout.kernels, code, role)

    def update_keys(self, program: Program, keys: UniqueKeys, payload: Rows, step: int, seen: Seen) -> PushCounts:
        """update_row on the rows of keys, missing ones made first; a row that is refused is not made. An error leaves
        the table as it was.

        payload: float32 [n, w]. Raises MemoryLimitError before anything is written.
        """
        table, num_keys = self._table, len(keys)
        table.watchers.changing(keys)
        addresses, made = table.new_rows.rows_for(keys, seen, step)
        present = addresses >= 0
        keys, addresses, payload = keys[present], addresses[present], payload[present]
        is_new = np.isin(keys, made) if len(made) else np.zeros(len(keys), np.bool_)
        refused = np.zeros(len(keys), np.bool_)
        try:
            with (
                table.late.complete(keys, addresses, program.segment) as (grown, addresses),
                restored(table._memory[0], table._layout, addresses),
            ):
                counts = self._run(program, keys, addresses, payload=payload, step=step, refused=refused)
        except Exception:
            table.new_rows.take_back(keys[is_new])
            table.created -= len(made)
            raise
        table.late.demote(grown[np.isin(grown, keys[refused])])
        unmade = keys[is_new & refused]
        table.new_rows.take_back(unmade)
        table.created -= len(unmade)
        return table._counted(counts[:3], len(made) - len(unmade), num_keys - len(keys))

    def update_bucket(self, program: Program, bucket: int, step: int, *, write: bool) -> Iterator[PushCounts]:
        """update_row on all rows of a bucket, block by block. write: False only sees whether it raises."""
        for keys, addresses in blocks_of(self._table, bucket, program.segment):
            if write:
                self._table.watchers.changing(keys)
            counts = self._run(program, keys, addresses, step=step, write=write)
            yield self._table._counted(counts[:3] if write else np.zeros(3, np.int64), 0)

    def read_keys(self, program: Program, keys: Keys, out: Rows) -> None:
        """read_row of each key into out, float32 [n, w]; a missing row is as it would be created."""
        self._run(program, keys, self._table._locate(keys)[0], out=out)

    def fold_keys(self, program: Program, keys: Keys, total: NDArray[np.float64]) -> None:
        """fold_row of each key into total, float64 [m], in their order."""
        self._run(program, keys, self._table._locate(keys)[0], total=total)

    def fold_bucket(self, program: Program, bucket: int, total: NDArray[np.float64]) -> None:
        """fold_row of every row of a bucket, in row order."""
        for keys, addresses in blocks_of(self._table, bucket, program.segment):
            self._run(program, keys, addresses, total=total)

    def _run(
        self,
        program: Program,
        keys: Keys,
        addresses: NDArray[np.int64],
        *,
        payload: Rows | None = None,
        out: Rows | None = None,
        total: NDArray[np.float64] = _NO_TOTAL,
        refused: NDArray[np.bool_] | None = None,
        step: int = 0,
        write: bool = True,
    ) -> NDArray[np.int64]:
        """Returns applied, nonfinite, saturated, and the row that was at work last."""
        table, counts, num_keys = self._table, np.zeros(4, np.int64), len(keys)
        self.compile(program.code, program.role)
        place, state_column, state_dim = table._layout.state_columns(program.segment)
        columns = slice(0, table._layout.width) if program.segment is None else table.spec.columns()[program.segment]
        column, width = columns.start, columns.stop - columns.start
        payload = np.empty((num_keys, 0), np.float32) if payload is None else np.ascontiguousarray(payload)
        out = np.empty((num_keys, 0), np.float32) if out is None else out
        refused = np.empty(num_keys, np.bool_) if refused is None else refused
        args = program.code.pack(program.owner)
        try:
            self._modules[program.code.digest].run(
                *table._memory[:3],
                np.ascontiguousarray(keys, np.uint64),
                addresses,
                payload,
                args,
                step,
                *(place, column, width, state_column, state_dim, write, out, total, counts, refused),
                *(table._own_rates, table._hyper, table._streams, *self._room),
            )
        except Exception as error:
            at = int(counts[3])

            def inputs(_: RowCode) -> Iterator[Inputs]:
                values = table.pull(keys[at : at + 1])[0, column : column + width].copy()
                state = np.zeros(state_dim, np.float32)
                if addresses[at] >= 0:
                    state[:] = decoded(table, addresses[at : at + 1], program.segment)[1][0]
                own = {"values": values, "state": state, "payload": payload[at].copy(), "out": out[at].copy()}
                yield {**own, "total": total.copy(), "key": keys[at], "step": step, **seen_of(table, addresses[at])}

            raise blame(error, program.role, [(program.code, program.owner)], inputs) from error
        return counts
