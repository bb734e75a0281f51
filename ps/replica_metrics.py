"""Prometheus metrics of a replica: counted at every call, or read when they are scraped.

weir_replica_lookups_total{outcome}      calls: answered, failed (answered with an error), not_allowed
weir_replica_keys_total{table,row}       looked up: known, unknown (no row: read as in training)
weir_replica_lookup_seconds              histogram, inside the process: from the message's bytes to the answer's
weir_replica_rows{table}  weir_replica_bytes{table}   rows, and memory with what is reserved
weir_replica_lag_seconds                 the rows are complete as of so long ago, in the partition furthest behind
weir_replica_lag_records                 known to be published, and not applied
weir_replica_batches_total{outcome}      applied, passed_by (applied before)
weir_replica_reconnects_total            lines to partitions begun anew after a failure
weir_replica_in_trouble                  1 while it is not kept up
weir_replica_needs_bundle                1 while batches are gone that it does not have
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps.following import Follower
from ps.metrics import Endpoint
from ps.replica import Replica

_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class ReplicaMetrics:
    """The registry of one replica. Thread-safe."""

    def __init__(self, replica: Replica, follower: Follower | None) -> None:
        self.registry = CollectorRegistry()
        self._lookups = Counter("weir_replica_lookups", "Calls", ["outcome"], registry=self.registry)
        self._keys = Counter("weir_replica_keys", "Keys looked up", ["table", "row"], registry=self.registry)
        self._seconds = Histogram(
            "weir_replica_lookup_seconds", "Seconds of a lookup", buckets=_BUCKETS, registry=self.registry
        )
        self._endpoint: Endpoint | None = None
        self.registry.register(_ReplicaCollector(replica, follower))

    def answered(self, table: str, num_keys: int, num_unknown: int, seconds: float) -> None:
        """Count a lookup."""
        self._lookups.labels("answered").inc()
        self._keys.labels(table, "known").inc(num_keys - num_unknown)
        self._keys.labels(table, "unknown").inc(num_unknown)
        self._seconds.observe(seconds)

    def failed(self) -> None:
        """Count a call that was answered with an error."""
        self._lookups.labels("failed").inc()

    def not_allowed(self) -> None:
        """Count a call without the token."""
        self._lookups.labels("not_allowed").inc()

    def serve(self, host: str, port: int) -> int:
        """Open the HTTP endpoint; 0 takes a free port. Returns the port. Raises RequestError for a port in use."""
        self._endpoint = Endpoint(self.registry, host, port)
        return self._endpoint.port

    def close(self) -> None:
        """Close the endpoint."""
        if self._endpoint is not None:
            self._endpoint.close()


class _ReplicaCollector(Collector):
    def __init__(self, replica: Replica, follower: Follower | None) -> None:
        self._replica, self._follower = replica, follower

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        replica, follower, lag = self._replica, self._follower, self._replica.lag(time.time())
        rows = GaugeMetricFamily("weir_replica_rows", "Rows", labels=["table"])
        memory = GaugeMetricFamily("weir_replica_bytes", "Bytes of memory", labels=["table"])
        for name, table in replica.tables.items():
            rows.add_metric([name], table.num_rows)
            memory.add_metric([name], table.memory_bytes)
        batches = CounterMetricFamily("weir_replica_batches", "Batches", labels=["outcome"])
        batches.add_metric(["applied"], replica.num_applied)
        batches.add_metric(["passed_by"], replica.num_passed_by)
        yield from (rows, memory, batches)
        yield GaugeMetricFamily("weir_replica_lag_seconds", "Complete as of so long ago", lag.seconds)
        yield GaugeMetricFamily("weir_replica_lag_records", "Published and not applied", lag.records)
        if follower is not None:
            yield CounterMetricFamily("weir_replica_reconnects", "Lines begun anew", follower.num_restarts)
            yield GaugeMetricFamily("weir_replica_in_trouble", "Not kept up", float(bool(follower.trouble)))
            yield GaugeMetricFamily("weir_replica_needs_bundle", "Batches are gone", float(follower.needs_bundle))
