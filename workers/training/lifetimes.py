"""What rows live by, while a job trains: clicks of a batch's keys, its event time, and when to evict."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ps.spec import TableSpec
from ps.types import Floats
from workers.samples.batch import Bags, Batch


def clicks_of(batch: Batch, task: int, tables: Mapping[str, TableSpec]) -> dict[str, Floats]:
    """By table that wants counts, float32 [nnz]: 1 for each key of a sample whose label `task` is positive, else 0."""
    clicked = np.nan_to_num(batch.labels[:, task]) > 0
    return {table: _by_key(clicked, bags) for table, bags in batch.bags.items() if tables[table].wants_counts}


def event_time_of(batch: Batch) -> float:
    """Seconds: the newest of the batch, or now where the data has no event times."""
    return time.time() if batch.event_time is None or not batch.size else float(batch.event_time.max())


def due_evictions(tables: Mapping[str, TableSpec], evicted_at: dict[str, float], now: float) -> list[str]:
    """Tables whose last eviction was `every_seconds` of event time ago. The first time seen starts the clock."""
    due = []
    for name, spec in tables.items():
        if spec.eviction is None or not spec.eviction.limits_rows:
            continue
        if now - evicted_at.setdefault(name, now) >= spec.eviction.every_seconds:
            due.append(name)
    return due


def _by_key(clicked: NDArray[np.bool_], bags: Bags) -> Floats:
    """float32 [nnz], from bool [size]."""
    num_fields = len(bags.fields)
    if bags.offsets is None:
        return np.repeat(clicked, num_fields).astype(np.float32)
    return np.repeat(clicked, np.diff(bags.offsets[::num_fields])).astype(np.float32)
