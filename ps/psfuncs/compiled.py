"""Psfuncs whose row function, a method in plain Python, is compiled into the shard's loop over rows.

    UpdateRow.update_row(self, values, state, payload, key, slot, step)    changes a row in place
    ReadRow.read_row(self, values, state, out, key, slot)                  fills a result of each key
    FoldRows.fold_row(self, values, state, total, key, slot)               adds a row to one vector

A method names what it wants of these, in any order; `self` has the psfunc's numbers and lists of numbers, and nothing
else of it. values: float32 [dim] of the segment, or of the whole row; state: float32, its optimizer's; payload, out:
float32 [payload_dim], [out_dim]; total: float64 [m]; key: uint64; slot, step: int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ps.errors import RequestError
from ps.psfunc import Answer, Counts, Kind, Psfunc, Running, Task, bucket_slices, columns_of, lookup, names
from ps.psfuncs.aggregates import Aggregate, Partial
from ps.row_code import RowCode, annotations_of, row_code
from ps.spec import TableSpec
from ps.types import Rows

if TYPE_CHECKING:
    from ps.storage.programs import Program

_CHUNK_KEYS = 4096


@dataclass(frozen=True)
class RowPsfunc(Psfunc):
    """What the three have in common. segment: None for whole rows, the segments side by side."""

    role: ClassVar[str]
    _code: ClassVar[RowCode]  # of the class itself; a module that is loaded again makes a new class
    segment: str | None = field(default=None, kw_only=True)

    @classmethod
    def code(cls) -> RowCode:
        """Raises RequestError naming file and line of what cannot be compiled."""
        found: RowCode | None = cls.__dict__.get("_code")
        if found is None:
            function = getattr(cls, cls.role, None)
            if function is None:
                raise RequestError(f"psfunc {cls.name!r} needs a method {cls.role}")
            found = row_code(f"psfunc {cls.name!r}", {cls.role: function}, annotations_of(cls), users=True)
            cls._code = found
        return found

    def check(self, spec: TableSpec) -> None:
        columns_of(spec, self.segment)

    def program(self) -> Program:
        from ps.storage.programs import Program

        return Program(self.code(), self.role, self, self.segment)


@dataclass(frozen=True)
class UpdateRow(RowPsfunc):
    """Changes rows in place. Without `state` among the arguments of `update_row` the state stays, except where an
    optimizer's depends on the values and follows them (FTRL).

    payload_dim: floats of a payload row, where `update_row` names `payload`; None: as many as the values. Given keys
    create missing rows. A row whose new numbers are not finite keeps the old ones and is counted. If the function
    raises, no row of this shard has changed: over given keys rows are put back, over a table it runs twice, first
    without storing anything.
    """

    kind: ClassVar[Kind] = "update"
    role: ClassVar[str] = "update_row"
    payload_dim: ClassVar[int | None] = None

    def __init_subclass__(cls) -> None:
        function = getattr(cls, "update_row", None)
        code = getattr(getattr(function, "py_func", function), "__code__", None)
        if code is not None and "payload" in code.co_varnames[: code.co_argcount]:
            cls.takes_payload, cls.takes_keys = True, "always"

    def payload_width(self, spec: TableSpec) -> int:
        columns = columns_of(spec, self.segment)
        return columns.stop - columns.start if self.payload_dim is None else self.payload_dim

    def apply(self, task: Task) -> Running:
        program, programs = self.program(), task.table.programs
        if task.keys is not None:
            payload = np.empty((len(task.keys), 0), np.float32) if task.payload is None else task.payload
            done = programs.update_keys(program, task.keys, payload, task.step, task.seen)
            return Answer(counts=Counts(**done._asdict()))
        counts = Counts()
        for write in (False, True):
            for bucket in task.buckets.tolist():
                for done in programs.update_bucket(program, bucket, task.step, write=write):
                    counts += Counts(applied=done.applied, nonfinite=done.nonfinite)
                    yield
        return Answer(counts=counts)


@dataclass(frozen=True)
class ReadRow(RowPsfunc):
    """Gives float32 [n, out_dim], a row for each of the call's keys. A missing row is as it would be created."""

    kind: ClassVar[Kind] = "get"
    role: ClassVar[str] = "read_row"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "always"
    gives_rows: ClassVar[bool] = True
    out_dim: ClassVar[int] = 1

    def row_width(self, spec: TableSpec) -> int:
        return self.out_dim

    def apply(self, task: Task) -> Running:
        assert task.keys is not None
        program, out = self.program(), np.zeros((len(task.keys), self.out_dim), np.float32)
        for start in range(0, len(out), _CHUNK_KEYS):
            part = slice(start, start + _CHUNK_KEYS)
            task.table.programs.read_keys(program, task.keys[part], out[part])
            yield
        return Answer(rows=out)

    def merge(self, answers: Sequence[Answer]) -> Rows:
        present = [(answer.rows, answer.positions) for answer in answers if answer.rows is not None]
        out = np.empty((sum(len(rows) for rows, _ in present), self.out_dim), np.float32)
        for rows, positions in present:
            out[slice(None) if positions is None else positions] = rows
        return out


@dataclass(frozen=True)
class FoldRows(RowPsfunc, Aggregate):
    """An aggregate by rows: `fold_row` adds a row to `total`, which begins as `start()` in every bucket; `combine` and
    `finish` are Aggregate's.
    """

    kind: ClassVar[Kind] = "get"
    role: ClassVar[str] = "fold_row"

    def apply(self, task: Task) -> Running:
        program, programs = self.program(), task.table.programs
        partials: dict[int, Partial] = {}
        if task.keys is not None and task.key_buckets is not None:
            for bucket, part in bucket_slices(task.key_buckets):
                partials[bucket] = np.array(self.start(), np.float64)
                programs.fold_keys(program, task.keys[part], partials[bucket])
                yield
            return self.answer(partials)
        rows = task.table.rows_per_bucket
        for bucket in task.buckets.tolist():
            if rows[bucket]:
                partials[bucket] = np.array(self.start(), np.float64)
                programs.fold_bucket(program, bucket, partials[bucket])
            yield
        return self.answer(partials)


def row_psfuncs(modules: Sequence[str]) -> list[type[RowPsfunc]]:
    """The registered row psfuncs that these modules, or modules inside them, define."""
    registered = [lookup(name) for name in names()]
    return [
        cls
        for cls in registered
        if issubclass(cls, RowPsfunc) and any(f"{cls.__module__}.".startswith(f"{module}.") for module in modules)
    ]
