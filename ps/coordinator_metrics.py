"""Prometheus metrics of a coordinator, read when they are scraped.

weir_cluster_epoch                   of the committed routing; 0 before the first
weir_shards{state}                   expected; lost (came back empty, until a restore); silent (lease ran out)
weir_seconds_since_renewal{shard}    age of each shard's lease
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps.coordinator import Coordinator


def coordinator_registry(coordinator: Coordinator) -> CollectorRegistry:
    """A registry that reads a coordinator whenever it is scraped."""
    registry = CollectorRegistry()
    registry.register(_CoordinatorCollector(coordinator))
    return registry


class _CoordinatorCollector(Collector):
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        coordinator, now = self._coordinator, time.monotonic()
        yield GaugeMetricFamily("weir_cluster_epoch", "Epoch of the committed routing", coordinator.epoch)
        shards = GaugeMetricFamily("weir_shards", "Shards by state", labels=["state"])
        shards.add_metric(["expected"], coordinator.num_shards)
        shards.add_metric(["lost"], len(coordinator.lost()))
        shards.add_metric(["silent"], len(coordinator.silent(now)))
        yield shards
        ages = GaugeMetricFamily("weir_seconds_since_renewal", "Age of a shard's lease", labels=["shard"])
        for shard, lease in sorted(dict(coordinator.leases).items()):  # a copy: shards report meanwhile
            ages.add_metric([str(shard)], now - lease.renewed_at)
        yield ages
