"""A prediction server: one model, gRPC and HTTP in one process, until a signal ends it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ps.delta_folder import DeltaFolder
from ps.delta_lines import DeltaLines
from ps.following import Follower, Source
from ps.security import warn_if_open
from workers.readiness import make_ready
from workers.serving.bundle import is_bundle, read_bundle
from workers.serving.grpc_service import GrpcService
from workers.serving.http_service import HttpApplication, HttpService
from workers.serving.loading import load
from workers.serving.metrics import Metrics
from workers.serving.model import Model
from workers.serving.options import ServeOptions
from workers.serving.prediction_log import PredictionLog, RotatingFiles
from workers.serving.predictor import Predictor
from workers.serving.signals import until_signal
from workers.serving.switching import Switcher
from workers.serving.versions import Models


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what it answers with."""

    grpc: str
    http: str
    model: str
    version: str
    pid: int


class Predictions:
    """One model with its queue, metrics, log and HTTP application, and no port. `predictor.replace` brings another
    version in.
    """

    def __init__(self, model: Model, options: ServeOptions) -> None:
        """Raises RequestError for files of `options.security` that do not do, and a log that cannot be written."""
        self.metrics, log = Metrics(), options.log
        self.log = None if log is None else PredictionLog(RotatingFiles(log), log.rate)
        self.predictor = Predictor(
            model,
            capacity=options.queue,
            candidate_capacity=options.queue_candidates,
            batch_candidates=options.batch_candidates,
            observe=self.metrics.observe,
        )
        self.metrics.watch(self.predictor, self.log)
        self.application = HttpApplication(self.predictor, self.metrics, self.log, options)

    def close(self, drain_seconds: float) -> None:
        """Answer what was taken in, within so many seconds, and end."""
        self.predictor.drain(drain_seconds)
        self.predictor.close()
        if self.log is not None:
            self.log.close()


class PredictionServer:
    """Predictions over gRPC and HTTP; ready when it is made."""

    def __init__(self, model: Model, options: ServeOptions) -> None:
        """Raises RequestError for ports in use, and as Predictions does."""
        warn_if_open(
            options.host,
            options.security,
            who="predictions are served",
            risk="ask for predictions",
            remedy="give --token-file",
        )
        self._options, self._predictions = options, Predictions(model, options)
        self.metrics, self.predictor = self._predictions.metrics, self._predictions.predictor
        self.grpc = GrpcService(self.predictor, self.metrics, self._predictions.log, options)
        self._http = HttpService(self._predictions.application, options)
        host = f"[{options.host}]" if ":" in options.host else options.host
        scheme = "http" if options.security.tls is None else "https"
        self.address = Address(
            f"{host}:{self.grpc.port}", f"{scheme}://{host}:{self._http.port}", model.name, model.version, os.getpid()
        )
        self.grpc.set_ready(True)

    def stop(self) -> None:
        """Say that it is not ready, answer what was taken in, and end."""
        self.grpc.set_ready(False)
        self.predictor.stop_being_ready()
        time.sleep(self._options.drain_delay_seconds)
        self.predictor.drain(self._options.drain_seconds)
        self.grpc.stop(self._options.drain_seconds)
        self._http.stop()
        self._predictions.close(0)


def serve(directory: Path, options: ServeOptions, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve a bundle, or what a model directory points to, until SIGTERM or Ctrl-C, then drain. ready: told once where
    it listens, and what it serves.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with until_signal() as until_end:
        began = time.perf_counter()
        sources, switcher, follower = sources_of(options), None, None
        if is_bundle(directory):
            loaded = load(read_bundle(directory), threads=options.threads)
            model, num_rows = loaded.model, loaded.replica.num_rows
            follower = sources and Follower(loaded.replica, sources())
        else:
            switcher = Switcher(Models(directory), sources, threads=options.threads)
            model, num_rows = switcher.served.model, switcher.served.replica.num_rows
        server = PredictionServer(model, options)
        del model  # whose rows may go when another one has taken over
        make_ready()
        if switcher is not None:
            server.metrics.watch_switches(switcher)
            switcher.start(server.predictor)
        if follower is not None:
            server.predictor.trouble = lambda: follower.trouble
        seconds = round(time.perf_counter() - began, 3)
        ready({**asdict(server.address), "rows": num_rows, "seconds": seconds})
        os.read(until_end, 1)
        server.stop()
        for each in (switcher, follower):
            if each is not None:
                each.close()


def sources_of(options: ServeOptions) -> Callable[[], Source] | None:
    """The stream of changes that the options name."""
    if options.deltas is not None:
        return partial(DeltaFolder, options.deltas)
    if options.shards is not None:
        return partial(DeltaLines, options.shards.split(","), options.shard_security)
    return None
