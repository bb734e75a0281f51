"""One version of a model, ready to answer: features, rows and tower that belong together. Replaced as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from ps.spec import TableSpec
from ps.storage.spreading import Spread
from ps.types import Floats, Keys, Rows
from workers.serving.features import Features, Sample
from workers.serving.feeds import FeedLayout
from workers.serving.manifest import ServedLabel
from workers.serving.scores import scores_of
from workers.serving.tower import DENSE, Tower

ROWS = "rows_"


class RowSource(Protocol):
    """Where rows come from: ps.replica.Replica."""

    def pull(self, table: str, keys: Keys) -> tuple[Rows, int]:
        """float32 [n, width], and how many of the keys have no row."""

    def spread(self, table: str, keys: Keys, spread: Spread) -> int:
        """Put the rows where they are wanted; how many of the keys have no row."""


class Scored(NamedTuple):
    """scores: float32 [n, num_tasks]; not finite where the tower's logits are not."""

    scores: Floats
    num_unknown_keys: int


class Took(NamedTuple):
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
        scores = scores_of(logits, self.labels)
        found, first = [], 0
        for sample, num_unknown in zip(samples, unknown, strict=True):
            found.append(Scored(scores[first : first + sample.num_candidates], num_unknown))
            first += sample.num_candidates
        return found, took

    def logits(self, samples: Sequence[Sample]) -> tuple[Floats, list[int], Took]:
        """Of all samples, end to end, float32 [n, num_tasks]; and of each, how many keys have no row."""
        started = time.perf_counter()
        rows, unknown = self.feeds(samples)
        feeds = {ROWS + segment: values for segment, values in rows.items()}
        if DENSE in self.tower.inputs:
            feeds[DENSE] = _joined([sample.dense for sample in samples])
        ready = time.perf_counter()
        logits = self.tower.run(feeds)
        return logits, unknown, Took(ready - started, time.perf_counter() - ready)

    def feeds(self, samples: Sequence[Sample]) -> tuple[dict[str, Floats], list[int]]:
        """By segment float32 [n, num_fields, dim], of all samples; and of each, how many keys have no row."""
        feeds, first = self._layout.begin(sum(sample.num_candidates for sample in samples)), 0
        unknown = []
        for sample in samples:
            num_unknown = 0
            for table, found in sample.tables.items():
                spread = feeds.spread(table, found.runs, first, sample.num_candidates)
                if found.bags is None:
                    num_unknown += self.rows.spread(table, found.keys, spread)
                else:
                    rows, num = self.rows.pull(table, found.keys)
                    spread.put(found.bags.pool(rows))
                    num_unknown += num
            unknown.append(num_unknown)
            first += sample.num_candidates
        return feeds.arrays(), unknown

    @cached_property
    def _layout(self) -> FeedLayout:
        return FeedLayout(self.tables, self.features.tables, self.segments)


def _joined(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
