"""The gRPC shell of a shard: receives messages, hands them to the thread of work, carries errors over as statuses.

A sync server with a pool of threads. Each message holds a thread until its answer is there, and so do those that wait
for other ranks of their group: there are threads for a full queue, for a full group, and a few more, so that status
always answers.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from ps.errors import METADATA_KEY, RequestError, WeirError, to_wire
from ps.memory_limits import Threshold, thresholds_here
from ps.metrics import Metrics
from ps.shard import Observer, Shard
from ps.synchronous import MAX_WORLD
from ps.wire import MAX_MESSAGE_BYTES, weir_pb2_grpc
from ps.wire import weir_pb2 as pb
from ps.work import DEFAULT_CAPACITY, WorkThread

_MAX_DETAILS = 4000  # characters; gRPC limits the size of metadata
_SPARE_THREADS = 8
_log = logging.getLogger("weir.server")


class ShardServer:
    """A shard that listens. Not assigned yet: the coordinator, or whoever started it, sends Assign.

    host: loopback by default; there is no authentication, so bind other interfaces inside a trusted network only. port,
    metrics_port: 0 takes a free one; metrics_port None opens no endpoint. thresholds: as WorkThread has them. shard:
    makes the shard, which is told whom to report messages to. Raises RequestError for a port in use.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics_port: int | None = 0,
        capacity: int = DEFAULT_CAPACITY,
        advertised_host: str | None = None,
        thresholds: Callable[[], Sequence[Threshold]] = thresholds_here,
        shard: Callable[[Observer], Shard] = lambda observe: Shard(observe=observe),
    ) -> None:
        self.metrics = Metrics()
        made = shard(self.metrics.observe)  # before anybody can connect: one that recovers takes its time
        self.metrics_address = ""
        self._server = grpc.server(
            ThreadPoolExecutor(capacity + MAX_WORLD + _SPARE_THREADS, thread_name_prefix="weir-grpc"),
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # else two shards could take the same port and share its messages
                # Clients ping every 20 s while a call waits; the default would cut them off.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_frame_size", 4 << 20),
                ("grpc.http2.lookahead_bytes", 16 << 20),
            ],
        )
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            raise RequestError(
                f"a shard cannot listen on {host}:{port}: the port is in use or the address is not this machine's; "
                "choose another port, or 0 for a free one"
            )
        shown = advertised_host or host
        self.address = f"{shown}:{self.port}"
        if metrics_port is not None:
            self.metrics_address = f"{shown}:{self.metrics.serve(host, metrics_port)}"
        self.work = WorkThread(made, capacity, thresholds)
        self.metrics.watch(self.work)
        weir_pb2_grpc.add_ShardServicer_to_server(_Servicer(self), self._server)  # type: ignore[no-untyped-call]
        self._server.start()

    def wait(self) -> None:
        """Block until the server stops."""
        self._server.wait_for_termination()

    def stop(self, grace_seconds: float = 0.5) -> None:
        """Refuse new messages, give those that run a moment, and end all threads."""
        stopped: threading.Event = self._server.stop(grace_seconds)
        self.work.close()
        stopped.wait(grace_seconds + 10)
        self.metrics.close()


class _Servicer(weir_pb2_grpc.ShardServicer):
    def __init__(self, server: ShardServer) -> None:
        self._server = server

    def Execute(self, request: pb.Request, context: grpc.ServicerContext) -> pb.Reply:
        try:
            answer = self._server.work.execute(request)
        except RequestError as error:
            self._server.metrics.num_malformed += 1
            _abort(context, error)
        except Exception as error:
            _abort(context, error)
        try:
            return answer.result()
        except Exception as error:
            _abort(context, error)

    def Assign(self, request: pb.AssignRequest, context: grpc.ServicerContext) -> pb.AssignReply:
        try:
            return self._server.work.assign(request).result()
        except Exception as error:
            _abort(context, error)

    def Save(self, request: pb.SaveRequest, context: grpc.ServicerContext) -> pb.SaveReply:
        try:
            return self._server.work.save(request.directory, request.cut, begin=request.begin)
        except Exception as error:
            _abort(context, error)

    def Restore(self, request: pb.RestoreRequest, context: grpc.ServicerContext) -> pb.RestoreReply:
        try:
            return self._server.work.restore(request.directory, request.mapping, request.event_time)
        except Exception as error:
            _abort(context, error)

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        try:
            reply = self._server.work.status()
            reply.metrics_address = self._server.metrics_address
        except Exception as error:
            _abort(context, error)
        return reply


def _abort(context: Any, error: Exception) -> NoReturn:
    """End a call with the status of an error."""
    if not isinstance(error, WeirError):
        _log.error("a message failed unexpectedly", exc_info=error)
    code, message, name = to_wire(error)
    context.set_trailing_metadata(((METADATA_KEY, name),))
    context.abort(grpc.StatusCode[code], message[:_MAX_DETAILS])
    raise AssertionError("abort raises")


assert sys.byteorder == "little", "the wire carries raw little-endian arrays"
