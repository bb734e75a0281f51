"""Shard processes with journals behind forwarders: clients know the forwarders' addresses, which never change."""

import os
import shutil

from ps.placement import ShardProcess, journal_folder
from tests.chaos.cluster import Cluster
from tests.chaos.forwarder import Forwarder


class Shards(Cluster):
    """mode journal. A process that was killed stays dead until it is restarted."""

    mode = "journal"

    def __init__(self, spec, count, name="chaos"):
        super().__init__(spec, name)
        self.journals, self.processes, self.ports, self.forwarders = [], [], [], []
        try:
            self.grow(count)
            self.assign_first()
        except BaseException:
            self.close()
            raise

    @property
    def count(self):
        return len(self.processes)

    @property
    def addresses(self):
        return [forwarder.address for forwarder in self.forwarders]

    @property
    def client_addresses(self):
        return self.addresses[:1]

    def grow(self, count):
        """Start processes until there are so many."""
        for shard in range(self.count, count):
            self.journals.append(journal_folder(self.spec, self.name, shard))
            self.processes.append(ShardProcess(journal=self.journals[shard]))
        for process in self.processes[len(self.forwarders) :]:
            self.ports.append(int(process.address.rpartition(":")[2]))
            self.forwarders.append(Forwarder(self.ports[-1]))

    def kill(self, shard):
        """SIGKILL; returns when the process is gone."""
        self.processes[shard].process.kill()
        self.processes[shard].process.wait()
        self.processes[shard].stop()

    def kill_any(self, rng):
        """SIGKILL of one; what starts it again."""
        shard = int(rng.integers(self.count))
        self.kill(shard)
        return lambda: self.restart(shard)

    def begin_start(self, shard):
        """A new process on the shard's port, with its journal; it ends the old one if that still lives."""
        self.processes[shard] = ShardProcess(port=self.ports[shard], journal=self.journals[shard], takes_over=True)

    def wait_until_started(self, shard):
        """Raises UnavailableError when it did not come up: its output says why."""
        _ = self.processes[shard].address

    def restart(self, shard):
        self.begin_start(shard)
        self.wait_until_started(shard)

    def restart_gently(self, shard):
        """As a rolling restart does it."""
        self.processes[shard].stop()
        self.restart(shard)

    def wait_until_whole(self):
        """A shard with a journal is never less."""

    def recoveries(self):
        """Yields after all processes were killed and began anew from their journals."""
        for shard in range(self.count):
            self.kill(shard)
        for shard in range(self.count):
            self.restart(shard)
        yield

    def send_signal(self, shard, number):
        os.kill(self.processes[shard].pid, number)

    def close(self):
        for forwarder in self.forwarders:
            forwarder.close()
        for process in self.processes:
            process.stop()

    def _end(self, kept):
        for shard in range(kept, self.count):
            self.forwarders[shard].close()
            self.processes[shard].stop()
            shutil.rmtree(self.journals[shard])
        for each in (self.journals, self.processes, self.ports, self.forwarders):
            del each[kept:]
