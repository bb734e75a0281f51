"""One version of a model, ready to answer: features, rows and tower that belong together. Replaced as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ps.spec import TableSpec
from ps.storage.unique import take_by_key
from ps.types import Floats, Keys, Rows
from workers.serving.features import Features, Sample
from workers.serving.manifest import ServedLabel
from workers.serving.scores import scores_of
from workers.serving.tower import DENSE, Tower

ROWS = "rows_"


class RowSource(Protocol):
    """Where rows come from: ps.replica.Replica."""

    def pull(self, table: str, keys: Keys) -> tuple[Rows, int]:
        """float32 [n, width], and how many of the keys have no row."""


@dataclass(frozen=True, slots=True)
class Scored:
    """scores: float32 [n, num_tasks]; not finite where the tower's logits are not."""

    scores: Floats
    num_unknown_keys: int


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of a run, of all requests in it."""

    rows: float
    tower: float


@dataclass(frozen=True)
class Model:
    """Immutable, thread-safe. tables: serving specs. segments: the fields that each segment's input has, in order.
    labels: the tasks. age_seconds: since what the rows know of; None: unknown.
    """

    name: str
    version: str
    features: Features
    rows: RowSource
    tower: Tower
    tables: Mapping[str, TableSpec]
    segments: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, ServedLabel]
    age_seconds: Callable[[], float | None] = lambda: None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is scored, in the order of the columns of scores."""
        return tuple(self.labels)

    def score(self, samples: Sequence[Sample]) -> tuple[list[Scored], Took]:
        """The scores of each sample, in one run of the tower."""
        logits, unknown, took = self.logits(samples)
        scores = np.column_stack(list(scores_of(logits, self.labels).values()))
        found, first = [], 0
        for sample, num_unknown in zip(samples, unknown, strict=True):
            found.append(Scored(scores[first : first + sample.num_candidates], num_unknown))
            first += sample.num_candidates
        return found, took

    def logits(self, samples: Sequence[Sample]) -> tuple[Floats, list[int], Took]:
        """Of all samples, end to end, float32 [n, num_tasks]; and of each, how many keys have no row."""
        started = time.perf_counter()
        parts: dict[str, list[Floats]] = {segment: [] for segment in self.segments}
        unknown = []
        for sample in samples:
            spread, num_unknown = self._spread(sample)
            unknown.append(num_unknown)
            for segment, part in spread.items():
                parts[segment].append(part)
        feeds = {ROWS + segment: _joined(part) for segment, part in parts.items()}
        if DENSE in self.tower.inputs:
            feeds[DENSE] = _joined([sample.dense for sample in samples])
        ready = time.perf_counter()
        logits = self.tower.run(feeds)
        return logits, unknown, Took(ready - started, time.perf_counter() - ready)

    def _spread(self, sample: Sample) -> tuple[dict[str, Floats], int]:
        """By segment float32 [n, num_fields, dim], and how many keys have no row."""
        num_unknown, by_table = 0, {}
        for table, found in sample.tables.items():
            rows, num = self.rows.pull(table, found.keys)
            num_unknown += num
            by_table[table] = rows if found.bags is None else found.bags.pool(rows)
        return {segment: self._segment(sample, by_table, segment) for segment in self.segments}, num_unknown

    def _segment(self, sample: Sample, rows: Mapping[str, Rows], segment: str) -> Floats:
        fields, parts = self.segments[segment], []
        names: list[str] = []
        for table, spec in self.tables.items():
            if segment in spec.segments:
                places = sample.tables[table].places
                part = take_by_key(rows[table], places.reshape(-1), spec.columns()[segment])
                parts.append(part.reshape(*places.shape, -1))
                names += self.features.tables[table]
        together = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if tuple(names) == fields:
            return together
        return np.ascontiguousarray(together[:, [names.index(field) for field in fields]])


def _joined(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
