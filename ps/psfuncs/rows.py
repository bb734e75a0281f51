"""pull, push, delete, clear, evict and sweep: the psfuncs of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ps.errors import RequestError
from ps.psfunc import Answer, Counts, Kind, Psfunc, Running, Task, register
from ps.spec import TableSpec
from ps.storage.eviction import Evictor

_CHUNK_KEYS = 16_384  # rows of a pull between two chances to interrupt it


@register("pull")
@dataclass(frozen=True)
class Pull(Psfunc):
    """Read rows. A row that does not exist reads as its initial value; nothing is written."""

    kind: ClassVar[Kind] = "get"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "always"
    gives_rows: ClassVar[bool] = True

    def apply(self, task: Task) -> Running:
        assert task.keys is not None
        rows = np.empty((len(task.keys), task.table.spec.width), np.float32) if task.out is None else task.out
        for start in range(0, len(rows), _CHUNK_KEYS):
            part = slice(start, start + _CHUNK_KEYS)
            task.table.pull(task.keys[part], out=rows[part])
            yield
        return Answer(rows=rows)

    def merge(self, answers: Sequence[Answer]) -> Any:
        """float32 [n, width]: the rows in the order of the call's keys."""
        present = [(answer.rows, answer.positions) for answer in answers if answer.rows is not None]
        if not present:
            return np.empty((0, 0), np.float32)
        total = sum(len(rows) for rows, _ in present)
        out = np.empty((total, present[0][0].shape[1]), np.float32)
        for rows, positions in present:
            out[slice(None) if positions is None else positions] = rows
        return out


@register("push")
@dataclass(frozen=True)
class Push(Psfunc):
    """Apply gradients by each segment's optimizer; creates missing rows."""

    kind: ClassVar[Kind] = "update"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "always"
    takes_payload: ClassVar[bool] = True
    takes_learning_rates: ClassVar[bool] = True

    def apply(self, task: Task) -> Answer:
        assert task.keys is not None
        assert task.payload is not None
        pushed = task.table.push(
            task.keys, task.payload, step=task.step, learning_rates=task.learning_rates, seen=task.seen
        )
        return Answer(counts=Counts(**pushed._asdict()))


@register("delete")
@dataclass(frozen=True)
class Delete(Psfunc):
    """Remove rows; keys without a row are ignored."""

    kind: ClassVar[Kind] = "update"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "always"

    def apply(self, task: Task) -> Answer:
        assert task.keys is not None
        return Answer(counts=Counts(applied=task.table.delete(task.keys)))


@register("clear")
@dataclass(frozen=True)
class Clear(Psfunc):
    """Remove all rows."""

    kind: ClassVar[Kind] = "update"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "never"

    def apply(self, task: Task) -> Running:
        applied = 0
        rows = task.table.rows_per_bucket
        for bucket in task.buckets.tolist():
            applied += int(rows[bucket])
            task.table.drop_bucket(bucket)
            yield
        return Answer(counts=Counts(applied=applied))


@register("evict")
@dataclass(frozen=True)
class Evict(Psfunc):
    """Remove the rows that the table's `eviction` names at the update's event time; `applied` counts them.

    It runs between other requests, so what is pushed meanwhile may be looked at or not.
    """

    kind: ClassVar[Kind] = "update"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "never"
    lets_updates_between: ClassVar[bool] = True

    def check(self, spec: TableSpec) -> None:
        if spec.eviction is None:
            raise RequestError("the table has no `eviction`, which says what rows to evict")

    def apply(self, task: Task) -> Running:
        applied, evictor = 0, Evictor(task.table)
        for bucket in task.buckets.tolist():
            for gone in evictor.evict(bucket, now=task.seen.event_time):
                applied += gone
                yield
        return Answer(counts=Counts(applied=applied))


@register("sweep")
@dataclass(frozen=True)
class Sweep(Psfunc):
    """The table-wide optimizer step of `sweep: true` segments. A client appends it to its push: both are one update."""

    kind: ClassVar[Kind] = "update"
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "never"
    takes_learning_rates: ClassVar[bool] = True

    def apply(self, task: Task) -> Running:
        applied = 0
        # A user's optimizer that raises does so in the first round, which stores nothing.
        for write in (False, True) if task.table.may_raise else (True,):
            for bucket in task.buckets.tolist():
                rows = task.table.sweep(bucket, step=task.step, learning_rates=task.learning_rates, write=write)
                applied += rows if write else 0
                yield
        return Answer(counts=Counts(applied=applied))
