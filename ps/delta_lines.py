"""Partitions streamed by their shards over gRPC: a source for ps/following.py where replicas share no disk with them.

Any shard tells where all are; a partition is asked of the shard of its number. Shards say something at least every
second, so a silent line is cut.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from ps.deltas.batches import read_batches
from ps.errors import DeltaError, UnavailableError, WeirError
from ps.following import Delivery
from ps.security import SecurityOptions
from ps.transport import GrpcTransport, error_of
from ps.wire import weir_pb2 as pb

_STATUS_SECONDS = 2.0
_SILENT_SECONDS = 5.0


class DeltaLines:
    """addresses: host:port of some shards. Those that a routing names later are asked too."""

    def __init__(self, addresses: Sequence[str], security: SecurityOptions | None = None) -> None:
        """security: as the shards'. Raises RequestError for files that do not do."""
        self._given = tuple(addresses)
        self._transport = GrpcTransport(security)
        self._lock = threading.Lock()
        self._epoch = -1
        self._places: dict[int, str] = {}  # by partition
        self._lines: set[ShardLine] = set()

    def partitions(self) -> Collection[int]:
        """Of the newest routing that a shard tells; silent lines are cut on the way."""
        self._cut_silent()
        problems, newest = [], None
        with self._lock:
            asked = list(dict.fromkeys([*self._places.values(), *self._given]))
        for address in asked:
            try:
                status = self._transport.send(address, "Status", pb.StatusRequest(), _STATUS_SECONDS).result()
                _check(status, address)
            except WeirError as error:
                problems.append(f"{address}: {error}")
                continue
            if newest is None or status.routing.epoch > newest.epoch:
                newest = status.routing
            if newest.epoch >= self._epoch:
                break  # else it may be a process that others have taken the place of
        if newest is None:
            raise UnavailableError(f"no shard tells where the others are ({'; '.join(problems)})")
        with self._lock:
            self._epoch, self._places = newest.epoch, dict(enumerate(newest.addresses))
            return self._places.keys()

    def open(self, partition: int, next_offset: int) -> ShardLine:
        with self._lock:
            address = self._places.get(partition)
        if address is None:
            raise UnavailableError(f"no shard has partition {partition}")
        line = ShardLine(self._transport, address, next_offset, self._forget)
        with self._lock:
            self._lines.add(line)
        return line

    def close(self) -> None:
        self._transport.close()

    def _cut_silent(self) -> None:
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.cut_if_silent()

    def _forget(self, line: ShardLine) -> None:
        with self._lock:
            self._lines.discard(line)


class ShardLine:
    """One stream. `read` by one thread, the rest by any."""

    def __init__(self, transport: GrpcTransport, address: str, next_offset: int, forget: Any) -> None:
        self._address, self._forget = address, forget
        self._channel = transport.open(address)
        ask = self._channel.unary_stream(
            "/weir.v1.Shard/Deltas",
            request_serializer=pb.DeltasRequest.SerializeToString,
            response_deserializer=pb.DeltasReply.FromString,
        )
        self._call = ask(pb.DeltasRequest(next_offset=next_offset), metadata=transport.metadata)
        self._replies: Iterator[pb.DeltasReply] = iter(self._call)
        self._heard_at, self._is_silent = time.monotonic(), False

    def read(self) -> Delivery:
        pieces = []
        try:
            while True:
                reply = next(self._replies)
                self._heard_at = time.monotonic()
                pieces.append(reply.frames)
                if reply.offset:
                    break
        except StopIteration:
            raise UnavailableError(f"the shard at {self._address} ended the stream") from None
        except grpc.RpcError as error:
            if self._is_silent:
                raise UnavailableError(f"the shard at {self._address} is silent") from None
            raise error_of(error) from None
        batches = read_batches(b"".join(pieces), f"the stream of {self._address}")
        return Delivery(batches, time.time(), reply.offset >= reply.end_offset, reply.end_total)

    def cut_if_silent(self) -> None:
        """End it where the shard has said nothing for long: it is frozen, or the network is cut without a word."""
        if time.monotonic() - self._heard_at > _SILENT_SECONDS:
            self._is_silent = True
            self._call.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._call.cancel()  # type: ignore[no-untyped-call]
        with suppress(ValueError):  # closed already
            self._channel.close()
        self._forget(self)


def _check(status: pb.StatusReply, address: str) -> None:
    if not status.cluster_spec or not status.routing.addresses:
        raise UnavailableError("it has no place in a cluster yet")
    if json.loads(status.cluster_spec).get("deltas") is None:
        raise DeltaError(f"the cluster of {address} publishes no deltas: set cluster.deltas in its recipe")
