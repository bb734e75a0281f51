"""The Ray shells: a coordinator and a shard as actors. Started by ps/actor.py."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from ps.control import first_epoch
from ps.coordinator import Coordinator, Lease
from ps.coordinator_metrics import coordinator_registry
from ps.errors import WeirError, to_wire
from ps.member import Member
from ps.memory_limits import thresholds_here
from ps.metrics import Endpoint
from ps.opening import open_shard
from ps.pairing import Authority, Seen
from ps.ray_directory import CALL_SECONDS, find_coordinator
from ps.reporting import Reporting
from ps.routing import Routing
from ps.security import SecurityOptions
from ps.server import ShardServer
from ps.spec import ClusterSpec
from ps.wire import weir_pb2 as pb

T = TypeVar("T")
RENEW_SECONDS = 2.0
REPORT_SECONDS = 0.5  # of processes of pairs
PAIR_LEASE_SECONDS = 5.0  # without a report, after which the other one of a pair takes over


class CoordinatorActor:
    """Holds a Coordinator. Outcomes are ("ok", value) or (code, message, class name), as errors travel on the wire."""

    def __init__(self, name: str, spec_json: str, num_shards: int, on_loopback: bool = False) -> None:
        self._spec_json = spec_json
        spec = ClusterSpec.model_validate_json(spec_json)
        self._coordinator = Coordinator(
            name, num_shards=num_shards, num_buckets=spec.num_buckets, first_epoch=first_epoch(spec)
        )
        self._groups: list[PlacementGroup] = []
        self._pairs = defaultdict[int, Authority](lambda: Authority(PAIR_LEASE_SECONDS))  # by shard
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

    def failed(self) -> str:
        """Why a pair has no primary, or empty."""
        return next((pair.failed for pair in self._pairs.values() if pair.failed), "")

    def routing(self) -> Any:
        return _outcome(lambda: self._coordinator.routing().to_message().SerializeToString())

    def propose(self, owners: bytes | None = None) -> Any:
        """owners: int32 [num_buckets], little-endian."""
        wanted = None if owners is None else np.frombuffer(owners, "<i4").astype(np.int32)
        return _outcome(lambda: self._coordinator.propose(wanted).to_message().SerializeToString())

    def num_shards(self) -> int:
        return self._coordinator.num_shards

    def resize(self, num_shards: int) -> None:
        self._coordinator.resize(num_shards)

    def commit(self, epoch: int) -> Any:
        return _outcome(lambda: self._coordinator.commit(epoch))

    def ready(self) -> bool:
        return self._coordinator.ready()

    def spec(self) -> str:
        return self._spec_json

    def keep(self, group: PlacementGroup) -> None:
        """Remember a placement group of the cluster, for whoever stops it."""
        self._groups.append(group)

    def groups(self) -> list[PlacementGroup]:
        return self._groups

    def describe(self) -> dict[str, Any]:
        """Where its metrics are, epoch, lost and silent shards, and each shard's lease."""
        coordinator, now = self._coordinator, time.monotonic()
        return {
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
                    **({"pair": self._pairs[lease.shard].describe(now)} if lease.shard in self._pairs else {}),
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
        JSON of SecurityOptions. place: in the shard's pair, where it has one.
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
            security=options,
            member=None if paired is None else lambda work: Member(work, paired, security=options, **opening),
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
                if self._reporting is None:
                    ray.get(coordinator.renew.remote(**lease, recovered=self._recovered), timeout=CALL_SECONDS)
                else:
                    said = coordinator.report.remote(**self._reporting.says(), **lease)
                    self._reporting.obey(ray.get(said, timeout=CALL_SECONDS))
            except (WeirError, RayError):
                coordinator = None  # restarting, or not there yet: shards go on without it
            time.sleep(RENEW_SECONDS if self._reporting is None else REPORT_SECONDS)


def _outcome(function: Callable[[], T]) -> tuple[Any, ...]:
    try:
        return ("ok", function())
    except WeirError as error:
        return to_wire(error)
