"""Aggregates: one float64 vector per bucket at the shards, merged in bucket order at the client.

So the result has the same bits however many shards there are. Over given keys, a missing row counts with its initial
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.psfunc import Answer, Kind, Psfunc, Running, Task, bucket_slices, columns_of, register
from ps.spec import TableSpec
from ps.types import Keys, Rows

Partial: TypeAlias = NDArray[np.float64]  # [m]; m is the aggregate's own, one for the six below


@dataclass(frozen=True)
class Aggregate(Psfunc):
    """Reads rows block by block. A user's aggregate sets `start`, `reduce`, `combine` and, if need be, `finish`.

    segment: the segment to read, None for the whole row.
    """

    kind: ClassVar[Kind] = "get"
    segment: str | None = field(default=None, kw_only=True)

    def start(self) -> Partial:
        """float64 [m]: the value of no rows at all."""
        return np.zeros(1)

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        """float64 [m] of a block of rows; values: float32 [k, dim], keys: uint64 [k]."""
        raise NotImplementedError(f"aggregate {self.name!r} needs a `reduce`")

    def combine(self, left: Partial, right: Partial) -> Partial:
        """Two partial results as one; by default their sum."""
        return left + right

    def finish(self, total: Partial) -> Any:
        """The result from the combination of all buckets; by default a float."""
        return float(total[0])

    def check(self, spec: TableSpec) -> None:
        columns_of(spec, self.segment)

    def apply(self, task: Task) -> Running:
        partials: dict[int, Partial] = {}
        for bucket, blocks in self._blocks(task):
            partial = None
            # A bucket is read in one piece: updates may run while this is suspended, and then blocks move.
            for values, keys in blocks:
                reduced = np.asarray(self.reduce(values, keys), np.float64).reshape(-1)
                partial = self.combine(self.start() if partial is None else partial, reduced)
            if partial is not None:
                partials[bucket] = partial
            yield
        return self.answer(partials)

    def answer(self, partials: Mapping[int, Partial]) -> Answer:
        """A shard's answer, from the partial result of each bucket."""
        return Answer(
            values={
                "buckets": np.array(list(partials), "<i4").tobytes(),
                "partials": np.concatenate([np.empty(0), *partials.values()]).astype("<f8").tobytes(),
            }
        )

    def _blocks(self, task: Task) -> Iterator[tuple[int, Iterator[tuple[Rows, Keys]]]]:
        """(bucket, its blocks of values and keys), in bucket order."""
        if task.keys is None or task.key_buckets is None:
            for bucket in task.buckets.tolist():
                yield bucket, ((block.values, block.keys) for block in task.table.scan(bucket, self.segment))
            return
        columns = columns_of(task.table.spec, self.segment)
        for bucket, part in bucket_slices(task.key_buckets):
            keys = task.keys[part]
            yield bucket, iter([(np.ascontiguousarray(task.table.pull(keys)[:, columns]), keys)])

    def merge(self, answers: Sequence[Answer]) -> Any:
        pairs: list[tuple[int, Partial]] = []
        for answer in answers:
            buckets = np.frombuffer(answer.values["buckets"], "<i4")
            partials = np.frombuffer(answer.values["partials"], "<f8")
            pairs += zip(buckets.tolist(), np.split(partials, max(1, len(buckets))), strict=False)
        total = self.start()
        for _, partial in sorted(pairs, key=lambda pair: pair[0]):
            total = self.combine(total, partial)
        return self.finish(total)


@register("sum")
@dataclass(frozen=True)
class Sum(Aggregate):
    """The sum of all elements."""

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        return np.array([np.sum(values, dtype=np.float64)])


@register("min")
@dataclass(frozen=True)
class Min(Aggregate):
    """The smallest element; infinity where there is no row."""

    def start(self) -> Partial:
        return np.full(1, np.inf)

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        return np.array([values.min()], np.float64)

    def combine(self, left: Partial, right: Partial) -> Partial:
        return np.minimum(left, right)


@register("max")
@dataclass(frozen=True)
class Max(Aggregate):
    """The greatest element; minus infinity where there is no row."""

    def start(self) -> Partial:
        return np.full(1, -np.inf)

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        return np.array([values.max()], np.float64)

    def combine(self, left: Partial, right: Partial) -> Partial:
        return np.maximum(left, right)


@register("nrm2")
@dataclass(frozen=True)
class Nrm2(Aggregate):
    """The L2 norm of all elements as one vector."""

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        return np.array([np.sum(np.square(values, dtype=np.float64))])

    def finish(self, total: Partial) -> float:
        return float(np.sqrt(total[0]))


@register("nnz")
@dataclass(frozen=True)
class Nnz(Aggregate):
    """How many elements are not zero."""

    def reduce(self, values: Rows, keys: Keys) -> Partial:
        return np.array([np.count_nonzero(values)], np.float64)

    def finish(self, total: Partial) -> int:
        return int(total[0])


@register("size")
@dataclass(frozen=True)
class Size(Psfunc):
    """How many rows exist; over given keys, how many of these have a row."""

    kind: ClassVar[Kind] = "get"

    def apply(self, task: Task) -> Answer:
        if task.keys is not None:
            return Answer(values=int(np.count_nonzero(task.table.contains(task.keys))))
        return Answer(values=int(task.table.rows_per_bucket[task.buckets].sum()))

    def merge(self, answers: Sequence[Answer]) -> int:
        return sum(answer.values for answer in answers)
