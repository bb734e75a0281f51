"""The shards that a job trains against: its own, or a long-lived cluster that `weir up` started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ps.client import Client
from ps.control import rows_lost
from ps.errors import NoClusterError, RequestError
from ps.options import ClientOptions
from ps.placement import LocalCluster, Placement
from ps.resharding import Move
from ps.security import SecurityOptions
from workers.config import Config
from workers.cores import usable_cores


class OpenCluster(Protocol):
    """Running shards. name: that of the Ray cluster."""

    @property
    def name(self) -> str: ...

    def connect(self, options: ClientOptions | None = None) -> Client:
        """A new client, to be closed before the cluster."""
        ...


@dataclass(frozen=True)
class _Local:
    cluster: LocalCluster
    name: str

    def connect(self, options: ClientOptions | None = None) -> Client:
        return self.cluster.connect(options)


@dataclass(frozen=True)
class _OnRay:
    name: str
    security: SecurityOptions

    def connect(self, options: ClientOptions | None = None) -> Client:
        return connect(self.name, options, self.security)


@contextmanager
def open_cluster(config: Config, *, local: bool = False, restores: bool = False) -> Iterator[OpenCluster]:
    """The job's shards: in this process with `local`, else as `cluster.placement` says.

    On Ray it attaches to the recipe's running cluster, or starts one that ends with the job. restores: the job begins
    with a checkpoint, so rows that are there do not matter. Raises RequestError for a running cluster of other tables,
    or for rows that `cluster.existing_rows` does not allow.
    """
    placement = "inprocess" if local else config.cluster.placement
    if placement != "ray":
        where: Placement = "process" if placement == "process" else "in-process"
        with LocalCluster(
            config.cluster_spec(),
            shards=config.cluster.shards,
            placement=where,
            name=config.name,
            fresh=True,
            security=config.cluster.security,
        ) as cluster:
            yield _Local(cluster, config.name)
        return
    from ps import actor, session

    started_ray = _open_ray(config)
    try:
        if actor.cluster_exists(config.name):
            _attach(config, restores=restores)
            yield _OnRay(config.name, config.cluster.security)
        else:
            _start(config, on_loopback=started_ray, fresh=True)
            try:
                yield _OnRay(config.name, config.cluster.security)
            finally:
                actor.stop_cluster(config.name, forget=True)
    finally:
        if started_ray:
            session.close_ray()


def _attach(config: Config, *, restores: bool) -> None:
    """Make a running cluster ready for this job: all shards there, and no rows but those that it may train on."""
    from ps import actor

    name, choice, security = config.name, config.cluster.existing_rows, config.cluster.security
    if actor.cluster_spec(name) != config.cluster_spec():
        raise RequestError(
            f"cluster {name!r} runs with other tables, buckets or seed than the recipe; "
            "`weir down` ends it, or give the recipe another name"
        )
    report = actor.wait_until_answering(name, security=security)
    rows = sum(table["rows"] for shard in report["shards"] for table in shard["tables"].values())
    if not restores and choice == "keep" and report["lost"]:
        raise RequestError(f"cluster.existing_rows: found keep, but {rows_lost(name, report['lost'])}")
    if not restores and choice == "error" and (rows or report["lost"]):
        raise RequestError(
            f"cluster {name!r} holds {rows} rows of an earlier job, and this one starts anew; set "
            "cluster.existing_rows to clear (delete them) or keep (train on from them)"
        )
    if report["lost"]:
        actor.reassign_cluster(name, security)
    if not restores and choice == "clear":
        with connect(name, security=security) as client:
            for table in client.spec.tables:
                client.clear(table)


def connect(name: str, options: ClientOptions | None = None, security: SecurityOptions | None = None) -> Client:
    """A client of the cluster `name` in the Ray that this process is part of."""
    from ps import actor

    return actor.connect_cluster(name, options, security)


def up(config: Config) -> dict[str, Any]:
    """Start the recipe's long-lived cluster in a running Ray."""
    from ps import actor, session

    session.open_ray(config.cluster.ray_address or "auto")
    _start(config, on_loopback=False, fresh=False)
    return actor.cluster_status(config.name, config.cluster.security)


def down(config: Config) -> dict[str, Any]:
    """End the recipe's long-lived cluster."""
    from ps import actor, session

    session.open_ray(config.cluster.ray_address or "auto")
    actor.stop_cluster(config.name)
    return {"name": config.name, "stopped": True}


def reshard(config: Config, shards: int | None, report: Callable[[Move], None]) -> dict[str, Any]:
    """Spread the rows of the recipe's running cluster over so many shards; None: as many as there are."""
    from ps import actor, ray_resharding, session

    session.open_ray(config.cluster.ray_address or "auto")
    chosen = shards or len(actor.cluster_status(config.name, config.cluster.security)["shards"])
    began, moves = time.monotonic(), []
    for move in ray_resharding.reshard_cluster(
        config.name,
        chosen,
        cpus_per_shard=config.cluster.cpus_per_shard,
        security=config.cluster.security,
    ):
        report(move)
        moves.append(move)
    return {
        "name": config.name,
        "shards": chosen,
        "moved_buckets": sum(len(move.buckets) for move in moves),
        "moved_rows": sum(move.num_rows for move in moves),
        "moved_bytes": sum(move.num_bytes for move in moves),
        "longest_held_seconds": max((move.held_seconds for move in moves), default=0.0),
        "seconds": time.monotonic() - began,
    }


def restart(config: Config, report: Callable[[int], None]) -> dict[str, Any]:
    """Start the shards of the recipe's running cluster anew, one after another."""
    from ps import ray_resharding, session

    session.open_ray(config.cluster.ray_address or "auto")
    restarted = []
    for shard in ray_resharding.restart_shards(config.name):
        report(shard)
        restarted.append(shard)
    return {"name": config.name, "restarted": restarted}


def status(config: Config) -> dict[str, Any]:
    """What the coordinator and the shards of the recipe's cluster say of themselves."""
    from ps import actor, session

    session.open_ray(config.cluster.ray_address or "auto")
    return actor.cluster_status(config.name, config.cluster.security)


def _start(config: Config, *, on_loopback: bool, fresh: bool) -> None:
    """fresh: whatever journals of this name have is of an earlier job, whose tower is gone."""
    from ps import actor

    actor.start_cluster(
        config.cluster_spec(),
        config.cluster.shards,
        config.name,
        cpus_per_shard=config.cluster.cpus_per_shard,
        on_loopback=on_loopback,
        fresh=fresh,
        security=config.cluster.security,
    )


def _open_ray(config: Config) -> bool:
    """Join the Ray cluster that is named or runs on this machine, else start a small one. True if it was started."""
    from ps import session

    address = config.cluster.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        session.open_ray(address)
        return False
    try:
        session.open_ray("auto")
    except NoClusterError:
        cluster = config.cluster
        needed = cluster.shards * cluster.cpus_per_shard + cluster.workers.count * cluster.workers.cpus
        session.open_ray(None, num_cpus=max(usable_cores(), int(-(-needed // 1))))
        return True
    return False
