"""The gRPC shell of a replica: proto/replica.proto, on a pool of threads that all read the same rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import numpy as np

from ps.errors import RequestError
from ps.following import Follower
from ps.grpc_shell import Gate, abort, credentials_of
from ps.replica import Replica
from ps.replica_metrics import ReplicaMetrics
from ps.security import Limits, SecurityOptions, read_token, warn_if_open
from ps.types import Rows
from ps.wire import replica_pb2 as pb
from ps.wire.arrays import ITEM_BYTES, encode_floats
from ps.wire.reading import read_control

SERVICE = "weir.replica.v1.Replica"
_REMEDY = "set token_file to the file that it was started with"
_ROWS_TAG = bytes([15 << 3 | 2])  # LookupReply.rows
_KEY_BYTES = 8


class ReplicaServer:
    """Listens from its making to `stop`. port: that which was taken."""

    def __init__(
        self,
        replica: Replica,
        follower: Follower | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics_port: int | None = 0,
        num_threads: int = 8,
        security: SecurityOptions | None = None,
    ) -> None:
        """host: loopback by default; other interfaces without a token print a warning. port, metrics_port: 0 takes a
        free one; metrics_port None opens no endpoint. num_threads: calls that are answered at the same time. Raises
        RequestError for a port in use, and for files of `security` that do not do.
        """
        security = security or SecurityOptions()
        warn_if_open(host, security, who="rows are served", risk="read rows", remedy="give --token-file")
        token, credentials, limits = read_token(security), credentials_of(security), security.limits
        self.metrics = ReplicaMetrics(replica, follower)
        servicer = _Servicer(replica, follower, self.metrics, limits)
        self._server = grpc.server(
            ThreadPoolExecutor(num_threads, thread_name_prefix="weir-grpc"),
            interceptors=[] if token is None else [Gate(token, self.metrics.not_allowed, "this replica", _REMEDY)],
            maximum_concurrent_rpcs=8 * num_threads,  # beyond: RESOURCE_EXHAUSTED, by gRPC itself
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", limits.max_message_bytes),
                ("grpc.so_reuseport", 0),  # else two replicas could take the same port and share its calls
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_frame_size", 4 << 20),
                ("grpc.http2.lookahead_bytes", 16 << 20),
            ],
        )
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            add, secure = self._server.add_insecure_port, self._server.add_secure_port
            self.port = add(place) if credentials is None else secure(place, credentials)
        except RuntimeError:
            raise RequestError(
                f"a replica cannot listen on {place}: the port is in use or the address is not this machine's; choose "
                "another --port, or 0 for a free one"
            ) from None
        self.address = f"{place.rpartition(':')[0]}:{self.port}"
        self.metrics_address = servicer.metrics_address = (
            "" if metrics_port is None else f"{place.rpartition(':')[0]}:{self.metrics.serve(host, metrics_port)}"
        )
        self._server.start()

    def stop(self, grace_seconds: float = 1.0) -> None:
        """Take no more calls, and give those that run a moment."""
        stopped: threading.Event = self._server.stop(grace_seconds)
        stopped.wait(grace_seconds + 5)
        self.metrics.close()


class _Servicer:
    """The methods of the service, from bytes to bytes."""

    def __init__(self, replica: Replica, follower: Follower | None, metrics: ReplicaMetrics, limits: Limits) -> None:
        self.metrics_address = ""
        self._replica, self._follower, self._metrics, self._limits = replica, follower, metrics, limits

    def handlers(self) -> Any:
        methods: dict[str, Callable[[bytes], bytes]] = {"Lookup": self._lookup, "Status": self._status}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(partial(self._answer, each)) for name, each in methods.items()},
        )

    def _answer(self, method: Callable[[bytes], bytes], data: bytes, context: Any) -> bytes:
        try:
            return method(data)
        except Exception as error:
            self._metrics.failed()
            abort(context, error)

    def _lookup(self, data: bytes) -> bytes:
        begun = time.perf_counter()
        request = read_control(pb.LookupRequest(), data, self._limits.max_message_bytes)
        table = self._replica.table(request.table)
        num_keys, rest = divmod(len(request.keys), _KEY_BYTES)
        if rest:
            raise RequestError(f"keys of {len(request.keys)} bytes; they are uint64, 8 bytes each")
        if request.dtype not in ITEM_BYTES:
            raise RequestError(f"dtype {request.dtype}; it is 0 (float32), 1 (float16) or 2 (bfloat16)")
        num_bytes, limits = num_keys * table.width * ITEM_BYTES[request.dtype], self._limits
        if num_keys > limits.max_keys_per_request or num_bytes > limits.max_message_bytes:
            raise RequestError(
                f"{num_keys} keys of table {request.table!r} are {num_bytes} bytes of rows; the limits are "
                f"{limits.max_keys_per_request} keys and {limits.max_message_bytes} bytes: ask for fewer at a time"
            )
        version, age = self._replica.version, self._replica.lag(time.time()).seconds  # of no later than the rows
        rows, num_unknown = table.pull(np.frombuffer(request.keys, "<u8"))
        head = pb.LookupReply(width=table.width, num_unknown=num_unknown, age_seconds=age, version=version or "")
        reply = _with_rows(head, rows, request.dtype)
        self._metrics.answered(request.table, num_keys, num_unknown, time.perf_counter() - begun)
        return reply

    def _status(self, data: bytes) -> bytes:
        read_control(pb.ReplicaStatusRequest(), data)
        replica, follower, lag = self._replica, self._follower, self._replica.lag(time.time())
        reply = pb.ReplicaStatusReply(
            tables={
                name: pb.ReplicaTable(rows=table.num_rows, bytes=table.memory_bytes, width=table.width)
                for name, table in replica.tables.items()
            },
            positions=replica.positions,
            version=replica.version or "",
            age_seconds=lag.seconds,
            records_behind=lag.records,
            needs_bundle=follower is not None and follower.needs_bundle,
            trouble="" if follower is None else follower.trouble,
            metrics_address=self.metrics_address,
        )
        return reply.SerializeToString()


def _with_rows(head: pb.LookupReply, rows: Rows, dtype: int) -> bytes:
    """The reply's bytes, the rows copied once: protobuf would copy them twice."""
    data = rows.reshape(-1).data.cast("B") if dtype == 0 and rows.size else encode_floats(rows, dtype)
    return b"".join((head.SerializeToString(), _ROWS_TAG, _varint(len(data)), data))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
