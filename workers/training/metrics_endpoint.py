"""Prometheus metrics of a worker, read from the trainer's and the client's counters when they are scraped.

weir_step  weir_epoch  weir_loss            steps done; epoch, from 0; loss of the latest batch of this worker
weir_samples_total                          trained on, by all workers together
weir_samples_per_second                     of all workers, over the latest half second of training
weir_cache_hit_rate                         of the hot-key cache
weir_client_bytes_total{direction}          sent, received: messages on the wire
weir_client_retries_total
weir_checkpoint_age_seconds                 since the newest checkpoint, or the start; of the first worker
weir_client_rows_total{outcome}             not applied: dropped_above, dropped_below, nonfinite
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps.metrics import Endpoint
from workers.training.trainer import Trainer

HOST = "127.0.0.1"


@contextmanager
def serving_metrics(trainer: Trainer, port: int | None) -> Iterator[None]:
    """Within, http://127.0.0.1:<port + rank>/metrics answers; port 0 takes a free one and says so; None opens nothing.

    Raises RequestError for a port in use.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(_Collector(trainer))
    endpoint = Endpoint(registry, HOST, port + trainer.world.rank if port else 0)
    try:
        trainer.reporter.say(f"metrics of worker {trainer.world.rank}: http://{HOST}:{endpoint.port}/metrics")
        yield
    finally:
        endpoint.close()


class _Collector(Collector):
    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def collect(self) -> Iterator[Metric]:
        trainer, stats = self._trainer, self._trainer.client.stats()
        speed = trainer.reporter.samples_per_second
        yield GaugeMetricFamily("weir_step", "Steps done", trainer.position.step)
        yield GaugeMetricFamily("weir_epoch", "Epoch, from 0", trainer.position.epoch)
        yield GaugeMetricFamily("weir_loss", "Loss of this worker's latest batch", trainer.latest_loss)
        yield CounterMetricFamily("weir_samples", "Samples trained on, by all workers", trainer.position.samples)
        yield GaugeMetricFamily("weir_samples_per_second", "Of all workers, in training", speed)
        if trainer.world.is_first:
            age = time.monotonic() - trainer.saved_at
            yield GaugeMetricFamily("weir_checkpoint_age_seconds", "Since the newest checkpoint", age)
        yield GaugeMetricFamily("weir_cache_hit_rate", "Of the hot-key cache", stats["cache_hit_rate"])
        sent = CounterMetricFamily("weir_client_bytes", "Bytes on the wire", labels=["direction"])
        sent.add_metric(["sent"], stats["bytes_sent"])
        sent.add_metric(["received"], stats["bytes_received"])
        yield sent
        yield CounterMetricFamily("weir_client_retries", "Messages sent again", stats["retries"])
        rows = CounterMetricFamily("weir_client_rows", "Rows not applied", labels=["outcome"])
        rows.add_metric(["dropped_above"], stats["dropped_above"])
        rows.add_metric(["dropped_below"], stats["dropped_below"])
        rows.add_metric(["nonfinite"], stats["nonfinite_skipped"])
        yield rows
