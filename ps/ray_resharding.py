"""Clusters on Ray while they run: other numbers of shards, and shards started anew one after another."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import ray
from ray.exceptions import RayError

from ps import resharding
from ps.actor import (
    actor_name,
    actor_names,
    cluster_spec,
    forget_shards,
    kill_actors,
    processes_each,
    reserve_room,
    start_shards,
)
from ps.errors import RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.ray_directory import RayDirectory, namespace
from ps.resharding import Move
from ps.security import SecurityOptions
from ps.transport import GrpcTransport

START_SECONDS = 120.0
RESTART_SECONDS = 600.0  # of one shard, with what its journal replays


def reshard_cluster(
    name: str,
    shards: int,
    *,
    cpus_per_shard: float = 0.5,
    on_loopback: bool = False,
    security: SecurityOptions | None = None,
) -> Iterator[Move]:
    """Move buckets until so many shards have even numbers of rows, while clients go on; yields every step. With the
    present number of shards it balances.

    cpus_per_shard, on_loopback, security: as of start_cluster, for shards that are added. Raises RequestError when the
    nodes have no room for them, UnavailableError when they are not up in time or a shard dies meanwhile; run it again
    then.
    """
    directory, spec = RayDirectory(name), cluster_spec(name)
    security = (security or SecurityOptions()).absolute()
    before = int(directory.ask("num_shards"))
    if not 1 <= shards <= spec.num_buckets:
        raise RequestError(f"{shards} shards for {spec.num_buckets} buckets; need 1 to {spec.num_buckets} shards")
    if shards > before:
        _add(name, range(before, shards), cpus_per_shard, on_loopback=on_loopback, security=security)
    transport = GrpcTransport(security)
    try:
        yield from resharding.move(transport, spec, directory, resharding.balanced(transport, shards))
        if shards < before:
            directory.ask("resize", shards)
            resharding.settle(transport, spec, directory)
    finally:
        transport.close()
    if shards < before:
        _end(name, range(shards, before))


def restart_shards(name: str, security: SecurityOptions | None = None) -> Iterator[int]:
    """End every shard's process and wait until it is back with all that its journal has, one after another; yields
    each.

    Raises RequestError for a cluster without journals, UnavailableError for a shard that does not come back in time.
    """
    directory = RayDirectory(name)
    if not cluster_spec(name).durability.keeps_journal:
        raise RequestError(f"cluster {name!r} keeps no journals: a shard that is started anew would be empty")
    for shard in range(directory.routing().num_shards):
        if cluster_spec(name).durability.is_replicated:
            _restart_pair(name, directory, shard)
            yield shard
            continue
        before = _pid(directory, shard)
        ray.kill(ray.get_actor(f"shard-{shard}", namespace=namespace(name)), no_restart=False)
        deadline = time.monotonic() + RESTART_SECONDS
        while _pid(directory, shard) == before or directory.ask("describe")["lost"]:
            if time.monotonic() > deadline:
                raise UnavailableError(f"shard {shard} of cluster {name!r} did not come back; look at `ray logs`")
            time.sleep(0.2)
        yield shard


def _restart_pair(name: str, directory: RayDirectory, shard: int) -> None:
    """The standby first; when it has all rows again, the primary, which it replaces."""
    term = -1
    for role in ("standby", "primary"):
        roles, term = _whole_pair(name, directory, shard, beyond=term)
        ray.kill(ray.get_actor(actor_name(shard, roles.index(role)), namespace=namespace(name)), no_restart=False)
    _whole_pair(name, directory, shard, beyond=term)


def _whole_pair(name: str, directory: RayDirectory, shard: int, *, beyond: int) -> tuple[list[str], int]:
    """Roles of both places, and their term, once one leads and the other has all rows, at a later term than that."""
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        leases = {lease["shard"]: lease for lease in directory.ask("describe")["shards"]}
        said = leases[shard]["pair"] if shard in leases else []
        terms = {each.get("term") for each in said}
        if len(terms) == 1 and {each.get("role") for each in said} == {"primary", "standby"}:
            term = int(terms.pop())
            if term > beyond:
                return [each["role"] for each in said], term
        time.sleep(0.2)
    raise UnavailableError(f"shard {shard} of cluster {name!r} has no standby with all rows; look at `ray logs`")


def _add(name: str, numbers: range, cpus_per_shard: float, *, on_loopback: bool, security: SecurityOptions) -> None:
    directory, spec = RayDirectory(name), cluster_spec(name)
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        check_limits(spec, numbers.stop * processes_each(spec), thresholds_here(ray=True))
    group = reserve_room(name, spec, len(numbers), cpus_per_shard, START_SECONDS, more=f"-{secrets.token_hex(4)}")
    directory.ask("keep", group)
    directory.ask("resize", numbers.stop)
    deadline = time.monotonic() + START_SECONDS
    try:
        start_shards(name, spec, numbers, group, deadline, on_loopback=on_loopback, fresh=True, security=security)
    except BaseException as error:
        _end(name, numbers)
        directory.ask("resize", numbers.start)
        if isinstance(error, RayError):
            raise UnavailableError(f"shards {list(numbers)} of cluster {name!r} were not up in time") from error
        raise


def _end(name: str, numbers: range) -> None:
    """Shards without buckets, with their journals."""
    forget_shards(name, numbers)
    kill_actors(name, actor_names(numbers))


def _pid(directory: RayDirectory, shard: int) -> int:
    return next(int(lease["pid"]) for lease in directory.ask("describe")["shards"] if lease["shard"] == shard)
