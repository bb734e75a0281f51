"""Clusters on this machine: shards in this process, or processes of their own on the loopback. And `connect`, to any
cluster.

with ps.local({"user": ps.TableSpec(...)}) as client: ...            one client, its own shards
with LocalCluster(spec, shards=2, placement="process") as cluster:   several clients
    client = cluster.connect(ClientOptions(...))
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from ps import control
from ps.client import Client
from ps.errors import RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.options import ClientOptions
from ps.pairs import Pair
from ps.routing import Routing
from ps.security import SecurityOptions
from ps.spec import ClusterSpec, TableSpec
from ps.transport import GrpcTransport, InProcessTransport, Transport
from ps.user_modules import load_modules
from ps.work import WorkThread, open_shard

Placement: TypeAlias = Literal["in-process", "process"]
START_SECONDS = 120.0
STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_log = logging.getLogger("weir.placement")


class ShardProcess:
    """One shard process on the loopback. It ends when this process ends, however that happens."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        journal: Path | None = None,
        fresh: bool = False,
        takes_over: bool = False,
        is_paired: bool = False,
        security: SecurityOptions | None = None,
    ) -> None:
        """journal, fresh, takes_over: as ps.work.open_shard has them. is_paired: one of a pair, which waits for
        orders.
        """
        self._command = [sys.executable, "-m", "ps.process", "--host", host, "--port", str(port), "--stop-at-eof"]
        if journal is not None:
            self._command += ["--journal", str(journal)]
        if security is not None:
            self._command += ["--security", security.model_dump_json()]
        self._command += ["--fresh"] * fresh + ["--takes-over"] * takes_over + ["--pair"] * is_paired
        # The pipe to its standard input is never written to: the kernel closes it with this process, and the shard
        # stops.
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which saves first
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        )
        self._where: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """host:port. Waits for the process to be up. Raises UnavailableError with what it said when it is not."""
        if not self._where:
            self._where = self._read_where()
        return str(self._where["address"])

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def known_address(self) -> str:
        """The address; empty before it is up."""
        assert self.process.stdout is not None
        if not self._where and select.select([self.process.stdout], [], [], 0.0)[0]:
            with suppress(UnavailableError):
                return self.address
        return str(self._where["address"]) if self._where else ""

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL if it does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_where(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = self.process.stdout.readline() if readable else ""
        if not line:
            state = f"said nothing for {START_SECONDS:g} s"
            if readable:
                state = f"ended with status {self.process.wait(STOP_SECONDS)}"
            self.stop()
            raise UnavailableError(f"a shard process {state}; its output is above (command: {' '.join(self._command)})")
        where: dict[str, Any] = json.loads(line)
        return where


class Reviver:
    """A thread that starts shard processes anew that died: on the same port, with their journals."""

    def __init__(
        self, processes: list[ShardProcess], journals: Sequence[Path | None], security: SecurityOptions | None
    ) -> None:
        """processes: replaced in place. One that ends before it listens is left: its journal cannot be read."""
        self.num_revived = 0
        self._processes, self._journals, self._security = processes, journals, security
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-reviver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Start none from now on."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        given_up: set[int] = set()
        while not self._stopping.wait(_LOOK_SECONDS):
            for shard, process in enumerate(self._processes):
                if shard in given_up or process.process.poll() is None:
                    continue
                port = int(process.address.rpartition(":")[2])
                process.stop()
                self._processes[shard] = ShardProcess(
                    port=port, journal=self._journals[shard], takes_over=True, security=self._security
                )
                try:
                    _ = self._processes[shard].address
                    self.num_revived += 1
                except UnavailableError as error:
                    _log.error("shard %d cannot be started anew: %s", shard, error)
                    given_up.add(shard)


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
        self.pairs: list[Pair[ShardProcess]] = []
        self._pairs_transport: Transport | None = None
        self._journals = journals = [journal_folder(spec, name, shard) for shard in range(shards)]
        try:
            if placement == "process":
                GrpcTransport(security).close()  # finds a file that does not do before any process starts
                if spec.durability.is_replicated:
                    self._journals = journals = [*journals, *(standby_folder(journal) for journal in journals)]
                is_paired = spec.durability.is_replicated
                self.processes = [
                    ShardProcess(journal=journal, fresh=fresh, is_paired=is_paired, security=security)
                    for journal in journals
                ]
                self.addresses = tuple(process.address for process in self.processes)
                if is_paired:
                    self.addresses = self._start_pairs()
            else:
                for shard, journal in enumerate(journals):
                    self._hosts[f"in-process:{shard}"] = WorkThread(open_shard(journal, fresh=fresh))
                self.addresses = tuple(self._hosts)
            transport = self._transport()
            try:
                control.assign(transport, spec, control.first_routing(transport, spec, self.addresses))
            finally:
                transport.close()
            if self.processes and spec.durability.keeps_journal and not self.pairs:
                self._reviver = Reviver(self.processes, journals, security)
        except BaseException:
            self.close()
            raise

    def connect(self, options: ClientOptions | None = None) -> Client:
        """A new client. Close it before the cluster."""
        return self._connect(options, owns_cluster=False)

    def close(self) -> None:
        """End all shards. Journals stay, for whoever starts them again, unless they began `fresh`."""
        if self._reviver is not None:
            self._reviver.stop()
        for pair in self.pairs:
            pair.stop()
        if self._pairs_transport is not None:
            self._pairs_transport.close()
        for process in self.processes:
            process.stop()
        for host in self._hosts.values():
            host.close()
        for journal in self._journals if self._fresh else []:
            if journal is not None:
                shutil.rmtree(journal, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_whole(self, seconds: float = START_SECONDS) -> None:
        """Until every standby has all rows; at once without standbys. Raises UnavailableError."""
        deadline = time.monotonic() + seconds
        while not all(pair.is_whole for pair in self.pairs):
            if time.monotonic() > deadline:
                raise UnavailableError(f"a standby of cluster {self.name!r} is not filled after {seconds:g} s")
            time.sleep(_LOOK_SECONDS)

    def _start_pairs(self) -> tuple[str, ...]:
        """The addresses of the primaries. Process `shard` and the one `num_shards` behind it are a pair."""
        shards, addresses = len(self.processes) // 2, self.addresses
        transport = self._pairs_transport = GrpcTransport(self.security)

        def start(place: int) -> ShardProcess:
            self.processes[place].stop()
            port = int(addresses[place].rpartition(":")[2])
            journal = self._journals[place]
            return ShardProcess(port=port, journal=journal, takes_over=True, is_paired=True, security=self.security)

        seconds = self.spec.durability.standby_seconds
        self.pairs = [
            Pair(shard, self.processes, (shard, shard + shards), start, transport, standby_seconds=seconds)
            for shard in range(shards)
        ]
        deadline = time.monotonic() + START_SECONDS
        while not all(pair.address for pair in self.pairs):
            if failed := next((pair.failed for pair in self.pairs if pair.failed), None):
                raise failed
            if time.monotonic() > deadline:
                raise UnavailableError(f"the pairs of cluster {self.name!r} were not up within {START_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)
        return tuple(pair.address for pair in self.pairs)

    def _transport(self) -> Transport:
        return GrpcTransport(self.security) if self.processes else InProcessTransport(self._hosts)

    def _connect(self, options: ClientOptions | None, *, owns_cluster: bool) -> Client:
        transport = self._transport()
        directory = control.StatusDirectory(self.name, transport, self.addresses)
        on_close = self.close if owns_cluster else None
        routing = directory.routing()
        return Client(self.spec, transport, directory, routing, options, cluster=self.name, on_close=on_close)


def standby_folder(journal: Path | None) -> Path | None:
    """Where the other process of a pair has its journal."""
    return None if journal is None else journal.with_name(f"{journal.name}-standby")


def journal_folder(spec: ClusterSpec, name: str, shard: int) -> Path | None:
    """Where a shard's journal lies; None where the spec asks for none."""
    if not spec.durability.keeps_journal:
        return None
    assert spec.durability.directory is not None
    return Path(spec.durability.directory).absolute() / name / f"shard-{shard:04d}"


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
            status = primary or status
        spec = control.read_spec(status, address)
        load_modules(spec.psfunc_modules)
        routing = Routing.from_message(status.routing)
        directory = control.StatusDirectory(address, transport, routing.addresses, others=[address])
        if status.pair.role:
            routing = directory.routing()  # the addresses of a routing are those at which its shards were once
        return Client(spec, transport, directory, routing, options, cluster=address)
    except BaseException:
        transport.close()
        raise
