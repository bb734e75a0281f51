"""How a message reaches a shard: one narrow method, two ways. Both carry the same messages, so both round alike.

`send` never blocks and never raises; the future it returns resolves on any thread, with the reply or with an error of
ps/errors.py. No retries here: those live in ps/rounds.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeAlias

import grpc

from ps.errors import METADATA_KEY, NotAllowedError, RequestError, UnavailableError, WeirError, from_wire, to_wire
from ps.security import SecurityOptions, client_identity, read_token, token_metadata
from ps.wire import weir_pb2 as pb

Method: TypeAlias = Literal[
    "Execute", "Assign", "Save", "Restore", "Status", "Give", "Take", "Pair", "Replicate", "Mark"
]
REPLIES: Mapping[Method, Any] = {
    "Execute": pb.Reply,
    "Assign": pb.AssignReply,
    "Save": pb.SaveReply,
    "Restore": pb.RestoreReply,
    "Status": pb.StatusReply,
    "Give": pb.GiveReply,
    "Take": pb.TakeReply,
    "Pair": pb.PairReply,
    "Replicate": pb.ReplicateReply,
    "Mark": pb.MarkReply,
}
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A cut connection without a reset is noticed after keepalive_time + keepalive_timeout, and only while a call waits.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted shard is found again at the pace of our own retries, not of gRPC's (1 s, doubling).
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),  # in spite of its name what a try to connect may last
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # each client object has connections of its own
    ("grpc.enable_retries", 0),
)


# In what gRPC says of a TLS handshake that no second try would mend.
_HANDSHAKE_SIGNS = ("certificate", "verification check failed", "wrong_version_number")


TAKE_SECONDS = 60.0


class TimedOutError(UnavailableError):
    """No answer within the time given to one message: the shard is frozen, or far too slow. Not tried again."""


class ClosedError(UnavailableError):
    """The transport was closed before the answer came. Not tried again."""


class Transport(Protocol):
    crosses_processes: bool  # messages are copied on their way, so large arrays are better shared

    def send(self, address: str, method: Method, message: Any, timeout_seconds: float) -> Future[Any]:
        """Send one message and return the future of its reply."""
        ...

    def deltas(self, address: str, request: pb.DeltasRequest) -> Iterator[pb.DeltasReply]:
        """A shard's delta stream from an offset on, without end; closing the iterator hangs up. Raises what the shard
        raises, and UnavailableError where it cannot be reached (any more).
        """
        ...

    def close(self) -> None:
        """Give back connections. Futures still open resolve with UnavailableError."""
        ...


class GrpcTransport:
    """One channel per address, opened on first use. Thread-safe. security: that of the shards; its files are read at
    once. Raises RequestError for one that does not do.
    """

    crosses_processes = True

    def __init__(self, security: SecurityOptions | None = None) -> None:
        security = security or SecurityOptions()
        self.metadata = token_metadata(read_token(security))
        self._credentials = _credentials(security)
        self._max_bytes = security.limits.max_message_bytes
        self._options = (
            *CHANNEL_OPTIONS,
            ("grpc.max_send_message_length", self._max_bytes),
            ("grpc.max_receive_message_length", self._max_bytes),
        )
        if security.tls is not None and security.tls.server_name is not None:
            self._options += (("grpc.ssl_target_name_override", security.tls.server_name),)
        self._channels: dict[str, grpc.Channel] = {}
        self._methods: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._closed = False

    def send(self, address: str, method: Method, message: Any, timeout_seconds: float) -> Future[Any]:
        answer: Future[Any] = Future()
        try:
            call = self._method(address, method).future(message, timeout=timeout_seconds, metadata=self.metadata)
        except ValueError:  # a channel closed meanwhile
            answer.set_exception(ClosedError("the client was closed"))
            return answer
        call.add_done_callback(lambda done: _resolve(answer, done, timeout_seconds))
        return answer

    def deltas(self, address: str, request: pb.DeltasRequest) -> Iterator[pb.DeltasReply]:
        try:
            call = self._method(address, "Deltas")(request, metadata=self.metadata)
        except ValueError:
            raise ClosedError("the client was closed") from None
        try:
            yield from call
        except grpc.FutureCancelledError:
            raise ClosedError("the client was closed") from None
        except grpc.RpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            channels, self._channels, self._methods = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    def _method(self, address: str, method: Method | Literal["Deltas"]) -> Any:
        with self._lock:
            if self._closed:
                raise ValueError("closed")
            known = self._methods.get((address, method))
            if known is None:
                channel = self._channels.get(address)
                if channel is None:
                    channel = self._channels[address] = self.open(address)
                make, reply = (
                    (channel.unary_stream, pb.DeltasReply)
                    if method == "Deltas"
                    else (channel.unary_unary, REPLIES[method])
                )
                known = self._methods[address, method] = make(
                    f"/weir.v1.Shard/{method}",
                    request_serializer=_serialize,
                    response_deserializer=reply.FromString,
                )
            return known

    def open(self, address: str) -> grpc.Channel:
        """A channel of its own, which the caller closes. Calls send `metadata` along."""
        if self._credentials is None:
            return grpc.insecure_channel(address, options=self._options)
        return grpc.secure_channel(address, self._credentials, options=self._options)


class Host(Protocol):
    """A shard's thread of work, as ps.work.WorkThread is one."""

    def execute(self, request: pb.Request) -> Future[pb.Reply]: ...

    def assign(self, request: pb.AssignRequest) -> Future[pb.AssignReply]: ...

    def save(self, directory: str, cut: int, *, begin: bool, since: int, tracks: bool) -> pb.SaveReply: ...

    def restore(self, directory: str, mapping: bytes, event_time: int) -> pb.RestoreReply: ...

    def status(self, *, wants_buckets: bool = False, wants_partitions: bool = False) -> pb.StatusReply: ...

    def give(self, request: pb.GiveRequest) -> pb.GiveReply: ...

    def take(self, request: pb.TakeRequest) -> Future[pb.TakeReply]: ...

    def mark(self, request: pb.MarkRequest) -> Future[pb.MarkReply]: ...

    def deltas(self, request: pb.DeltasRequest, goes_on: Callable[[], bool]) -> Iterator[pb.DeltasReply]: ...


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

    def deltas(self, address: str, request: pb.DeltasRequest) -> Iterator[pb.DeltasReply]:
        host = self._hosts.get(address)
        if host is None:
            raise UnavailableError(f"no shard has the address {address!r} in this process")
        yield from host.deltas(request, lambda: not self._closed)
        raise ClosedError("the client was closed")

    def close(self) -> None:
        self._closed = True
        self._blocking.shutdown(wait=False)

    def _start(self, host: Host, method: Method, message: Any) -> Future[Any]:
        if method == "Execute":
            return host.execute(message)
        if method == "Assign":
            return host.assign(message)
        if method == "Save":
            asked = {"begin": message.begin, "since": message.since, "tracks": message.tracks}
            return self._blocking.submit(host.save, message.directory, message.cut, **asked)
        if method == "Restore":
            return self._blocking.submit(host.restore, message.directory, message.mapping, message.event_time)
        if method == "Give":
            return self._blocking.submit(host.give, message)
        if method == "Take":
            return host.take(message)
        if method == "Mark":
            return host.mark(message)
        return self._blocking.submit(
            host.status, wants_buckets=message.wants_buckets, wants_partitions=message.wants_partitions
        )


def send_part(transport: Transport, address: str, part: pb.TakeRequest) -> Future[pb.TakeReply]:
    """A part of moving buckets, to the shard that takes them."""
    return transport.send(address, "Take", part, TAKE_SECONDS)


def _copy(answer: Future[Any], done: Future[Any]) -> None:
    """Carry an outcome over; an error that was not raised on purpose becomes what the wire would make of it."""
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error if isinstance(error, WeirError) else from_wire(*to_wire(error)))


def _credentials(security: SecurityOptions) -> grpc.ChannelCredentials | None:
    identity = client_identity(security)
    if identity is None:
        return None
    return grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)


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
        answer.set_exception(error_of(failure))


def error_of(failure: Any) -> WeirError:
    """The class that the shard raised, or what a status of gRPC itself means."""
    name = next((value for key, value in failure.trailing_metadata() or () if key == METADATA_KEY), None)
    details = failure.details() or ""
    if name is None and any(sign in details.lower() for sign in _HANDSHAKE_SIGNS):
        return NotAllowedError(
            f"the TLS handshake failed ({details}); look at cluster.security.tls: whether shards use it, authority, "
            "and server_name where the shards' certificates do not name their addresses"
        )
    if name is None and failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RequestError(
            f"{details}: send fewer keys at a time, or raise cluster.security.limits.max_message_bytes at both ends"
        )
    if name is None and "failed to connect" in details and "Socket closed" in details:
        details += " (it hangs up: it may expect TLS, or a client certificate of its authority: cluster.security.tls)"
    return from_wire(failure.code().name, details, name)
