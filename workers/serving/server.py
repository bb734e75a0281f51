"""A prediction server: one model, gRPC and HTTP in one process, until a signal ends it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ps.security import warn_if_open
from workers.readiness import make_ready
from workers.serving.grpc_service import GrpcService
from workers.serving.http_service import HttpApplication, HttpService
from workers.serving.metrics import Metrics
from workers.serving.model import Model
from workers.serving.options import ServeOptions
from workers.serving.prediction_log import PredictionLog, RotatingFiles
from workers.serving.predictor import Predictor
from workers.serving.signals import until_signal
from workers.serving.upkeep import open_model


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
            runs=options.num_runs,
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
        loaded, upkeep = open_model(directory, options)
        server, num_rows = PredictionServer(loaded.model, options), loaded.replica.num_rows
        del loaded  # whose rows may go when another version has taken over
        make_ready()
        upkeep.start(server.predictor, server.metrics)
        seconds = round(time.perf_counter() - began, 3)
        ready({**asdict(server.address), "rows": num_rows, "seconds": seconds})
        os.read(until_end, 1)
        server.stop()
        upkeep.close()
