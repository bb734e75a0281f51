"""Clusters on this machine: shards in this process, or processes of their own on the loopback. And `connect`, to any
cluster.

with ps.local({"user": ps.TableSpec(...)}) as client: ...            one client, its own shards
with LocalCluster(spec, shards=2, placement="process") as cluster:   several clients
    client = cluster.connect(ClientOptions(...))
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, TypeAlias

from ps import control
from ps.client import Client
from ps.errors import RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.options import ClientOptions
from ps.routing import Routing
from ps.security import SecurityOptions
from ps.shard import Shard
from ps.spec import ClusterSpec, TableSpec
from ps.transport import GrpcTransport, InProcessTransport, Transport
from ps.user_modules import load_modules
from ps.work import WorkThread

Placement: TypeAlias = Literal["in-process", "process"]
START_SECONDS = 120.0
STOP_SECONDS = 10.0


class ShardProcess:
    """One shard process on the loopback. It ends when this process ends, however that happens."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, security: SecurityOptions | None = None) -> None:
        self._command = [sys.executable, "-m", "ps.process", "--host", host, "--port", str(port), "--stop-at-eof"]
        if security is not None:
            self._command += ["--security", security.model_dump_json()]
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


class LocalCluster:
    """Shards on this machine, assigned and ready. `close` ends them, and their rows with them."""

    def __init__(
        self,
        spec: ClusterSpec,
        *,
        shards: int = 1,
        placement: Placement = "in-process",
        name: str = "local",
        security: SecurityOptions | None = None,
    ) -> None:
        """security: of shards that are processes. Raises RequestError for a number of shards that the buckets do not
        allow, or memory limits that the machine does not.
        """
        if placement not in ("in-process", "process"):
            raise RequestError(f"placement {placement!r} is unknown; known: in-process, process")
        if not 1 <= shards <= spec.num_buckets:
            raise RequestError(f"{shards} shards for {spec.num_buckets} buckets; need 1 to {spec.num_buckets} shards")
        check_limits(spec, shards, thresholds_here())
        load_modules(spec.psfunc_modules)
        self.spec = spec
        self.name = name
        self.security = security
        self.processes: list[ShardProcess] = []
        self._hosts: dict[str, WorkThread] = {}
        try:
            if placement == "process":
                GrpcTransport(security).close()  # finds a file that does not do before any process starts
                self.processes = [ShardProcess(security=security) for _ in range(shards)]
                self.addresses = tuple(process.address for process in self.processes)
            else:
                self._hosts = {f"in-process:{shard}": WorkThread(Shard()) for shard in range(shards)}
                self.addresses = tuple(self._hosts)
            transport = self._transport()
            try:
                control.assign(transport, spec, Routing.initial(spec.num_buckets, self.addresses))
            finally:
                transport.close()
        except BaseException:
            self.close()
            raise

    def connect(self, options: ClientOptions | None = None) -> Client:
        """A new client. Close it before the cluster."""
        return self._connect(options, owns_cluster=False)

    def close(self) -> None:
        """End all shards."""
        for process in self.processes:
            process.stop()
        for host in self._hosts.values():
            host.close()

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
        spec = control.read_spec(status, address)
        load_modules(spec.psfunc_modules)
        routing = Routing.from_message(status.routing)
        directory = control.StatusDirectory(address, transport, routing.addresses)
        return Client(spec, transport, directory, routing, options, cluster=address)
    except BaseException:
        transport.close()
        raise
