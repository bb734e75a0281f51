"""A version's marker in the delta streams of all shards."""

from __future__ import annotations

from ps import control
from ps.rounds import Connection
from ps.wire import weir_pb2 as pb


def mark(connection: Connection, version: str, step: int, data_time: float, *, seconds: float) -> dict[int, int]:
    """By partition, the offset of the marker's batch: what was acknowledged before stands in front of it. seconds:
    patience with each shard. Raises what a shard raises; then some may have the marker, and it is put again.
    """
    routing = connection.newest_routing()
    request = pb.MarkRequest(version=version, step=step, data_time=data_time)
    requests = [request] * routing.num_shards
    replies = control.call_all(connection.transport, routing.addresses, "Mark", requests, seconds)
    return {shard: int(reply.offset) for shard, reply in enumerate(replies)}
