"""Prometheus metrics of a prediction server. Counters of others are read when they are scraped.

weir_serving_requests_total{protocol,status}  answered; protocol: grpc, http; status: OK, or that of the error
weir_serving_candidates_total                 scored
weir_serving_seconds{stage}                   histogram: decode, wait (in the queue), rows, tower, encode of requests;
                                              rows and tower once a run, which several may share
weir_serving_runs_total
weir_serving_queue{of}                        requests, candidates that wait
weir_serving_shed_total{reason}               requests refused: queue (full), late (their time was over)
weir_serving_unknown_keys_total               keys without a row
weir_serving_model{name,version}              1: the current one
weir_serving_data_age_seconds                 since what the rows know of
weir_serving_ready                            1: takes requests
weir_serving_trouble                          1: another version should answer, or newer rows; /readyz says why not
weir_serving_switches_total                   versions that took over
weir_serving_refused_versions_total           versions that could not
weir_serving_switch_seconds                   of the newest switch, from seeing the pointer to the first answer
weir_serving_switch_bytes{when}               memory of the process then: before, peak (old and new rows side by side)
weir_serving_log_records_total{outcome}       written, dropped
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.serving.prediction_log import PredictionLog
from workers.serving.predictor import Predictor
from workers.serving.stages import StageSeconds
from workers.serving.switching import Switcher

_STAGES = ("decode", "wait", "rows", "tower", "encode")


class Metrics:
    """The registry of one server. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "weir_serving_requests", "Requests answered", ["protocol", "status"], registry=self.registry
        )
        self._answered: dict[tuple[str, str], Counter] = {}
        self._candidates = Counter("weir_serving_candidates", "Candidates scored", registry=self.registry)
        self._unknown = Counter("weir_serving_unknown_keys", "Keys without a row", registry=self.registry)
        seconds = StageSeconds("weir_serving_seconds", "Seconds of each stage", _STAGES)
        self.registry.register(seconds)
        self.observe = seconds.observe

    def answered(self, protocol: str, status: str, num_candidates: int = 0, num_unknown_keys: int = 0) -> None:
        """Count an answer."""
        counter = self._answered.get((protocol, status))
        if counter is None:
            counter = self._answered[protocol, status] = self._requests.labels(protocol, status)
        counter.inc()
        self._candidates.inc(num_candidates)
        self._unknown.inc(num_unknown_keys)

    def watch(self, predictor: Predictor, log: PredictionLog | None) -> None:
        """Read their counters at every scrape."""
        self.registry.register(_PredictorCollector(predictor, log))

    def watch_switches(self, switcher: Switcher) -> None:
        """Read its counters at every scrape."""
        self.registry.register(_SwitchCollector(switcher))

    def text(self) -> bytes:
        """What GET /metrics answers."""
        return generate_latest(self.registry)


class _PredictorCollector(Collector):
    def __init__(self, predictor: Predictor, log: PredictionLog | None) -> None:
        self._predictor, self._log = predictor, log

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else registering would collect

    def collect(self) -> Iterator[Metric]:
        predictor = self._predictor
        model = predictor.model
        yield CounterMetricFamily("weir_serving_runs", "Runs of the tower", predictor.num_runs)
        waiting = GaugeMetricFamily("weir_serving_queue", "What waits", labels=["of"])
        for what, number in zip(("requests", "candidates"), predictor.queue, strict=True):
            waiting.add_metric([what], number)
        yield waiting
        shed = CounterMetricFamily("weir_serving_shed", "Requests refused", labels=["reason"])
        shed.add_metric(["queue"], predictor.num_shed)
        shed.add_metric(["late"], predictor.num_late)
        yield shed
        current = GaugeMetricFamily("weir_serving_model", "The current model", labels=["name", "version"])
        current.add_metric([model.name, model.version], 1)
        yield current
        if (age := model.age_seconds()) is not None:
            yield GaugeMetricFamily("weir_serving_data_age_seconds", "Age of what the rows know of", age)
        yield GaugeMetricFamily("weir_serving_ready", "Whether requests are taken", int(predictor.is_ready))
        yield GaugeMetricFamily(
            "weir_serving_trouble", "Whether something else should answer", bool(predictor.trouble())
        )
        if self._log is not None:
            records = CounterMetricFamily("weir_serving_log_records", "Records of the log", labels=["outcome"])
            records.add_metric(["written"], self._log.num_written)
            records.add_metric(["dropped"], self._log.num_dropped)
            yield records


class _SwitchCollector(Collector):
    def __init__(self, switcher: Switcher) -> None:
        self._switcher = switcher

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else registering would collect

    def collect(self) -> Iterator[Metric]:
        switcher = self._switcher
        yield CounterMetricFamily("weir_serving_switches", "Versions that took over", switcher.switches)
        yield CounterMetricFamily("weir_serving_refused_versions", "Versions that could not", switcher.refused)
        if (last := switcher.last) is not None:
            yield GaugeMetricFamily("weir_serving_switch_seconds", "Seconds of the newest switch", last.seconds)
            memory = GaugeMetricFamily("weir_serving_switch_bytes", "Memory of the newest switch", labels=["when"])
            memory.add_metric(["before"], last.bytes_before)
            memory.add_metric(["peak"], last.bytes_peak)
            yield memory
