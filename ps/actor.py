"""The Ray shell: shard processes and the coordinator as detached actors. Ray places, restarts and names; rows go over
gRPC.

    names        namespace "weir-NAME": actors "coordinator", "shard-0", "shard-1", ...; with standbys "standby-0", ...
    placement    SPREAD over the nodes that offer the custom resource `ps` (one unit a shard); PACK where none does
    restarts     Ray starts a dead shard anew, on any port. With a journal it comes back with all that it had and goes
    on; else it is empty: clients get RowsLostError until `restore`
    standbys     on another node where there are several; the coordinator says which process of a pair leads

The caller has joined Ray (`ps/session.py`). Calls block; none longer than its stated seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ps import control
from ps.client import Client
from ps.errors import JournalError, RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.options import ClientOptions
from ps.placement import journal_folder, standby_folder
from ps.ray_actors import CoordinatorActor, ShardActor
from ps.ray_directory import CALL_SECONDS, RayDirectory, find_coordinator, namespace
from ps.security import SecurityOptions, warn_if_open
from ps.session import free_resources, room_for_shards
from ps.spec import ClusterSpec
from ps.transport import GrpcTransport
from ps.user_modules import load_modules
from ps.wire import weir_pb2 as pb

T = TypeVar("T")
START_SECONDS = 120.0
STOP_SECONDS = 20.0
# Each shard has one thread of work, so one thread is what any library inside it may have.
_ENVIRONMENT = {"env_vars": {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}


def start_cluster(
    spec: ClusterSpec,
    shards: int,
    name: str,
    *,
    cpus_per_shard: float = 0.5,
    on_loopback: bool = False,
    fresh: bool = False,
    start_seconds: float = START_SECONDS,
    security: SecurityOptions | None = None,
) -> RayDirectory:
    """Start shards and coordinator, and wait until they are ready. They outlive this process; `stop_cluster` ends them.

    on_loopback: listen on 127.0.0.1 only, for a Ray of one machine; else on the node's own address. fresh: drop what
    journals of this name have, instead of beginning with it. security: its files must be here and on every node with a
    shard.

    Raises RequestError when the name is taken, or the nodes cannot hold the shards or their tables' memory limits,
    UnavailableError when they are not up in time.
    """
    if not 1 <= shards <= spec.num_buckets:
        raise RequestError(f"{shards} shards for {spec.num_buckets} buckets; need 1 to {spec.num_buckets} shards")
    if cluster_exists(name):
        raise RequestError(f"cluster {name!r} runs already; attach to it, or end it with `weir down`")
    if sum(node["Alive"] for node in ray.nodes()) == 1:  # this one; else each shard checks its own node
        check_limits(spec, shards * processes_each(spec), thresholds_here(ray=True))
    security = (security or SecurityOptions()).absolute()
    GrpcTransport(security).close()  # finds a file that does not do before anything starts
    if not on_loopback:
        warn_if_open("their nodes' addresses", security)
    deadline = time.monotonic() + start_seconds
    group = reserve_room(name, spec, shards, cpus_per_shard, start_seconds)
    try:
        coordinator = (
            ray.remote(CoordinatorActor)
            .options(
                name="coordinator",
                namespace=namespace(name),
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                runtime_env=_ENVIRONMENT,
            )
            .remote(name, spec.model_dump_json(), shards, on_loopback)
        )
        ray.get(coordinator.keep.remote(group), timeout=start_seconds)
        start_shards(
            name, spec, range(shards), group, deadline, on_loopback=on_loopback, fresh=fresh, security=security
        )
        reassign_cluster(name, security)
    except (RayActorError, GetTimeoutError) as error:
        _remove(name, [group], range(shards))
        # Ray gives the traceback of a failed actor as text; its end is what went wrong.
        said = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
        reason = ": ".join([line for line in said if line][-3:]) or type(error).__name__
        raise UnavailableError(f"cluster {name!r} was not up within {start_seconds:g} s: {reason}") from error
    except BaseException:
        _remove(name, [group], range(shards))
        raise
    return RayDirectory(name)


def reserve_room(
    name: str, spec: ClusterSpec, shards: int, cpus_per_shard: float, seconds: float, *, more: str = ""
) -> PlacementGroup:
    """A placement group for so many shards, with standbys. more: what tells its name from the cluster's other groups'.
    Raises RequestError when the nodes have no room.
    """
    count = shards * processes_each(spec)
    bundle, strategy = room_for_shards(count, cpus_per_shard)
    if spec.durability.is_replicated:
        strategy = "SPREAD"
    group = placement_group([bundle] * count, strategy=strategy, name=namespace(name) + more, lifetime="detached")
    if not group.wait(timeout_seconds=min(30.0, seconds)):
        remove_placement_group(group)
        raise RequestError(
            f"cluster {name!r}: no room for {count} processes of {bundle} each; free now: {free_resources()}. "
            "Take fewer shards or smaller `cpus_per_shard`, or end what runs"
        )
    return group


def start_shards(
    name: str,
    spec: ClusterSpec,
    numbers: range,
    group: PlacementGroup,
    deadline: float,
    *,
    on_loopback: bool,
    fresh: bool,
    security: SecurityOptions,
) -> None:
    """Start the shards of these numbers in the group's bundles, and wait until the coordinator knows all."""
    actors = []
    bundles = _by_node(group)
    processes = [(shard, place) for place in range(processes_each(spec)) for shard in numbers]
    for number, (shard, place) in zip(bundles, processes, strict=True):
        bundle, folder = group.bundle_specs[number], journal_folder(spec, name, shard)
        if folder is not None and place == 1:
            folder = standby_folder(folder)
        made = ray.remote(ShardActor).options(
            name=actor_name(shard, place),
            namespace=namespace(name),
            lifetime="detached",
            num_cpus=bundle["CPU"],
            resources={key: value for key, value in bundle.items() if key != "CPU"},
            max_restarts=-1,
            runtime_env=_ENVIRONMENT,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        )
        journal = None if folder is None else str(folder)
        in_pair = place if spec.durability.is_replicated else None
        actors.append(made.remote(name, shard, on_loopback, journal, fresh, security.model_dump_json(), in_pair))
    ray.get([actor.address.remote() for actor in actors], timeout=max(0.1, deadline - time.monotonic()))
    coordinator = find_coordinator(name)

    def is_ready() -> bool:
        if failed := ray.get(coordinator.failed.remote(), timeout=CALL_SECONDS):
            raise JournalError(failed)
        return bool(ray.get(coordinator.ready.remote(), timeout=CALL_SECONDS))

    _wait_until(is_ready, deadline, name)


def connect_cluster(name: str, options: ClientOptions | None = None, security: SecurityOptions | None = None) -> Client:
    """A client of a running cluster; any process in Ray may have one. Raises UnavailableError when there is none."""
    directory = RayDirectory(name)
    spec = cluster_spec(name)
    load_modules(spec.psfunc_modules)
    return Client(spec, GrpcTransport(security), directory, directory.routing(), options, cluster=name)


def cluster_spec(name: str) -> ClusterSpec:
    """What the shards of a running cluster agree on."""
    return ClusterSpec.model_validate_json(RayDirectory(name).ask("spec"))


def wait_until_answering(name: str, seconds: float = 60.0, security: SecurityOptions | None = None) -> dict[str, Any]:
    """The cluster's status once every shard answers; Ray may be starting one anew. Raises UnavailableError naming those
    that do not in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        report = cluster_status(name, security)
        silent = [shard["shard"] for shard in report["shards"] if shard["state"] == "silent"]
        if not silent and report["shards"]:
            return report
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"shards {silent} of cluster {name!r} do not answer; `weir status` shows it, `weir down` ends it"
            )
        time.sleep(0.5)


def reassign_cluster(name: str, security: SecurityOptions | None = None) -> None:
    """Give every shard its place anew, those too that came back empty. Their rows stay lost: restore or clear next."""
    directory, transport = RayDirectory(name), GrpcTransport(security)
    routing = directory.propose()
    try:
        control.assign(transport, cluster_spec(name), routing)
    finally:
        transport.close()
    directory.commit(routing)


def stop_cluster(name: str, *, forget: bool = False) -> None:
    """End all actors of a cluster, and their rows with them. Journals stay, for whoever starts it again; forget:
    delete them too. Raises UnavailableError when there is none.
    """
    directory = RayDirectory(name)
    shards = len(directory.ask("describe")["shards"])
    if forget and cluster_spec(name).durability.keeps_journal:
        forget_shards(name, range(shards))
    _remove(name, directory.ask("groups"), range(shards))


def cluster_status(name: str, security: SecurityOptions | None = None) -> dict[str, Any]:
    """name, metrics_address, epoch, lost, silent, skew (rows of the fullest shard / mean); for each shard its place
    and what it says of itself: tables, queue_depth, uptime_seconds, metrics_address.
    """
    report: dict[str, Any] = {"name": name, **RayDirectory(name).ask("describe")}
    transport = GrpcTransport(security)
    try:
        answers = control.statuses(transport, [shard["address"] for shard in report["shards"]])
    finally:
        transport.close()
    for shard, status in zip(report["shards"], answers, strict=True):
        shard["state"] = _state(shard["shard"], report, status)
        if status is not None:
            shard |= control.describe_status(status)
    rows = [sum(table["rows"] for table in shard.get("tables", {}).values()) for shard in report["shards"]]
    report["skew"] = max(rows) * len(rows) / sum(rows) if sum(rows) else 1.0
    return report


def _state(shard: int, report: dict[str, Any], status: pb.StatusReply | None) -> str:
    if status is None:
        return "silent"
    return "lost its rows" if shard in report["lost"] else "serving"


def cluster_exists(name: str) -> bool:
    """Whether a cluster of that name runs in this Ray."""
    try:
        find_coordinator(name)
    except UnavailableError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], deadline: float, name: str) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"cluster {name!r}: not all shards reported in time; look at `ray logs`")
        time.sleep(0.05)


def _remove(name: str, groups: Sequence[PlacementGroup], shards: range) -> None:
    """Kill the cluster's actors and wait until their names are free."""
    kill_actors(name, [*actor_names(shards), "coordinator"])
    for group in groups:
        remove_placement_group(group)
    deadline = time.monotonic() + STOP_SECONDS
    while cluster_exists(name) and time.monotonic() < deadline:
        time.sleep(0.05)


def processes_each(spec: ClusterSpec) -> int:
    """Of a shard."""
    return 1 + spec.durability.is_replicated


def actor_names(shards: range) -> list[str]:
    """Of all processes that these shards may have."""
    return [actor_name(shard, place) for place in (0, 1) for shard in shards]


def actor_name(shard: int, place: int) -> str:
    """place: in the shard's pair."""
    return f"standby-{shard}" if place else f"shard-{shard}"


def forget_shards(name: str, shards: range) -> None:
    """End these shards' processes and delete their journals, as far as they answer."""
    actors = []
    for each in actor_names(shards):
        with suppress(ValueError):
            actors.append(ray.get_actor(each, namespace=namespace(name)))
    with suppress(RayError):
        ray.get([actor.forget.remote() for actor in actors], timeout=STOP_SECONDS)


def _by_node(group: PlacementGroup) -> list[int]:
    """The group's bundles, those of a node together: two that are half the group apart are on two nodes where the
    nodes have half of them each, or less.
    """
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return sorted(range(group.bundle_count), key=lambda number: (nodes[number], number))


def kill_actors(name: str, actors: Sequence[str]) -> None:
    """For good."""
    for actor in actors:
        with suppress(ValueError):  # it never started
            ray.kill(ray.get_actor(actor, namespace=namespace(name)), no_restart=True)
