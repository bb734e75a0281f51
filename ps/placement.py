"""Clusters on this machine: shards in this process, or processes of their own on the loopback. And `connect`, to any
cluster.

with ps.local({"user": ps.TableSpec(...)}) as client: ...            one client, its own shards
with LocalCluster(spec, shards=2, placement="process") as cluster:   several clients
    client = cluster.connect(ClientOptions(...))
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from ps import control, resharding
from ps.client import Client
from ps.errors import RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.opening import open_shard
from ps.options import ClientOptions
from ps.pairs import Pair
from ps.resharding import Move
from ps.routing import Routing
from ps.security import SecurityOptions
from ps.shard_process import Reviver, ShardProcess
from ps.spec import ClusterSpec, TableSpec
from ps.transport import GrpcTransport, InProcessTransport, Transport, send_part
from ps.user_modules import load_modules
from ps.work import WorkThread

Placement: TypeAlias = Literal["in-process", "process"]


class LocalCluster:
    """Shards on this machine, assigned and ready. `close` ends them, and their rows with them."""

    def __init__(
        self,
        spec: ClusterSpec,
        *,
        shards: int = 1,
        placement: Placement = "in-process",
        name: str = "local",
        fresh: bool = False,
        security: SecurityOptions | None = None,
    ) -> None:
        """With journals, begins with what those of this name have; a shard process that dies is started anew, and has
        then what it had. fresh: drop what the journals have, and drop them at the end. security: of shards that
        are processes.

        Raises RequestError for a number of shards that the buckets do not allow, memory limits that the machine does
        not, or journals of another spec, JournalError for damaged ones.
        """
        if placement not in ("in-process", "process"):
            raise RequestError(f"placement {placement!r} is unknown; known: in-process, process")
        if not 1 <= shards <= spec.num_buckets:
            raise RequestError(f"{shards} shards for {spec.num_buckets} buckets; need 1 to {spec.num_buckets} shards")
        if spec.durability.is_replicated and placement != "process":
            raise RequestError(
                "durability.mode 'replicated' needs shards in processes of their own: placement 'process'"
            )
        check_limits(spec, shards * (1 + spec.durability.is_replicated), thresholds_here())
        load_modules(spec.psfunc_modules)
        self.spec = spec
        self.name = name
        self.security = security
        self._fresh = fresh
        self.processes: list[ShardProcess] = []
        self._hosts: dict[str, WorkThread] = {}
        self._reviver: Reviver | None = None
        self._are_processes = placement == "process"
        self._between = InProcessTransport(self._hosts)
        self._journals: list[Path | None] = []
        self._addresses: list[str] = []  # of shards that are no pairs
        self.pairs: list[Pair] = []
        self._pair_transport: Transport | None = None
        try:
            if self._are_processes:
                GrpcTransport(security).close()  # finds a file that does not do before any process starts
            self._start(shards, fresh=fresh)
            transport = self._transport()
            try:
                control.assign(transport, spec, control.first_routing(transport, spec, self.addresses))
            finally:
                transport.close()
            if self.processes and spec.durability.keeps_journal and not self.pairs:
                self._reviver = Reviver(self.processes, self._journals, security)
        except BaseException:
            self.close()
            raise

    def connect(self, options: ClientOptions | None = None) -> Client:
        """A new client. Close it before the cluster."""
        return self._connect(options, owns_cluster=False)

    def reshard(self, shards: int, *, at_once: int = resharding.AT_ONCE) -> Iterator[Move]:
        """Move buckets until so many shards have even numbers of rows, while clients go on; yields every step. With the
        present number of shards it balances. at_once: buckets in one step.
        """
        before = len(self.addresses)
        if not 1 <= shards <= self.spec.num_buckets:
            raise RequestError(
                f"{shards} shards for {self.spec.num_buckets} buckets; need 1 to {self.spec.num_buckets}"
            )
        self._start(shards - before, fresh=True)
        transport = self._transport()
        try:
            directory = control.StatusDirectory(self.name, transport, self.addresses)
            goal = resharding.balanced(transport, shards)
            yield from resharding.move(transport, self.spec, directory, goal, at_once=at_once)
            if shards < before:
                directory = control.StatusDirectory(self.name, transport, self.addresses[:shards])
                resharding.settle(transport, self.spec, directory)
                self._end(shards)
        finally:
            transport.close()

    def close(self) -> None:
        """End all shards. Journals stay, for whoever starts them again, unless they began `fresh`."""
        if self._reviver is not None:
            self._reviver.stop()
        for pair in self.pairs:
            pair.stop()
        for process in self.processes:
            process.stop()
        for host in self._hosts.values():
            host.close()
        self._between.close()
        if self._pair_transport is not None:
            self._pair_transport.close()
        if self._fresh:
            self._forget(self._journals)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the shards; of pairs, where their primaries are now."""
        if self.pairs:
            return tuple(pair.address for pair in self.pairs)
        return tuple(self._addresses)

    def _start(self, more: int, *, fresh: bool) -> None:
        """So many shards more."""
        first = len(self.addresses)
        for shard in range(first, first + more):
            journal = journal_folder(self.spec, self.name, shard)
            self._journals.append(journal)
            if self.spec.durability.is_replicated:
                self._start_pair(shard, fresh=fresh)
            elif self._are_processes:
                self.processes.append(ShardProcess(journal=journal, fresh=fresh, security=self.security))
            else:
                send = partial(send_part, self._between)
                self._hosts[f"in-process:{shard}"] = WorkThread(open_shard(journal, fresh=fresh), send=send)
        for pair in self.pairs[first:]:
            pair.wait_until_led()
        if not self.pairs:
            made = [each.address for each in self.processes[first:]] if self._are_processes else [*self._hosts][first:]
            self._addresses += made

    def _start_pair(self, shard: int, *, fresh: bool) -> None:
        journal = self._journals[-1]
        assert journal is not None
        folders = (journal, standby_folder(journal))
        transport = self._pair_transport = self._pair_transport or GrpcTransport(self.security)
        seconds = self.spec.durability.standby_seconds
        self.pairs.append(
            Pair(
                shard,
                folders,
                self.processes,
                transport,
                standby_seconds=seconds,
                fresh=fresh,
                security=self.security,
            )
        )

    def _end(self, kept: int) -> None:
        """Shards that have no buckets any more, behind the first `kept`, and their journals."""
        gone = self.addresses[kept:]
        del self._addresses[kept:]
        for pair in self.pairs[kept:]:
            pair.stop()
        del self.pairs[kept:]
        with self._reviver.lock if self._reviver is not None else nullcontext():
            first = kept * (1 + self.spec.durability.is_replicated)
            ended = self.processes[first:]
            del self.processes[first:]
        for process in ended:
            process.stop()
        for address in gone if self._hosts else ():
            self._hosts.pop(address).close()
        self._forget(self._journals[kept:])
        del self._journals[kept:]

    def _forget(self, journals: Sequence[Path | None]) -> None:
        for journal in journals:
            if journal is not None:
                for folder in (journal, standby_folder(journal)):
                    shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transport(self) -> Transport:
        return GrpcTransport(self.security) if self.processes else InProcessTransport(self._hosts)

    def _connect(self, options: ClientOptions | None, *, owns_cluster: bool) -> Client:
        transport = self._transport()
        directory = control.StatusDirectory(self.name, transport, self.addresses)
        on_close = self.close if owns_cluster else None
        routing = directory.routing()
        return Client(self.spec, transport, directory, routing, options, cluster=self.name, on_close=on_close)


def journal_folder(spec: ClusterSpec, name: str, shard: int) -> Path | None:
    """Where a shard's journal lies; None where the spec asks for none."""
    if not spec.durability.keeps_journal:
        return None
    assert spec.durability.directory is not None
    return Path(spec.durability.directory).absolute() / name / f"shard-{shard:04d}"


def standby_folder(journal: Path) -> Path:
    """Where the other process of a pair has its journal."""
    return journal.with_name(f"{journal.name}-standby")


def local(
    tables: Mapping[str, TableSpec] | ClusterSpec,
    *,
    shards: int = 1,
    placement: Placement = "in-process",
    options: ClientOptions | None = None,
    num_buckets: int = 256,
    seed: int = 0,
    psfunc_modules: tuple[str, ...] = (),
    check: bool = False,
    security: SecurityOptions | None = None,
) -> Client:
    """A client with shards of its own, which end with it. num_buckets, seed and psfunc_modules: where no ClusterSpec
    is given. check: compile users' row functions with bounds checks. security: of shards that are processes.
    """
    if isinstance(tables, ClusterSpec):
        spec = tables.model_copy(update={"check": True}) if check else tables
    else:
        spec = ClusterSpec(
            psfunc_modules=psfunc_modules, tables=dict(tables), num_buckets=num_buckets, seed=seed, check=check
        )
    cluster = LocalCluster(spec, shards=shards, placement=placement, security=security)
    return cluster._connect(options, owns_cluster=True)


def connect(address: str, options: ClientOptions | None = None, security: SecurityOptions | None = None) -> Client:
    """A client of a running cluster, found through the "host:port" of any of its shards. security: that of the shards.

    Raises UnavailableError when nothing answers there, NotAllowedError when the shard turns this process away,
    RequestError when it belongs to no cluster yet.
    """
    transport = GrpcTransport(security)
    try:
        (status,) = control.statuses(transport, [address], timeout_seconds=5.0)
        if status is None:
            raise UnavailableError(
                f"no shard answers at {address}; `weir status` shows where shards listen. One with TLS hangs up on "
                "clients without it, or without a certificate that it asks for: security.tls"
            )
        if not status.cluster_spec and status.pair.other:  # a standby
            (primary,) = control.statuses(transport, [status.pair.other], timeout_seconds=5.0)
            address, status = (status.pair.other, primary) if primary is not None else (address, status)
        spec = control.read_spec(status, address)
        load_modules(spec.psfunc_modules)
        routing = Routing.from_message(status.routing)
        primaries = {status.shard: address} if status.pair.role == "primary" else {}
        directory = control.StatusDirectory(address, transport, routing.addresses, primaries)
        if status.pair.role:
            routing = directory.routing()  # the addresses of a routing are those at which its shards were once
        return Client(spec, transport, directory, routing, options, cluster=address)
    except BaseException:
        transport.close()
        raise
