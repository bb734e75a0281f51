"""Which line of a user's row function raised, for the error that the caller gets.

Compiled code that raises names its line. A bounds check does not: then the function is called on the same row in plain
Python, where the same index raises too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ps.errors import RequestError, WeirError
from ps.keys import slot_of
from ps.row_code import RowCode, place_of
from ps.storage.kernels.index import PLACE
from ps.storage.kernels.metadata import read_metadata
from ps.storage.kernels.row_functions import failed_at
from ps.storage.reading import decoded
from ps.types import Floats, Gradients, Keys

if TYPE_CHECKING:
    from ps.storage.table import Table

Inputs: TypeAlias = Mapping[str, Any]  # what a row function may name; copies, for it may write them


def blame(
    error: Exception, role: str, codes: Iterable[tuple[RowCode, object]], inputs: Callable[[RowCode], Iterable[Inputs]]
) -> Exception:
    """The error for the caller, from what a kernel raised; `error` itself where no user's function is at work.

    codes: the row functions that ran, with their owners; inputs: the rows that one of them may have raised on.
    """
    ours = [(code, owner) for code, owner in codes if code.users and role in code.functions]
    if isinstance(error, WeirError) or not ours:
        return error
    for code, _ in ours:
        where = failed_at(error, code)
        if where is not None:
            return _told(code, where, error)
    for code, owner in ours:
        for given in inputs(code):
            try:
                _call(code, owner, role, given)
            except Exception as again:
                return _told(code, failed_at(again, code) or place_of(code.functions[role]), again)
    code = ours[0][0]
    return _told(code, place_of(code.functions[role]), error)


def blame_optimizers(
    table: Table,
    error: Exception,
    role: str,
    keys: Keys,
    rates: Floats,
    step: int = 0,
    gradients: Gradients | None = None,
) -> Exception:
    """`blame` for the optimizers of a table. keys: the rows that one may have raised on; gradients: one of each."""
    parts = list(zip(table._layout.kernels.segments, table.spec.segments.items(), rates))

    def inputs(code: RowCode) -> Iterator[Inputs]:
        part, (name, _), rate = next(each for each in parts if each[0].code is code)
        columns = slice(part.column, part.column + part.dim)
        rows, addresses = table.pull(keys)[:, columns], table._locate(keys)[0]
        for i in range(len(keys)):
            state = np.zeros(part.state_dim, np.float32)
            if addresses[i] >= 0 and role != "init_state":
                state[:] = decoded(table, addresses[i : i + 1], name)[1][0]
            given = {"values": rows[i].copy(), "state": state, "learning_rate": rate, "key": keys[i], "step": step}
            given |= seen_of(table, addresses[i])
            yield given if gradients is None else {**given, "gradient": gradients[i, columns].copy()}

    return blame(error, role, [(part.code, segment.optimizer) for part, (_, segment), _ in parts], inputs)


def seen_of(table: Table, address: int) -> Inputs:
    """What the row at an address remembers; zeros where it is -1."""
    last_seen, counts = np.zeros(1, np.int64), np.zeros((1, 2), np.float32)
    if address >= 0 and table.spec.keeps_time:
        at, keeps = np.array([address & PLACE]), table.spec.keeps_counts
        read_metadata(table.arena.words, table.arena.floats, at, 0, 1.0, keeps, last_seen, counts)
    return {"shows": counts[0, 0], "clicks": counts[0, 1], "last_seen": int(last_seen[0])}


def _call(code: RowCode, owner: object, role: str, given: Inputs) -> None:
    key = given["key"]
    inputs = {**given, "key": np.uint64(key), "slot": int(slot_of(np.array([key], np.uint64))[0])}
    with np.errstate(all="ignore"):
        code.functions[role](code.as_seen(owner), *(inputs[name] for name in code.names(role)))


def _told(code: RowCode, where: str, error: Exception) -> RequestError:
    return RequestError(
        f"{code.what} failed at {where}: {type(error).__name__}: {error}; at this shard the table is as it was"
    )
