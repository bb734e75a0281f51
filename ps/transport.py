"""How a message reaches a shard: one narrow method, two ways. Both carry the same messages, so both round alike.

`send` never blocks and never raises; the future it returns resolves on any thread, with the reply or with an error of
ps/errors.py. No retries here: those live in ps/rounds.py.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeAlias

import grpc

from ps.errors import METADATA_KEY, UnavailableError, WeirError, from_wire, to_wire
from ps.wire import MAX_MESSAGE_BYTES
from ps.wire import weir_pb2 as pb

Method: TypeAlias = Literal["Execute", "Assign", "Save", "Restore", "Status"]
REPLIES: Mapping[Method, Any] = {
    "Execute": pb.Reply,
    "Assign": pb.AssignReply,
    "Save": pb.SaveReply,
    "Restore": pb.RestoreReply,
    "Status": pb.StatusReply,
}
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A cut connection without a reset is noticed after keepalive_time + keepalive_timeout, and only while a call waits.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted shard is found again at the pace of our own retries, not of gRPC's (1 s, doubling).
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # each client object has connections of its own
    ("grpc.enable_retries", 0),
)


class TimedOutError(UnavailableError):
    """No answer within the time given to one message: the shard is frozen, or far too slow. Not tried again."""


class ClosedError(UnavailableError):
    """The transport was closed before the answer came. Not tried again."""


class Transport(Protocol):
    crosses_processes: bool  # messages are copied on their way, so large arrays are better shared

    def send(self, address: str, method: Method, message: Any, timeout_seconds: float) -> Future[Any]:
        """Send one message and return the future of its reply."""
        ...

    def close(self) -> None:
        """Give back connections. Futures still open resolve with UnavailableError."""
        ...


class GrpcTransport:
    """One channel per address, opened on first use. Thread-safe."""

    crosses_processes = True

    def __init__(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}
        self._methods: dict[tuple[str, Method], Any] = {}
        self._lock = threading.Lock()
        self._closed = False

    def send(self, address: str, method: Method, message: Any, timeout_seconds: float) -> Future[Any]:
        answer: Future[Any] = Future()
        try:
            call = self._method(address, method).future(message, timeout=timeout_seconds)
        except ValueError:  # a channel closed meanwhile
            answer.set_exception(ClosedError("the client was closed"))
            return answer
        call.add_done_callback(lambda done: _resolve(answer, done, timeout_seconds))
        return answer

    def close(self) -> None:
        with self._lock:
            self._closed = True
            channels, self._channels, self._methods = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    def _method(self, address: str, method: Method) -> Any:
        with self._lock:
            if self._closed:
                raise ValueError("closed")
            known = self._methods.get((address, method))
            if known is None:
                channel = self._channels.get(address)
                if channel is None:
                    channel = self._channels[address] = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
                known = self._methods[address, method] = channel.unary_unary(
                    f"/weir.v1.Shard/{method}",
                    request_serializer=_serialize,
                    response_deserializer=REPLIES[method].FromString,
                )
            return known


class Host(Protocol):
    """A shard's thread of work, as ps.work.WorkThread is one."""

    def execute(self, request: pb.Request) -> Future[pb.Reply]: ...

    def assign(self, request: pb.AssignRequest) -> Future[pb.AssignReply]: ...

    def save(self, directory: str, cut: int, *, begin: bool) -> pb.SaveReply: ...

    def restore(self, directory: str, mapping: bytes, event_time: int) -> pb.RestoreReply: ...

    def status(self) -> pb.StatusReply: ...


class InProcessTransport:
    """Calls the shards' own threads of work. hosts: by address, any text. Timeouts do not apply: nothing here can
    freeze alone.
    """

    crosses_processes = False

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts
        self._blocking = ThreadPoolExecutor(max(1, len(hosts)), thread_name_prefix="weir-control")
        self._closed = False

    def send(self, address: str, method: Method, message: Any, timeout_seconds: float) -> Future[Any]:
        answer: Future[Any] = Future()
        host = self._hosts.get(address)
        if self._closed:
            answer.set_exception(ClosedError("the client was closed"))
        elif host is None:
            answer.set_exception(UnavailableError(f"no shard has the address {address!r} in this process"))
        else:
            try:
                self._start(host, method, message).add_done_callback(lambda done: _copy(answer, done))
            except WeirError as error:
                answer.set_exception(error)
        return answer

    def close(self) -> None:
        self._closed = True
        self._blocking.shutdown(wait=False)

    def _start(self, host: Host, method: Method, message: Any) -> Future[Any]:
        if method == "Execute":
            return host.execute(message)
        if method == "Assign":
            return host.assign(message)
        if method == "Save":
            return self._blocking.submit(host.save, message.directory, message.cut, begin=message.begin)
        if method == "Restore":
            return self._blocking.submit(host.restore, message.directory, message.mapping, message.event_time)
        return self._blocking.submit(host.status)


def _copy(answer: Future[Any], done: Future[Any]) -> None:
    """Carry an outcome over; an error that was not raised on purpose becomes what the wire would make of it."""
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error if isinstance(error, WeirError) else from_wire(*to_wire(error)))


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _resolve(answer: Future[Any], done: Any, timeout_seconds: float) -> None:
    """Carry the outcome of a gRPC call over, its status as the error class that the shard raised."""
    if done.cancelled():
        answer.set_exception(ClosedError("the client was closed"))
        return
    failure = done.exception()
    if failure is None:
        answer.set_result(done.result())
    elif failure.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        answer.set_exception(TimedOutError(f"no answer within {timeout_seconds:g} s"))
    else:
        name = next((value for key, value in failure.trailing_metadata() or () if key == METADATA_KEY), None)
        answer.set_exception(from_wire(failure.code().name, failure.details() or "", name))
