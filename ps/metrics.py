"""Prometheus metrics of a shard: read from its counters when they are scraped, so that counting costs the work nothing.

weir_queue_depth                     messages taken in and not done
weir_waiting_for_ranks               messages of synchronous groups whose step is incomplete
weir_rank_late_seconds_total{rank}   how long the first message of a step waited for this rank's, where it was the last
weir_seconds{kind}                   histogram, arrival to answer; kind: pull, apply (updates), other (aggregates ...)
weir_rows{table}  weir_bytes{table}  rows, and memory with what is reserved
weir_bucket_skew{table}              rows of the fullest owned bucket / mean rows of an owned bucket
weir_updated_rows_total{outcome}     applied, created, nonfinite, dropped_above, dropped_below, skipped, refused
weir_removed_rows_total{table,why}   deleted, evicted
weir_refused_keys_total{table,why}   keys that got no row: admission, memory_limit
weir_memory_limit_bytes{table}       0: none
weir_refused_total{reason}           messages: error (answered with one), overloaded (queue full), malformed,
                                     not_allowed (no token, or another one)
weir_routing_epoch                   0 before the first Assign
weir_journal_backlog_bytes           that wait for the disk; no updates are taken beyond durability.backlog_bytes
weir_journal_replay_bytes            written since the last snapshot: what a recovery would replay
weir_journal_in_trouble              1 while the journal cannot be written, so that no update is acknowledged
weir_journal_snapshots_total         completed
weir_standby_state                   of a primary, mode replicated: 0 no standby, 1 it is filled, 2 updates wait for it
weir_standby_behind_bytes            of the journal and of a filling, that wait for the standby
weir_deltas_collected_total          keys that tables told of as changed; each is published once a window
weir_deltas_records_total            rows and tombstones published; weir_deltas_batches_total, weir_deltas_bytes_total
weir_deltas_saved_bytes_total        not published, for a key changed again in its window
weir_deltas_oldest_seconds           for how long the oldest change that is not published waits
weir_deltas_waiting_keys             that changed and are not published
weir_deltas_waiting_buckets          to be published whole
weir_deltas_next_offset              behind what is published; 0 before the partition is open
weir_deltas_in_trouble               1 while the partition cannot be opened or written
weir_deltas_saturated_total          elements that did not fit the codec
weir_standby_silent_seconds          since the standby was heard of; beyond durability.standby_seconds nothing is served
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps.deltas.publishing import Publisher
from ps.errors import RequestError
from ps.work import WorkThread

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Endpoint:
    """HTTP endpoint of a registry, on a daemon thread. port: that which was taken."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """port: 0 takes a free one. Raises RequestError for one in use."""
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise RequestError(
                f"metrics cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for a free one"
            ) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Metrics:
    """The registry of one shard. `observe` goes to the Shard, `watch` takes its thread of work, `serve` opens the
    endpoint.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.num_malformed = 0
        self.num_not_allowed = 0
        self._seconds = Histogram(
            "weir_seconds", "Seconds from arrival to answer", ["kind"], buckets=_BUCKETS, registry=self.registry
        )
        self._endpoint: Endpoint | None = None

    def observe(self, kind: str, seconds: float) -> None:
        """Count an answer."""
        self._seconds.labels(kind).observe(seconds)

    def watch(self, work: WorkThread) -> None:
        """Read this shard's counters at every scrape."""
        self.registry.register(_ShardCollector(work, self))

    def serve(self, host: str, port: int) -> int:
        """Open the HTTP endpoint; 0 takes a free port. Returns the port. Raises RequestError for a port in use."""
        self._endpoint = Endpoint(self.registry, host, port)
        return self._endpoint.port

    def close(self) -> None:
        """Close the endpoint."""
        if self._endpoint is not None:
            self._endpoint.close()


class _ShardCollector(Collector):
    def __init__(self, work: WorkThread, metrics: Metrics) -> None:
        self._work = work
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []  # nothing is collected at registration, when the shard has no tables yet

    def collect(self) -> Iterator[Metric]:
        work, shard = self._work, self._work.shard
        yield GaugeMetricFamily("weir_queue_depth", "Messages taken in and not done", work.queue_depth)
        yield GaugeMetricFamily("weir_waiting_for_ranks", "Messages of incomplete steps", shard.num_waiting_for_ranks)
        late = CounterMetricFamily("weir_rank_late_seconds", "Others waited for this rank", labels=["rank"])
        for rank, seconds in sorted(shard.late_seconds.items()):
            late.add_metric([str(rank)], seconds)
        yield late
        refused = CounterMetricFamily("weir_refused", "Messages refused", labels=["reason"])
        refused.add_metric(["error"], shard.num_failed)
        refused.add_metric(["overloaded"], work.num_overloaded)
        refused.add_metric(["malformed"], self._metrics.num_malformed)
        refused.add_metric(["not_allowed"], self._metrics.num_not_allowed)
        yield refused
        if (journal := shard.journal) is not None:
            yield GaugeMetricFamily("weir_journal_backlog_bytes", "Bytes that wait for the disk", journal.backlog_bytes)
            replay = journal.bytes_since_snapshot
            yield GaugeMetricFamily("weir_journal_replay_bytes", "Bytes since the last snapshot", replay)
            yield GaugeMetricFamily("weir_journal_in_trouble", "Cannot be written", float(bool(journal.trouble)))
            yield CounterMetricFamily("weir_journal_snapshots", "Completed snapshots", journal.num_snapshots)
            if journal.options.is_replicated:
                stream = journal.stream
                state, behind = (0, 0) if stream is None else (1 + stream.is_joined, stream.backlog_bytes)
                silent = 0.0 if stream is None else stream.silent_seconds
                yield GaugeMetricFamily("weir_standby_state", "0 none, 1 being filled, 2 joined", state)
                yield GaugeMetricFamily("weir_standby_behind_bytes", "Bytes that wait for the standby", behind)
                yield GaugeMetricFamily("weir_standby_silent_seconds", "Since the standby was heard of", silent)
        if (publisher := shard.outlet.publisher) is not None:
            yield from _deltas(publisher)
        holding = shard.holding
        epoch = 0 if holding is None else holding.routing.epoch
        yield GaugeMetricFamily("weir_routing_epoch", "Routing epoch", epoch)
        if holding is None:
            return
        outcomes = CounterMetricFamily("weir_updated_rows", "Rows of updates", labels=["outcome"])
        for field in dataclasses.fields(holding.counts):
            outcomes.add_metric([field.name], getattr(holding.counts, field.name))
        yield outcomes
        rows = GaugeMetricFamily("weir_rows", "Rows", labels=["table"])
        memory = GaugeMetricFamily("weir_bytes", "Bytes of memory", labels=["table"])
        limit = GaugeMetricFamily("weir_memory_limit_bytes", "Limit of the memory", labels=["table"])
        removed = CounterMetricFamily("weir_removed_rows", "Rows removed", labels=["table", "why"])
        keys = CounterMetricFamily("weir_refused_keys", "Keys that got no row", labels=["table", "why"])
        skew = GaugeMetricFamily("weir_bucket_skew", "Fullest bucket / mean bucket", labels=["table"])
        for name, table in holding.tables.items():
            per_bucket = table.rows_per_bucket[holding.owned]
            rows.add_metric([name], int(per_bucket.sum()))
            memory.add_metric([name], table.memory_bytes)
            mean = per_bucket.mean() if len(per_bucket) else 0.0
            skew.add_metric([name], float(per_bucket.max() / mean) if mean else 1.0)
            limit.add_metric([name], table.spec.memory_limit_bytes or 0)
            removed.add_metric([name, "deleted"], table.deleted)
            removed.add_metric([name, "evicted"], table.evicted)
            keys.add_metric([name, "admission"], table.refused)
            keys.add_metric([name, "memory_limit"], table.turned_away)
        yield from (rows, memory, skew, limit, removed, keys)


def _deltas(publisher: Publisher) -> Iterator[Metric]:
    writer = publisher.writer
    yield CounterMetricFamily("weir_deltas_collected", "Keys that changed", publisher.collected)
    yield CounterMetricFamily("weir_deltas_records", "Rows and tombstones published", writer.num_records)
    yield CounterMetricFamily("weir_deltas_batches", "Batches published", writer.num_batches)
    yield CounterMetricFamily("weir_deltas_bytes", "Bytes published", writer.num_bytes)
    yield CounterMetricFamily("weir_deltas_saved_bytes", "Bytes that windows saved", publisher.saved_bytes)
    yield GaugeMetricFamily("weir_deltas_oldest_seconds", "Age of the oldest change", publisher.oldest_seconds)
    yield GaugeMetricFamily("weir_deltas_waiting_keys", "Keys to be published", publisher.num_waiting)
    yield GaugeMetricFamily("weir_deltas_waiting_buckets", "Buckets to be published", publisher.num_whole)
    yield GaugeMetricFamily("weir_deltas_next_offset", "Behind what is published", writer.end_offset)
    yield GaugeMetricFamily("weir_deltas_in_trouble", "Cannot be written", float(bool(writer.trouble)))
    yield CounterMetricFamily("weir_deltas_saturated", "Elements that did not fit", publisher.saturated)
