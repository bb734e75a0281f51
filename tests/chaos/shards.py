"""Shard processes with journals behind forwarders: clients know the forwarders' addresses, which never change."""

import os
import signal
import time
from pathlib import Path

from ps import control
from ps.errors import UnavailableError
from ps.placement import ShardProcess, journal_folder
from ps.transport import GrpcTransport
from tests.chaos.forwarder import Forwarder

_READY_SECONDS = 60.0


class Shards:
    """A cluster. A context manager: ends all that it started."""

    def __init__(self, spec, count, name="chaos"):
        self.spec = spec
        self.journals = [journal_folder(spec, name, shard) for shard in range(count)]
        self.processes = [ShardProcess(journal=journal) for journal in self.journals]
        self.forwarders = []
        try:
            self.ports = [int(process.address.rpartition(":")[2]) for process in self.processes]
            self.forwarders = [Forwarder(port) for port in self.ports]
            self.addresses = [forwarder.address for forwarder in self.forwarders]
            transport = GrpcTransport()
            control.assign(transport, spec, control.first_routing(transport, spec, self.addresses))
            transport.close()
        except BaseException:
            self.close()
            raise

    @property
    def count(self):
        return len(self.processes)

    def kill(self, shard):
        """SIGKILL; returns when the process is gone."""
        self.processes[shard].process.kill()
        self.processes[shard].process.wait()
        self.processes[shard].stop()

    def begin_start(self, shard):
        """A new process on the shard's port, with its journal; it ends the old one if that still lives."""
        self.processes[shard] = ShardProcess(port=self.ports[shard], journal=self.journals[shard], takes_over=True)

    def wait_until_started(self, shard):
        """Raises UnavailableError when it did not come up: its output says why."""
        _ = self.processes[shard].address

    def restart(self, shard):
        self.begin_start(shard)
        self.wait_until_started(shard)

    def send_signal(self, shard, number):
        os.kill(self.processes[shard].pid, number)

    def wait_until_idle(self):
        """Until no shard has anything to do. Raises UnavailableError when one does not answer."""
        transport, deadline = GrpcTransport(), time.monotonic() + _READY_SECONDS
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        quiet = 0
        while quiet < 3:
            found = control.statuses(transport, addresses)
            quiet = quiet + 1 if all(status is not None and status.queue_depth == 0 for status in found) else 0
            if time.monotonic() > deadline:
                raise UnavailableError(f"shards did not come to rest within {_READY_SECONDS:g} s")
            time.sleep(0.1)
        transport.close()

    def close(self):
        for forwarder in self.forwarders:
            forwarder.close()
        for process in self.processes:
            process.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def freeze(pid):
    """SIGSTOP, and wait until each thread stands still."""
    os.kill(pid, signal.SIGSTOP)
    while any(_state(task) not in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _state(task):
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
