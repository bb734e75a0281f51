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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from ps import control, resharding
from ps.client import Client
from ps.errors import RequestError, UnavailableError
from ps.memory_limits import check_limits, thresholds_here
from ps.options import ClientOptions
from ps.resharding import Move
from ps.routing import Routing
from ps.security import SecurityOptions
from ps.spec import ClusterSpec, TableSpec
from ps.transport import GrpcTransport, InProcessTransport, Transport, send_part
from ps.user_modules import load_modules
from ps.work import WorkThread, open_shard

Placement: TypeAlias = Literal["in-process", "process"]
START_SECONDS = 120.0
STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_MISTAKE = 2  # exit status of a process that was asked for what cannot be
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
        security: SecurityOptions | None = None,
    ) -> None:
        """journal, fresh, takes_over: as ps.work.open_shard has them."""
        self._command = [sys.executable, "-m", "ps.process", "--host", host, "--port", str(port), "--stop-at-eof"]
        if journal is not None:
            self._command += ["--journal", str(journal)]
        if security is not None:
            self._command += ["--security", security.model_dump_json()]
        self._command += ["--fresh"] * fresh + ["--takes-over"] * takes_over
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
        self._lock = threading.Lock()  # it says so once

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_up(self) -> bool:
        """Whether it has said where it listens, and was heard."""
        return bool(self._where)

    @property
    def address(self) -> str:
        """host:port. Waits for the process to be up. Raises UnavailableError with what it said when it is not."""
        with self._lock:
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


class Reviver:
    """A thread that starts shard processes anew that died: on the same port, with their journals."""

    def __init__(
        self, processes: list[ShardProcess], journals: Sequence[Path | None], security: SecurityOptions | None
    ) -> None:
        """processes: replaced in place. One that ends with status 2 is left: its journal cannot be read."""
        self.num_revived = 0
        self.lock = threading.Lock()  # held while it looks: whoever ends processes on purpose holds it
        self._processes, self._journals, self._security = processes, journals, security
        self._given_up: set[int] = set()
        self._ports: dict[int, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-reviver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Start none from now on."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            with self.lock:
                self._look()

    def _look(self) -> None:
        dead = [shard for shard, process in enumerate(self._processes) if process.process.poll() is not None]
        started = [shard for shard in dead if shard not in self._given_up]
        for shard in started:  # all of them, before waiting for one
            process = self._processes[shard]
            process.stop()
            if process.is_up:
                self._ports[shard] = int(process.address.rpartition(":")[2])
            self._processes[shard] = ShardProcess(
                port=self._ports[shard], journal=self._journals[shard], takes_over=True, security=self._security
            )
        for shard in started:
            try:
                _ = self._processes[shard].address
                self.num_revived += 1
            except UnavailableError as error:
                if self._processes[shard].process.returncode == _MISTAKE:
                    _log.error("shard %d cannot be started anew: %s", shard, error)
                    self._given_up.add(shard)


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
        check_limits(spec, shards, thresholds_here())
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
        self.addresses: tuple[str, ...] = ()
        try:
            if self._are_processes:
                GrpcTransport(security).close()  # finds a file that does not do before any process starts
            self._start(shards, fresh=fresh)
            transport = self._transport()
            try:
                control.assign(transport, spec, control.first_routing(transport, spec, self.addresses))
            finally:
                transport.close()
            if self.processes and spec.durability.keeps_journal:
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
        for process in self.processes:
            process.stop()
        for host in self._hosts.values():
            host.close()
        self._between.close()
        if self._fresh:
            self._forget(self._journals)

    def _start(self, more: int, *, fresh: bool) -> None:
        """So many shards more."""
        first = len(self.addresses)
        for shard in range(first, first + more):
            journal = journal_folder(self.spec, self.name, shard)
            self._journals.append(journal)
            if self._are_processes:
                self.processes.append(ShardProcess(journal=journal, fresh=fresh, security=self.security))
            else:
                send = partial(send_part, self._between)
                self._hosts[f"in-process:{shard}"] = WorkThread(open_shard(journal, fresh=fresh), send=send)
        made = (
            [process.address for process in self.processes[first:]] if self._are_processes else [*self._hosts][first:]
        )
        self.addresses = (*self.addresses, *made)

    def _end(self, kept: int) -> None:
        """Shards that have no buckets any more, behind the first `kept`, and their journals."""
        gone, self.addresses = self.addresses[kept:], self.addresses[:kept]
        with self._reviver.lock if self._reviver is not None else nullcontext():
            ended = self.processes[kept:]
            del self.processes[kept:]
        for process in ended:
            process.stop()
        for address in gone if self._hosts else ():
            self._hosts.pop(address).close()
        self._forget(self._journals[kept:])
        del self._journals[kept:]

    def _forget(self, journals: Sequence[Path | None]) -> None:
        for journal in journals:
            if journal is not None:
                shutil.rmtree(journal, ignore_errors=True)

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
