"""Messages to all shards at once: assign, save, restore, status. And the directory of a cluster without a
coordinator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ps.errors import NotAllowedError, RequestError, RowsLostError, UnavailableError, WeirError
from ps.routing import Routing
from ps.spec import ClusterSpec
from ps.transport import Method, TimedOutError, Transport
from ps.wire import weir_pb2 as pb

STATUS_SECONDS = 3.0
PATIENT_SECONDS = 20.0  # for a status without which nothing can go on: a busy node answers late
ASSIGN_SECONDS = 600.0  # the first one compiles kernels where nobody has yet


def call_all(
    transport: Transport, addresses: Sequence[str], method: Method, messages: Sequence[Any], timeout_seconds: float
) -> list[Any]:
    """One message to each shard, all at once; the replies in order. Raises the first error, with the shard's number
    and address.
    """
    pending = [
        transport.send(address, method, message, timeout_seconds)
        for address, message in zip(addresses, messages, strict=True)
    ]
    outcomes = [future.exception() for future in pending]
    for shard, (address, error) in enumerate(zip(addresses, outcomes, strict=True)):
        if isinstance(error, TimedOutError):
            raise UnavailableError(f"{method.lower()}: shard {shard} at {address}: {error}; its process may be frozen")
        if isinstance(error, WeirError):
            raise type(error)(f"{method.lower()}: shard {shard} at {address}: {error}")
        if error is not None:
            raise error
    return [future.result() for future in pending]


def assign(transport: Transport, spec: ClusterSpec, routing: Routing, shards: Sequence[int] | None = None) -> None:
    """Give every shard of a routing its place, or these only."""
    body, where = spec.model_dump_json().encode(), routing.to_message()
    chosen = range(routing.num_shards) if shards is None else shards
    messages = [pb.AssignRequest(cluster_spec=body, routing=where, shard=shard) for shard in chosen]
    call_all(transport, [routing.addresses[shard] for shard in chosen], "Assign", messages, ASSIGN_SECONDS)


def first_epoch(spec: ClusterSpec) -> int:
    """Of a cluster that begins. Where deltas are published unix milliseconds: who follows them takes rows of the
    greatest epoch only, and an older cluster may have published in the same folder.
    """
    return 1 if spec.deltas is None else int(1000 * time.time())


def first_routing(transport: Transport, spec: ClusterSpec, addresses: Sequence[str]) -> Routing:
    """The routing to assign to shards that were just started: equal ranges of buckets, or that which their journals
    had, at their addresses of now. Raises RequestError where these do not fit together.
    """
    found = statuses(transport, addresses, timeout_seconds=ASSIGN_SECONDS)
    known = {shard: status for shard, status in enumerate(found) if status is not None and status.cluster_spec}
    if not known:
        return Routing.initial(spec.num_buckets, addresses, first_epoch(spec))
    newest = Routing.from_message(max(known.values(), key=lambda status: status.routing.epoch).routing)
    place = f"the journals in {spec.durability.directory}"
    if len(known) < len(addresses) or newest.num_shards != len(addresses):
        raise RequestError(
            f"{place} are those of {newest.num_shards} shards, of which {len(known)} were found; this cluster has "
            f"{len(addresses)}: start it with {newest.num_shards}, or name another durability.directory"
        )
    if any(read_spec(status, addresses[shard]).rows_only() != spec.rows_only() for shard, status in known.items()):
        raise RequestError(
            f"{place} were written with other tables, buckets or seed; use the configuration that wrote them, or name "
            "another durability.directory"
        )
    return Routing(newest.epoch + 1, newest.owners, tuple(addresses))


def statuses(
    transport: Transport, addresses: Sequence[str], timeout_seconds: float = STATUS_SECONDS
) -> list[pb.StatusReply | None]:
    """Each shard's status, None where it does not answer. Raises NotAllowedError for one that turns this process
    away.
    """
    pending = [transport.send(address, "Status", pb.StatusRequest(), timeout_seconds) for address in addresses]
    for address, future in zip(addresses, pending, strict=True):
        if isinstance(error := future.exception(), NotAllowedError):
            raise NotAllowedError(f"the shard at {address}: {error}")
    return [future.result() if future.exception() is None else None for future in pending]


def read_spec(status: pb.StatusReply, address: str) -> ClusterSpec:
    """The cluster spec that a shard was assigned. Raises RequestError if it has none, or one of another version."""
    if not status.cluster_spec:
        raise RequestError(
            f"the shard at {address} has no cluster yet: nothing was assigned, or its process was restarted"
        )
    try:
        return ClusterSpec.model_validate_json(status.cluster_spec)
    except ValidationError as error:
        raise RequestError(
            f"the cluster at {address} has a spec that this version of weir-ps cannot read: {error}"
        ) from None


def describe_status(status: pb.StatusReply) -> dict[str, Any]:
    """A shard's own account, as plain values."""
    return {
        "tables": msgpack.unpackb(status.tables) if status.tables else {},
        "queue_depth": status.queue_depth,
        "uptime_seconds": status.uptime_seconds,
        "metrics_address": status.metrics_address,
    }


def describe(transport: Transport, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Each shard's own account. Raises UnavailableError when one does not answer."""
    found = statuses(transport, addresses)
    for shard, (address, status) in enumerate(zip(addresses, found, strict=True)):
        if status is None:
            raise UnavailableError(f"shard {shard} at {address} does not answer; `weir status` shows the cluster")
    return [describe_status(status) for status in found if status is not None]


class StatusDirectory:
    """Finds the routing by asking the shards themselves, at the addresses known so far."""

    def __init__(
        self, cluster: str, transport: Transport, addresses: Sequence[str], primaries: Mapping[int, str] | None = None
    ) -> None:
        """primaries: by shard, where processes of pairs serve, which may be elsewhere than the routing says."""
        self._cluster = cluster
        self._transport = transport
        self._addresses = tuple(addresses)
        # Of every process that is known, standbys too, the shard.
        self._shards = {address: shard for shard, address in enumerate(addresses)}
        self._shards |= {address: shard for shard, address in (primaries or {}).items()}

    def routing(self) -> Routing:
        found = self._ask()
        assigned = [status for status in found if status is not None and status.cluster_spec]
        if not any(status is not None for status in found):
            raise UnavailableError(
                f"none of the shards of cluster {self._cluster!r} answers: {', '.join(self._addresses)}"
            )
        newest = max(map(_routing_of, assigned), key=lambda routing: routing.epoch) if assigned else None
        for shard, (address, status) in enumerate(zip(self._addresses, found, strict=True)):
            is_new = newest is not None and not (newest.owners == shard).any()  # it gets its place at this moment
            if status is None or status.cluster_spec or is_new or status.pair.role not in ("", "primary"):
                continue
            raise RowsLostError(rows_lost(self._cluster, [shard], address))
        if newest is None:
            raise UnavailableError(f"no shard of cluster {self._cluster!r} serves at present")
        self._addresses = self._places(newest, found)
        return replace(newest, addresses=self._addresses)

    def propose(self, owners: NDArray[np.int32] | None = None) -> Routing:
        found = self._ask(PATIENT_SECONDS)
        for shard, (address, status) in enumerate(zip(self._addresses, found, strict=True)):
            if status is None:
                raise UnavailableError(
                    f"shard {shard} of cluster {self._cluster!r} at {address} does not answer; start it again"
                )
        known = [_routing_of(status) for status in found if status is not None and status.cluster_spec]
        if not known:
            raise RowsLostError(f"no shard of cluster {self._cluster!r} knows its tables any more; start a new cluster")
        newest = max(known, key=lambda routing: routing.epoch)
        chosen = newest.owners if owners is None else owners
        return Routing(newest.epoch + 1, chosen.astype(np.int32), self._addresses)

    def commit(self, routing: Routing) -> None:
        self._addresses = routing.addresses
        self._shards |= {address: shard for shard, address in enumerate(routing.addresses)}

    def _ask(self, timeout_seconds: float = STATUS_SECONDS) -> list[pb.StatusReply | None]:
        """The status of every shard; of a pair, that of its primary, wherever it is now."""
        found: dict[str, pb.StatusReply | None] = {}
        while unasked := [each for each in self._shards if each not in found]:
            found.update(zip(unasked, statuses(self._transport, unasked, timeout_seconds), strict=True))
            others = {
                status.pair.other: self._shards[address] for address, status in found.items() if status is not None
            }
            self._shards = others | self._shards
            self._shards.pop("", None)
        primaries = {
            self._shards[address]: address
            for address, status in sorted(found.items(), key=lambda item: item[1].pair.term if item[1] else 0)
            if _leads(status)
        }  # of two, the higher term
        self._addresses = tuple(primaries.get(shard, each) for shard, each in enumerate(self._addresses))
        return [found.get(address) for address in self._addresses]

    def _places(self, routing: Routing, found: Sequence[pb.StatusReply | None]) -> tuple[str, ...]:
        """Where the shards of a routing are. What it does not know any more is forgotten: shards come and go, and their
        numbers come again.
        """
        places = list(routing.addresses)
        for shard, address in enumerate(routing.addresses):
            leads = shard < len(found) and _leads(found[shard])
            if shard < len(found) and (leads or self._shards.get(address) == shard):
                places[shard] = self._addresses[shard]  # where it is now, or was last
            else:
                self._shards = {each: other for each, other in self._shards.items() if other != shard}
            self._shards[address] = shard
        self._shards = {address: shard for address, shard in self._shards.items() if shard < routing.num_shards}
        return tuple(places)


def _routing_of(status: pb.StatusReply) -> Routing:
    return Routing.from_message(status.routing)


def _leads(status: pb.StatusReply | None) -> bool:
    return status is not None and bool(status.cluster_spec) and status.pair.role == "primary"


def rows_lost(cluster: str, shards: Sequence[int], address: str = "") -> str:
    """The message for shards that came back empty."""
    named = f"shard {shards[0]}" if len(shards) == 1 else f"shards {', '.join(map(str, shards))}"
    place = f" at {address}" if address else ""
    return (
        f"{named} of cluster {cluster!r}{place} lost its rows (the process died and was started anew); "
        "restore from a checkpoint: client.restore(directory), or run `weir train` again"
    )
