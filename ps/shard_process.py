"""Shard processes on the loopback: started and ended, and started anew where they have journals."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ps.errors import UnavailableError
from ps.security import SecurityOptions

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
        is_paired: bool = False,
        security: SecurityOptions | None = None,
    ) -> None:
        """journal, fresh, takes_over: as ps.opening.open_shard has them. is_paired: one of a pair, which waits for
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
        self._lock = threading.Lock()  # it says so once

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """host:port. Waits for the process to be up. Raises UnavailableError with what it said when it is not."""
        with self._lock:
            if not self._where:
                self._where = self._read_where()
        return str(self._where["address"])

    @property
    def is_up(self) -> bool:
        """Whether it has said where it listens, and was heard."""
        return bool(self._where)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def known_address(self) -> str:
        """The address; empty before it is up."""
        said = self.process.stdout
        if self.is_up or (said is not None and not said.closed and select.select([said], [], [], 0.0)[0]):
            with suppress(UnavailableError):
                return self.address
        return ""

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
        dead = [shard for shard, process in enumerate(self._processes) if not process.is_running]
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
