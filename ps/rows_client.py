"""A client of a replica process (proto/replica.proto): rows by key, as one array."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import grpc
import numpy as np

from ps.errors import RequestError
from ps.security import SecurityOptions
from ps.transport import GrpcTransport, TimedOutError, error_of
from ps.types import Keys, Rows
from ps.wire import replica_pb2 as pb
from ps.wire.arrays import DTYPES, WireName, decode_floats

_SERVICE = "/weir.replica.v1.Replica"


class Looked(NamedTuple):
    """What a lookup found. num_unknown: keys without a row, which read as in training. age_seconds: the rows are
    complete as of so long ago. version: of the newest marker, or empty.
    """

    rows: Rows
    num_unknown: int
    age_seconds: float
    version: str


class RowsClient:
    """Thread-safe; calls of several threads are under way at the same time. No retries: a replica is read-only, so
    whoever needs an answer asks the next one.
    """

    def __init__(self, address: str, security: SecurityOptions | None = None, *, timeout_seconds: float = 10.0) -> None:
        """address: host:port. security: token and certificates, as for shards. Raises RequestError for files that do
        not do.
        """
        self._timeout = timeout_seconds
        self._transport = GrpcTransport(security)
        self._channel = self._transport.open(address)
        self._lookup = self._channel.unary_unary(f"{_SERVICE}/Lookup", None, None)
        self._status = self._channel.unary_unary(f"{_SERVICE}/Status", None, None)

    def lookup(self, table: str, keys: Keys, *, dtype: WireName = "fp32") -> Rows:
        """float32 [n, width] of any keys, duplicates too. dtype: how they travel; of fp32 the array cannot be written.

        Raises RequestError for a mistake, UnavailableError where the replica does not answer.
        """
        return self.ask(table, keys, dtype=dtype).rows

    def ask(self, table: str, keys: Keys, *, dtype: WireName = "fp32") -> Looked:
        """As `lookup`, with what the replica says of the rows."""
        if dtype not in DTYPES:
            raise RequestError(f"dtype {dtype!r}; it is one of {', '.join(DTYPES)}")
        data = np.ascontiguousarray(keys, "<u8").tobytes()
        request = pb.LookupRequest(table=table, keys=data, dtype=int(DTYPES[dtype]))
        reply = pb.LookupReply.FromString(self._call(self._lookup, request.SerializeToString()))
        rows = decode_floats(reply.rows, request.dtype, reply.width)
        return Looked(rows, reply.num_unknown, reply.age_seconds, reply.version)

    def status(self) -> pb.ReplicaStatusReply:
        """Rows, positions, age and troubles. Raises as `lookup` does."""
        return pb.ReplicaStatusReply.FromString(self._call(self._status, b""))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> RowsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, data: bytes) -> bytes:
        try:
            answer: bytes = method(data, timeout=self._timeout, metadata=self._transport.metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimedOutError(f"the replica did not answer within {self._timeout:g} s") from None
            raise error_of(error) from None
        return answer
