"""The Ray shell: shard processes and the coordinator as detached actors. Ray places, restarts and names; rows go over
gRPC.

    names        namespace "weir-NAME": actors "coordinator", "shard-0", "shard-1", ...
    placement    SPREAD over the nodes that offer the custom resource `ps` (one unit a shard); PACK where none does
    restarts     Ray starts a dead shard anew, on any port. With a journal it comes back with all that it had and goes
    on; else it is empty: clients get RowsLostError until `restore`

The caller has joined Ray (`ps/session.py`). Calls block; none longer than its stated seconds.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ps import control
from ps.client import Client
from ps.coordinator import Coordinator, Lease
from ps.coordinator_metrics import coordinator_registry
from ps.errors import RequestError, UnavailableError, WeirError, to_wire
from ps.memory_limits import check_limits, thresholds_here
from ps.metrics import Endpoint
from ps.options import ClientOptions
from ps.placement import journal_folder
from ps.ray_directory import CALL_SECONDS, RayDirectory, find_coordinator, namespace
from ps.routing import Routing
from ps.security import SecurityOptions, warn_if_open
from ps.server import ShardServer
from ps.session import free_resources, room_for_shards
from ps.spec import ClusterSpec
from ps.transport import GrpcTransport
from ps.user_modules import load_modules
from ps.wire import weir_pb2 as pb
from ps.work import open_shard

T = TypeVar("T")
RENEW_SECONDS = 2.0
START_SECONDS = 120.0
STOP_SECONDS = 20.0
# Each shard has one thread of work, so one thread is what any library inside it may have.
_ENVIRONMENT = {"env_vars": {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}


class CoordinatorActor:
    """Holds a Coordinator. Outcomes are ("ok", value) or (code, message, class name), as errors travel on the wire."""

    def __init__(self, name: str, spec_json: str, num_shards: int, on_loopback: bool = False) -> None:
        self._spec_json = spec_json
        spec = ClusterSpec.model_validate_json(spec_json)
        self._coordinator = Coordinator(name, num_shards=num_shards, num_buckets=spec.num_buckets)
        self._group: PlacementGroup | None = None
        self._pairs = [Authority(PAIR_LEASE_SECONDS) for _ in range(num_shards * spec.durability.is_replicated)]
        host = "127.0.0.1" if on_loopback else ray.util.get_node_ip_address()
        self._metrics_address = f"{host}:{Endpoint(coordinator_registry(self._coordinator), host, 0).port}"

    def renew(
        self, shard: int, *, address: str, incarnation: int, routing: bytes, pid: int, node: str, recovered: bool
    ) -> None:
        held = Routing.from_message(pb.Routing.FromString(routing)) if routing else None
        self._coordinator.renew(Lease(shard, address, incarnation, held, pid, node, time.monotonic(), recovered))

    def report(self, place: int, status: bytes, is_busy: bool, shard: int, **lease: Any) -> bytes:
        """Of a process of a pair: what it is, and its lease. Its next order, or nothing."""
        pair, now = self._pairs[shard], time.monotonic()
        pair.report(place, Seen.of(pb.PairStatus.FromString(status), lease["address"]), now=now)
        if pair.leads(place):
            self.renew(shard, recovered=bool(lease["routing"]), **lease)
        order = None if is_busy else pair.order(place, now=now)
        return b"" if order is None else order.SerializeToString()

    def routing(self) -> Any:
        return _outcome(lambda: self._coordinator.routing().to_message().SerializeToString())

    def propose(self) -> Any:
        return _outcome(lambda: self._coordinator.propose().to_message().SerializeToString())

    def commit(self, epoch: int) -> Any:
        return _outcome(lambda: self._coordinator.commit(epoch))

    def ready(self) -> bool:
        return self._coordinator.ready()

    def spec(self) -> str:
        return self._spec_json

    def keep(self, group: PlacementGroup) -> None:
        """Remember the cluster's placement group, for whoever stops the cluster."""
        self._group = group

    def group(self) -> PlacementGroup | None:
        return self._group

    def describe(self) -> dict[str, Any]:
        """Where its metrics are, epoch, lost and silent shards, and each shard's lease."""
        coordinator, now = self._coordinator, time.monotonic()
        return {
            "pairs": [[pair.describe(place, now) for place in (0, 1)] for pair in self._pairs],
            "failed": {shard: pair.failed for shard, pair in enumerate(self._pairs) if pair.failed},
            "metrics_address": self._metrics_address,
            "epoch": coordinator.epoch,
            "lost": coordinator.lost(),
            "silent": coordinator.silent(now),
            "shards": [
                {
                    "shard": lease.shard,
                    "address": lease.address,
                    "pid": lease.pid,
                    "node": lease.node,
                    "seconds_since_renewal": now - lease.renewed_at,
                }
                for _, lease in sorted(coordinator.leases.items())
            ],
        }


class ShardActor:
    """A shard's gRPC server in a process of its own, and the thread that renews its lease."""

    def __init__(
        self,
        name: str,
        shard: int,
        on_loopback: bool = False,
        journal: str | None = None,
        fresh: bool = False,
        security: str = "{}",
        place: int | None = None,
    ) -> None:
        """journal: folder of the shard's journal on its node. fresh: drop what it has, at the first start. security:
        JSON of SecurityOptions. place: in the shard's pair.
        """
        self._name = name
        self._shard = shard
        self._incarnation = secrets.randbits(63)
        self._node = ray.util.get_node_ip_address()
        host = "127.0.0.1" if on_loopback else self._node
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._journal = folder = None if journal is None else Path(journal)
        options = SecurityOptions.model_validate_json(security)
        opening = {"takes_over": again, "fresh": fresh and not again}
        paired = folder if place is not None else None
        self._server = ShardServer(
            host=host,
            thresholds=partial(thresholds_here, ray=True),
            shard=lambda observe: open_shard(None if paired else folder, observe=observe, **opening),
            member=None if paired is None else lambda work: Member(work, paired, security=options, **opening),
            security=options,
        )
        self._recovered = self._server.work.shard.holding is not None
        self._reporting = None if self._server.member is None else Reporting(self._server.member, place or 0)
        gc.freeze()  # as ps/process.py
        self._renewing = threading.Thread(target=self._renew_forever, name="weir-lease", daemon=True)
        self._renewing.start()

    def address(self) -> str:
        """Once it is up."""
        return self._server.address

    def forget(self) -> None:
        """End the shard, and delete its journal."""
        self._server.stop()
        if self._journal is not None:
            shutil.rmtree(self._journal, ignore_errors=True)

    def _renew_forever(self) -> None:
        coordinator = None
        while True:
            status = self._server.work.status()
            routing = status.routing.SerializeToString() if status.cluster_spec else b""
            lease = {
                "shard": self._shard,
                "address": self._server.address,
                "incarnation": self._incarnation,
                "routing": routing,
                "pid": os.getpid(),
                "node": self._node,
            }
            try:
                coordinator = coordinator or find_coordinator(self._name)
                if self._reporting is not None:
                    said = coordinator.report.remote(**self._reporting.says(), **lease)
                    self._reporting.obey(ray.get(said, timeout=CALL_SECONDS))
                else:
                    ray.get(coordinator.renew.remote(**lease, recovered=self._recovered), timeout=CALL_SECONDS)
            except (WeirError, RayError):
                coordinator = None  # restarting, or not there yet: shards go on without it
            time.sleep(RENEW_SECONDS if self._reporting is None else REPORT_SECONDS)


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
        check_limits(spec, shards, thresholds_here(ray=True))
    security = (security or SecurityOptions()).absolute()
    GrpcTransport(security).close()  # finds a file that does not do before anything starts
    if not on_loopback:
        warn_if_open("their nodes' addresses", security)
    deadline = time.monotonic() + start_seconds
    bundle, strategy = room_for_shards(shards, cpus_per_shard)
    folders = [journal_folder(spec, name, shard) for shard in range(shards)]
    journals = [None if folder is None else str(folder) for folder in folders]
    group = placement_group([bundle] * shards, strategy=strategy, name=namespace(name), lifetime="detached")
    coordinator = None
    try:
        if not group.wait(timeout_seconds=min(30.0, start_seconds)):
            raise RequestError(
                f"cluster {name!r}: no room for {shards} shards of {bundle} each; free now: {free_resources()}. "
                "Take fewer shards or smaller `cpus_per_shard`, or end what runs"
            )
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
        actors = [
            ray.remote(ShardActor)
            .options(
                name=f"shard-{shard}",
                namespace=namespace(name),
                lifetime="detached",
                num_cpus=cpus_per_shard,
                resources={key: value for key, value in bundle.items() if key != "CPU"},
                max_restarts=-1,
                runtime_env=_ENVIRONMENT,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=shard),
            )
            .remote(name, shard, on_loopback, journals[shard], fresh, security.model_dump_json())
            for shard in range(shards)
        ]
        ray.get([actor.address.remote() for actor in actors], timeout=max(0.1, deadline - time.monotonic()))
        _wait_until(lambda: bool(ray.get(coordinator.ready.remote(), timeout=CALL_SECONDS)), deadline, name)
        reassign_cluster(name, security)
    except (RayActorError, GetTimeoutError) as error:
        _remove(name, group, shards)
        # Ray gives the traceback of a failed actor as text; its end is what went wrong.
        said = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
        reason = ": ".join([line for line in said if line][-3:]) or type(error).__name__
        raise UnavailableError(f"cluster {name!r} was not up within {start_seconds:g} s: {reason}") from error
    except BaseException:
        _remove(name, group, shards)
        raise
    return RayDirectory(name)


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
        with suppress(ValueError, RayError):
            actors = [ray.get_actor(f"shard-{shard}", namespace=namespace(name)) for shard in range(shards)]
            ray.get([actor.forget.remote() for actor in actors], timeout=STOP_SECONDS)
    _remove(name, directory.ask("group"), shards)


def cluster_status(name: str, security: SecurityOptions | None = None) -> dict[str, Any]:
    """name, metrics_address, epoch, lost, silent, and for each shard its place, and what it says of itself: tables,
    queue_depth, uptime_seconds, metrics_address.
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
    return report


def _state(shard: int, report: dict[str, Any], status: pb.StatusReply | None) -> str:
    if status is None:
        return "silent"
    return "lost its rows" if shard in report["lost"] else "serving"


def _outcome(function: Callable[[], T]) -> tuple[Any, ...]:
    try:
        return ("ok", function())
    except WeirError as error:
        return to_wire(error)


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


def _remove(name: str, group: PlacementGroup | None, shards: int) -> None:
    """Kill the cluster's actors and wait until their names are free."""
    names = [f"shard-{shard}" for shard in range(shards)] + ["coordinator"]
    for actor in names:
        try:
            ray.kill(ray.get_actor(actor, namespace=namespace(name)), no_restart=True)
        except ValueError:
            continue  # it never started
    if group is not None:
        remove_placement_group(group)
    deadline = time.monotonic() + STOP_SECONDS
    while cluster_exists(name) and time.monotonic() < deadline:
        time.sleep(0.05)
