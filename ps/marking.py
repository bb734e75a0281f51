"""A version's marker in the delta streams of all shards."""

from __future__ import annotations

import time

from ps import control
from ps.errors import UnavailableError, WrongEpochError
from ps.rounds import Connection
from ps.wire import weir_pb2 as pb


def mark(connection: Connection, version: str, step: int, data_time: float, *, seconds: float) -> dict[int, int]:
    """By partition, the offset of the marker's batch: what was acknowledged before stands in front of it, in some
    partition.

    Markers are a set only where all shards wrote them at one routing epoch. Where buckets move meanwhile, or a shard is
    started anew, all are marked again; earlier markers of the version mean nothing. seconds: patience with each shard,
    and with buckets that move. Raises what a shard raises; then some may have the marker.
    """
    retry, started = connection.retry, time.monotonic()
    failing_since, backoff = None, retry.first_backoff_seconds
    while True:
        try:
            return _mark_all(connection, version, step, data_time, seconds)
        except WrongEpochError as error:
            failing_since = None
            if time.monotonic() - started > seconds:
                raise UnavailableError(
                    f"mark: buckets have been moving for {seconds:g} s; mark again when that is done ({error})"
                ) from error
        except UnavailableError:
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since > max(retry.unavailable_seconds, connection.recovery_seconds):
                raise
        time.sleep(backoff)
        backoff = min(2 * backoff, retry.max_backoff_seconds)


def _mark_all(connection: Connection, version: str, step: int, data_time: float, seconds: float) -> dict[int, int]:
    routing = connection.newest_routing()
    request = pb.MarkRequest(version=version, step=step, data_time=data_time, routing_epoch=routing.epoch)
    requests = [request] * routing.num_shards
    replies = control.call_all(connection.transport, routing.addresses, "Mark", requests, seconds)
    return {shard: int(reply.offset) for shard, reply in enumerate(replies)}
