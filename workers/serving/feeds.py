"""The rows that a tower reads in one run: a float32 array a segment, [candidates, fields, dim], end to end in memory,
so that the rows of a table are written to all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.spec import TableSpec
from ps.storage.spreading import Spread
from ps.types import Floats

_KEPT_PLANS = 1024  # runs of so many different sizes: arithmetic that each of them would repeat


@dataclass(frozen=True, slots=True)
class _Share:
    """What a table's rows give to a run, as Spread has it."""

    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Of a run of one size: where each input begins, in all of them, and the share of each table."""

    bases: tuple[int, ...]
    num_floats: int
    shares: Mapping[str, _Share]


class FeedLayout:
    """Immutable. tables: serving specs; table_fields: the keyed fields of each; segments: those of each input."""

    def __init__(
        self,
        tables: Mapping[str, TableSpec],
        table_fields: Mapping[str, Sequence[str]],
        segments: Mapping[str, Sequence[str]],
    ) -> None:
        dims = {name: each.dim for spec in tables.values() for name, each in spec.segments.items()}
        self.shapes = {segment: (len(fields), dims[segment]) for segment, fields in segments.items()}
        self._lines = np.array([num_fields * dim for num_fields, dim in self.shapes.values()], np.int64)
        # Of each table its share of a run of no size, and which of the inputs its segments are.
        self._tables = {table: self._table(spec, table_fields[table], segments) for table, spec in tables.items()}
        self._plans: dict[int, _Plan] = {}

    def _table(
        self, spec: TableSpec, fields: Sequence[str], segments: Mapping[str, Sequence[str]]
    ) -> tuple[_Share, NDArray[np.int64]]:
        names, columns = list(spec.segments), spec.columns()
        read = [segment for segment in segments if segment in spec.segments]
        inputs = np.array([list(segments).index(segment) for segment in read], np.int64)
        layout, offsets = [], []
        for segment, i in zip(read, inputs.tolist(), strict=True):
            dim = self.shapes[segment][1]
            layout.append((0, self._lines[i], columns[segment].start, dim, names.index(segment)))
            offsets.append([dim * segments[segment].index(field) for field in fields])
        share = _Share(np.array(layout, np.int64).reshape(-1, 5), np.array(offsets, np.int64).reshape(-1, len(fields)))
        return share, inputs

    def begin(self, num_candidates: int) -> Feeds:
        """Room for a run of so many candidates, contents undefined."""
        found = self._plans.get(num_candidates)
        if found is None:
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()
            found = self._plans[num_candidates] = self._plan(num_candidates)
        return Feeds(num_candidates, self.shapes, found)

    def _plan(self, num_candidates: int) -> _Plan:
        ends = np.cumsum(self._lines) * num_candidates
        bases, shares = ends - self._lines * num_candidates, {}
        for table, (share, inputs) in self._tables.items():
            segments = share.segments.copy()
            segments[:, 0] = bases[inputs]
            shares[table] = _Share(segments, share.offsets)
        return _Plan(tuple(bases.tolist()), int(ends[-1]), shares)


class Feeds:
    """Of one run."""

    def __init__(self, num_candidates: int, shapes: Mapping[str, tuple[int, int]], plan: _Plan) -> None:
        self._n, self._shapes, self._plan = num_candidates, shapes, plan
        self._out = np.empty(plan.num_floats, np.float32)

    def spread(self, table: str, runs: NDArray[np.int64], first: int, number: int) -> Spread:
        """Where rows of a table go, for candidates `first` to `first + number`. runs: as Spread has them."""
        share = self._plan.shares[table]
        return Spread(runs, share.segments, share.offsets, first, number, self._out)

    def arrays(self) -> dict[str, Floats]:
        """By segment float32 [candidates, fields, dim]."""
        found = {}
        for (segment, (fields, dim)), base in zip(self._shapes.items(), self._plan.bases, strict=True):
            values = self._out[base : base + self._n * fields * dim]
            found[segment] = values.reshape(self._n, fields, dim)
        return found
