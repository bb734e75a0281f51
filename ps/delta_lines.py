"""Partitions streamed by their shards over gRPC: a source for ps/following.py where replicas share no disk with them.

Any shard tells where all are; a partition is asked of the shard of its number. One whose shard is gone is asked of any
that has its files, where a version needs it. Shards say something at least every second, so a silent line is cut.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from ps.deltas.serving import received
from ps.errors import DeltaError, UnavailableError, WeirError
from ps.following import Delivery
from ps.security import SecurityOptions
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb

_STATUS_SECONDS = 2.0
_SILENT_SECONDS = 5.0


class DeltaLines:
    """addresses: host:port of some shards. Those that a routing names later are asked too."""

    def __init__(self, addresses: Sequence[str], security: SecurityOptions | None = None) -> None:
        """security: as the shards'. Raises RequestError for files that do not do."""
        self._given = tuple(addresses)
        self._security, self._transport = security, GrpcTransport(security)
        self._lock = threading.Lock()
        self._epoch = -1
        self._places: dict[int, str] = {}  # by partition
        self._past: dict[int, str] = {}  # of partitions whose shards are gone, who has them
        self._lines: set[ShardLine] = set()

    def partitions(self, wanted: Collection[int] = ()) -> Collection[int]:
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
            places = dict(self._places)
        past = self._find_past(set(wanted) - places.keys(), places.values())
        with self._lock:
            self._past = past
        return places.keys() | past.keys()

    def open(self, partition: int, next_offset: int) -> ShardLine:
        with self._lock:
            own, past = self._places.get(partition), self._past.get(partition)
        request = pb.DeltasRequest(next_offset=next_offset)
        if own is None:
            request.partition = partition
        if (address := own or past) is None:
            raise UnavailableError(f"no shard has partition {partition}")
        line = ShardLine(address, self._security, request, self._forget)
        with self._lock:
            self._lines.add(line)
        return line

    def close(self) -> None:
        self._transport.close()

    def _find_past(self, missing: set[int], addresses: Iterable[str]) -> dict[int, str]:
        """Who has the files of these partitions, by partition."""
        found: dict[int, str] = {}
        request = pb.StatusRequest(wants_partitions=True)
        for address in addresses:
            if not missing - found.keys():
                break
            with suppress(WeirError):  # another one may have them, or it in a second
                status = self._transport.send(address, "Status", request, _STATUS_SECONDS).result()
                found |= dict.fromkeys(missing & set(status.past_partitions) - found.keys(), address)
        return found

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

    def __init__(
        self,
        address: str,
        security: SecurityOptions | None,
        request: pb.DeltasRequest,
        forget: Callable[[ShardLine], None],
    ) -> None:
        self._address, self._forget = address, forget
        self._transport = GrpcTransport(security)  # of its own: closing it ends the stream
        self._received = received(self._transport.deltas(address, request), f"the stream of {address}")
        self._heard_at, self._is_silent = time.monotonic(), False

    def read(self) -> Delivery:
        try:
            found = next(self._received)
        except StopIteration:
            raise UnavailableError(f"the shard at {self._address} ended the stream") from None
        except UnavailableError as error:
            said = f"has said nothing for {_SILENT_SECONDS:g} s" if self._is_silent else f"does not answer: {error}"
            raise UnavailableError(f"the shard at {self._address} {said}") from None
        self._heard_at = time.monotonic()
        is_end = 0 < found.end_offset <= found.next_offset
        return Delivery(found.batches, time.time(), is_end, found.end_total or None)

    def cut_if_silent(self) -> None:
        """End it where the shard has said nothing for long: it is frozen, or the network is cut without a word."""
        if time.monotonic() - self._heard_at > _SILENT_SECONDS:
            self._is_silent = True
            self._transport.close()

    def close(self) -> None:
        self._transport.close()
        self._forget(self)


def _check(status: pb.StatusReply, address: str) -> None:
    if not status.cluster_spec or not status.routing.addresses:
        raise UnavailableError("it has no place in a cluster yet")
    if json.loads(status.cluster_spec).get("deltas") is None:
        raise DeltaError(f"the cluster of {address} publishes no deltas: set cluster.deltas in its recipe")
