"""Predictions over gRPC: proto/serving.proto, and the standard health service beside it.

A sync server with a pool of threads: one for each request that waits, and a few more, so that a full queue is answered
and health always is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import orjson
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ps.errors import RequestError, to_wire
from ps.grpc_shell import Gate, abort, credentials_of
from ps.security import read_token
from ps.wire import serving_pb2 as pb
from workers.serving.errors import MalformedError
from workers.serving.metrics import Metrics
from workers.serving.options import ServeOptions
from workers.serving.prediction_log import PredictionLog
from workers.serving.predictor import Prediction, Predictor
from workers.serving.request import read_message
from workers.serving.signature import describe

SERVICE = "weir.serving.v1.Predictions"
FIELD_KEY = "weir-field"  # of a status: the field that is wrong
_SPARE_THREADS = 8
TOKEN_REMEDY = "send 'authorization: Bearer TOKEN' with the token of the file that it was started with"


class GrpcService:
    """Listens from the start; answers once it has a predictor. port: that which was taken."""

    def __init__(
        self, predictor: Predictor, metrics: Metrics, log: PredictionLog | None, options: ServeOptions
    ) -> None:
        """Raises RequestError for a port in use, and for files of `security` that do not do."""
        self._predictor, self._metrics, self._log, self._options = predictor, metrics, log, options
        token, credentials = read_token(options.security), credentials_of(options.security)
        refused = partial(metrics.answered, "grpc", "UNAUTHENTICATED")
        open_services = ("grpc.health.v1.Health",)
        num_threads = options.queue + _SPARE_THREADS
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(num_threads, thread_name_prefix="weir-grpc"),
            interceptors=[] if token is None else [Gate(token, refused, "this server", TOKEN_REMEDY, open_services)],
            maximum_concurrent_rpcs=num_threads,  # beyond: RESOURCE_EXHAUSTED, by gRPC itself
            options=[
                ("grpc.max_receive_message_length", options.max_body_bytes),
                ("grpc.so_reuseport", 0),  # else two servers could take the same port and share its requests
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        place = f"{options.host}:{options.grpc_port}"
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(place)
            else:
                self.port = self._server.add_secure_port(place, credentials)
        except RuntimeError:
            raise RequestError(
                f"gRPC cannot listen on {place}: the port is in use or the address is not this machine's; choose "
                "another --grpc-port, or 0 for a free one"
            ) from None
        self._server.start()

    def set_ready(self, is_ready: bool) -> None:
        """What health answers."""
        statuses = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            self._health.set(service, statuses.SERVING if is_ready else statuses.NOT_SERVING)

    def stop(self, grace_seconds: float) -> None:
        """Take no more calls, and wait for those that run."""
        stopped: threading.Event = self._server.stop(grace_seconds)
        stopped.wait()

    def _handlers(self) -> Any:
        methods: dict[str, Callable[[bytes, Any], bytes]] = {"Predict": self._predict, "Describe": self._describe}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(partial(self._answer, each)) for name, each in methods.items()},
        )

    def _answer(self, method: Callable[[bytes, Any], bytes], data: bytes, context: Any) -> bytes:
        try:
            return method(data, context)
        except Exception as error:
            self._metrics.answered("grpc", to_wire(error)[0])
            field = error.field if isinstance(error, MalformedError) else ""
            # Metadata is ASCII, and names of columns are whatever the data had.
            abort(
                context, error, *(((FIELD_KEY, field.encode("ascii", "backslashreplace").decode()),) if field else ())
            )

    def _predict(self, data: bytes, context: Any) -> bytes:
        remaining = context.time_remaining()
        return self.predict(data, self._options.timeout_seconds if remaining is None else remaining)

    def predict(self, data: bytes, timeout: float) -> bytes:
        """The bytes of a PredictReply to those of a PredictRequest, within so many seconds. Raises MalformedError,
        LateError, OverloadedError and DrainingError.
        """
        started = time.perf_counter()
        request = read_message(data, self._options.max_candidates)
        prediction = self._predictor.predict(request, started, timeout)
        encoding = time.perf_counter()
        reply = encode(prediction)
        self._metrics.observe("encode", time.perf_counter() - encoding)
        self._metrics.answered("grpc", "OK", request.num_candidates, prediction.num_unknown_keys)
        if self._log is not None:
            self._log.offer(prediction)
        return reply

    def _describe(self, data: bytes, context: Any) -> bytes:
        document = orjson.dumps(describe(self._predictor.model, self._options))
        return pb.DescribeReply(json=document.decode()).SerializeToString()


def encode(prediction: Prediction) -> bytes:
    """A PredictReply."""
    age = prediction.data_age_seconds
    return pb.PredictReply(
        scores=prediction.scores.tobytes(),
        num_tasks=len(prediction.tasks),
        version=prediction.version,
        data_age_seconds=-1.0 if age is None else age,
        num_unknown_keys=prediction.num_unknown_keys,
        request_id=prediction.request.request_id,
        timings=pb.Timings(
            decode_us=round(1e6 * prediction.decode_seconds),
            wait_us=round(1e6 * prediction.wait_seconds),
            rows_us=round(1e6 * prediction.rows_seconds),
            tower_us=round(1e6 * prediction.tower_seconds),
        ),
    ).SerializeToString()
