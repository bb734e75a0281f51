"""The gRPC shell of a shard: receives messages, hands them to the thread of work, carries errors over as statuses.

A sync server with a pool of threads. Each message holds a thread until its answer is there, and so do those that wait
for other ranks of their group: there are threads for a full queue, for a full group, for streams of deltas, and a few
more, so that status always answers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from ps.errors import OverloadedError, RequestError
from ps.grpc_shell import Gate, abort, credentials_of
from ps.member import Member
from ps.memory_limits import Threshold, thresholds_here
from ps.metrics import Metrics
from ps.security import SecurityOptions, read_token, warn_if_open
from ps.shard import Observer, Shard
from ps.synchronous import MAX_WORLD
from ps.transport import GrpcTransport, send_part
from ps.wire import weir_pb2 as pb
from ps.wire.reading import read_control, read_frames, read_request
from ps.work import DEFAULT_CAPACITY, WorkThread

_SPARE_THREADS = 8
_TOKEN_REMEDY = "set cluster.security.token_file to the file that the shards were started with"
_MAX_STREAMS = 64  # of deltas at a time; each holds a thread


class ShardServer:
    """A shard that listens. Not assigned yet: the coordinator, or whoever started it, sends Assign.

    host: loopback by default; other interfaces without a token print a warning. port, metrics_port: 0 takes a free one;
    metrics_port None opens no endpoint. thresholds: as WorkThread has them. shard: makes the shard, which is told whom
    to report messages to. member: makes this a process of a pair. security: its files are read at once. Raises
    RequestError for a port in use, and for files of `security` that do not do.
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
        security: SecurityOptions | None = None,
        member: Callable[[WorkThread], Member] | None = None,
    ) -> None:
        security = security or SecurityOptions()
        token, credentials, limits = read_token(security), credentials_of(security), security.limits
        warn_if_open(host, security)
        self.metrics = Metrics()
        made = shard(self.metrics.observe)  # before anybody can connect: one that recovers takes its time
        self.metrics_address = ""
        self._server = grpc.server(
            ThreadPoolExecutor(capacity + MAX_WORLD + _SPARE_THREADS + _MAX_STREAMS, thread_name_prefix="weir-grpc"),
            interceptors=[] if token is None else [Gate(token, self._refused, "this shard", _TOKEN_REMEDY)],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", limits.max_message_bytes),
                ("grpc.so_reuseport", 0),  # else two shards could take the same port and share its messages
                # Clients ping every 20 s while a call waits; the default would cut them off.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_frame_size", 4 << 20),
                ("grpc.http2.lookahead_bytes", 16 << 20),
            ],
        )
        try:
            place = f"{host}:{port}"
            add, secure = self._server.add_insecure_port, self._server.add_secure_port
            self.port = add(place) if credentials is None else secure(place, credentials)
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
        self._others = GrpcTransport(security)
        self.work = WorkThread(made, capacity, thresholds, limits, partial(send_part, self._others))
        self.member = None if member is None else member(self.work)
        self.metrics.watch(self.work)
        self._server.add_generic_rpc_handlers((_Servicer(self, limits.max_message_bytes).handlers(),))
        self._server.start()

    def _refused(self) -> None:
        self.metrics.num_not_allowed += 1

    def wait(self) -> None:
        """Block until the server stops."""
        self._server.wait_for_termination()

    def stop(self, grace_seconds: float = 0.5) -> None:
        """Refuse new messages, give those that run a moment, and end all threads."""
        stopped: threading.Event = self._server.stop(grace_seconds)
        self.work.close()
        if self.member is not None:
            self.member.close()
        self._others.close()
        stopped.wait(grace_seconds + 10)
        self.metrics.close()


class _Servicer:
    """The methods of the service, from bytes to replies."""

    def __init__(self, server: ShardServer, max_message_bytes: int) -> None:
        self._server, self._max_bytes = server, max_message_bytes
        self._streams = threading.BoundedSemaphore(_MAX_STREAMS)

    def handlers(self) -> Any:
        methods: tuple[Callable[[bytes], Any], ...] = (
            self.execute,
            self.assign,
            self.save,
            self.restore,
            self.status,
            self.give,
            self.take,
            self.mark,
        )
        if self._server.member is not None:
            methods += (self.pair, self.replicate)
        made = {
            method.__name__.capitalize(): grpc.unary_unary_rpc_method_handler(
                partial(_answer, method), response_serializer=_serialize
            )
            for method in methods
        }
        made["Deltas"] = grpc.unary_stream_rpc_method_handler(self.deltas, response_serializer=_serialize)
        return grpc.method_handlers_generic_handler("weir.v1.Shard", made)

    def execute(self, data: bytes) -> pb.Reply:
        try:
            answer = self._server.work.execute(read_request(data))
        except RequestError:
            self._server.metrics.num_malformed += 1
            raise
        return answer.result()

    def assign(self, data: bytes) -> pb.AssignReply:
        return self._server.work.assign(read_control(pb.AssignRequest(), data)).result()

    def save(self, data: bytes) -> pb.SaveReply:
        request = read_control(pb.SaveRequest(), data)
        work = self._server.work
        return work.save(
            request.directory, request.cut, begin=request.begin, since=request.since, tracks=request.tracks
        )

    def restore(self, data: bytes) -> pb.RestoreReply:
        request = read_control(pb.RestoreRequest(), data)
        return self._server.work.restore(request.directory, request.mapping, request.event_time)

    def give(self, data: bytes) -> pb.GiveReply:
        return self._server.work.give(read_control(pb.GiveRequest(), data))

    def take(self, data: bytes) -> pb.TakeReply:
        return self._server.work.take(read_control(pb.TakeRequest(), data, self._max_bytes)).result()

    def mark(self, data: bytes) -> pb.MarkReply:
        return self._server.work.mark(read_control(pb.MarkRequest(), data)).result()

    def deltas(self, data: bytes, context: grpc.ServicerContext) -> Iterator[pb.DeltasReply]:
        if not self._streams.acquire(blocking=False):
            abort(context, OverloadedError(f"{_MAX_STREAMS} replicas follow this shard; read its files, or wait"))
        try:
            yield from self._server.work.deltas(read_control(pb.DeltasRequest(), data), context.is_active)
        except Exception as error:
            abort(context, error)
        finally:
            self._streams.release()

    def status(self, data: bytes) -> pb.StatusReply:
        request = read_control(pb.StatusRequest(), data)
        reply = self._server.work.status(wants_buckets=request.wants_buckets, wants_partitions=request.wants_partitions)
        reply.metrics_address = self._server.metrics_address
        if self._server.member is not None:
            reply.pair.CopyFrom(self._server.member.status())
        return reply

    def pair(self, data: bytes) -> pb.PairReply:
        assert self._server.member is not None
        return self._server.member.order(read_control(pb.PairRequest(), data))

    def replicate(self, data: bytes) -> pb.ReplicateReply:
        assert self._server.member is not None
        self._server.member.replicate(read_frames(data)).result()
        return pb.ReplicateReply()


def _serialize(reply: Any) -> bytes:
    data: bytes = reply.SerializeToString()
    return data


def _answer(method: Callable[[bytes], Any], data: bytes, context: grpc.ServicerContext) -> Any:
    try:
        return method(data)
    except Exception as error:
        abort(context, error)


assert sys.byteorder == "little", "the wire carries raw little-endian arrays"
