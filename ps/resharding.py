"""Buckets to other shards while training goes on: which ones, in which order, and the routing after each step.

Shards keep one contiguous range of buckets each, for then their part of a message is one slice. Ranges are cut so that
rows are even, and given to the shards that have most of them already.

A few buckets move at a time: their owner copies them, catches up, and takes no more messages for them (ps/giving.py);
then a routing says that they are the other shard's, which hears it first. Only what concerns these buckets waits
meanwhile. Whatever fails, a further routing with the old owners brings all back to order: `settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps import control
from ps.errors import RequestError, WeirError
from ps.rounds import Directory
from ps.routing import Routing
from ps.spec import ClusterSpec
from ps.transport import Transport
from ps.wire import weir_pb2 as pb

AT_ONCE = 8  # buckets in one hand-over
GIVE_SECONDS = 3600.0
Owners = NDArray[np.int32]  # [num_buckets]


@dataclass(frozen=True)
class Move:
    """Buckets that went from one shard to another. held_seconds: how long they took no messages before the new routing
    was assigned.
    """

    buckets: NDArray[np.int64]
    source: int
    target: int
    num_rows: int
    num_bytes: int
    seconds: float
    held_seconds: float


def even_ranges(bucket_rows: NDArray[np.int64], num_shards: int) -> NDArray[np.int64]:
    """int64 [num_shards + 1]: where contiguous ranges of nearly equal rows begin; each has at least one bucket."""
    num_buckets = len(bucket_rows)
    weights = np.cumsum(bucket_rows.astype(np.float64) + 1.0)  # without rows buckets are even
    wanted = weights[-1] * np.arange(1, num_shards) / num_shards
    cuts = np.searchsorted(weights, wanted) + 1
    least = np.arange(1, num_shards)
    cuts = np.maximum.accumulate(np.maximum(cuts, least) - least) + least
    cuts = np.minimum(cuts, num_buckets - num_shards + least)
    return np.concatenate([[0], cuts, [num_buckets]]).astype(np.int64)


def plan(bucket_rows: NDArray[np.int64], owners: Owners, num_shards: int) -> Owners:
    """Who is to own each bucket among so many shards, so that few rows move. bucket_rows: int64 [num_buckets]."""
    if not 1 <= num_shards <= len(owners):
        raise RequestError(f"{num_shards} shards for {len(owners)} buckets; need 1 to {len(owners)} shards")
    starts = even_ranges(bucket_rows, num_shards)
    weights = bucket_rows.astype(np.float64) + 1.0
    kept = np.zeros((num_shards, num_shards))  # rows of range i that shard j has already
    for number in range(num_shards):
        part = slice(starts[number], starts[number + 1])
        here = owners[part] < num_shards
        np.add.at(kept[number], owners[part][here], weights[part][here])
    goal, free = np.empty(len(owners), np.int32), set(range(num_shards))
    ranges = set(range(num_shards))
    for at in np.argsort(-kept, axis=None, kind="stable").tolist():
        number, shard = divmod(at, num_shards)
        if number in ranges and shard in free:
            goal[starts[number] : starts[number + 1]] = shard
            ranges.remove(number)
            free.remove(shard)
    return goal


def bucket_rows(transport: Transport, routing: Routing) -> NDArray[np.int64]:
    """int64 [num_buckets]: rows of all tables, as the owners say. Raises UnavailableError."""
    request = pb.StatusRequest(wants_buckets=True)
    found = control.call_all(
        transport, routing.addresses, "Status", [request] * routing.num_shards, control.PATIENT_SECONDS
    )
    rows = np.zeros(routing.num_buckets, np.int64)
    for shard, status in enumerate(found):
        owned = routing.owned(shard)
        rows[owned] = np.frombuffer(status.bucket_rows, "<i8")[owned]
    return rows


def settle(transport: Transport, spec: ClusterSpec, directory: Directory, owners: Owners | None = None) -> Routing:
    """One routing for all shards: with these owners, or with those of the newest that any shard has."""
    routing = directory.propose(owners)
    control.assign(transport, spec, routing)
    directory.commit(routing)
    return routing


def move(
    transport: Transport,
    spec: ClusterSpec,
    directory: Directory,
    goal: Callable[[Routing], Owners],
    *,
    at_once: int = AT_ONCE,
) -> Iterator[Move]:
    """Move buckets until their owners are as `goal` says of the present routing; yields each step when it is done.

    Raises what a shard or the directory meets, after all buckets are in order again where that is possible.
    """
    routing = settle(transport, spec, directory)
    wanted = goal(routing)
    for source, target, buckets in _steps(routing.owners, wanted, at_once):
        reply = _give(transport, spec, directory, routing, source, target, buckets)
        owners = routing.owners.copy()
        owners[buckets] = target
        routing = directory.propose(owners)
        # Who gets them hears of it first: were the old owner alone to hear of it, nobody would have them.
        control.assign(transport, spec, routing, [target])
        control.assign(transport, spec, routing)
        directory.commit(routing)
        yield Move(buckets, source, target, reply.num_rows, reply.num_bytes, reply.seconds, reply.held_seconds)


def _give(
    transport: Transport,
    spec: ClusterSpec,
    directory: Directory,
    routing: Routing,
    source: int,
    target: int,
    buckets: NDArray[np.int64],
) -> pb.GiveReply:
    request = pb.GiveRequest(
        buckets=buckets.astype("<i4").tobytes(), address=routing.addresses[target], routing_epoch=routing.epoch
    )
    try:
        (reply,) = control.call_all(transport, [routing.addresses[source]], "Give", [request], GIVE_SECONDS)
    except WeirError:
        settle(transport, spec, directory, routing.owners)
        raise
    found: pb.GiveReply = reply
    return found


def _steps(owners: Owners, goal: Owners, at_once: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(source, target, buckets), turn by turn between pairs of shards."""
    moving = np.flatnonzero(owners != goal)
    pairs = sorted({(int(owners[bucket]), int(goal[bucket])) for bucket in moving.tolist()})
    for source, target in pairs:
        buckets = moving[(owners[moving] == source) & (goal[moving] == target)]
        for start in range(0, len(buckets), at_once):
            yield source, target, buckets[start : start + at_once]


def balanced(transport: Transport, num_shards: int) -> Callable[[Routing], Owners]:
    """A goal: so many shards, rows even."""
    return lambda routing: plan(bucket_rows(transport, routing), routing.owners, num_shards)
