"""Pairs of shard processes behind forwarders, kept in their roles by ps/pairs.py: mode replicated.

Every process is known by its forwarder's address, to clients and to the other process of its pair. Clients talk to the
primary, and only the primary talks to the standby: so what happens to a primary's forwarder happens between it and the
clients, what happens to a standby's between the two.
"""

import shutil
import threading
import time
from contextlib import contextmanager

from ps import control
from ps.pairs import Pair
from ps.placement import journal_folder, standby_folder
from ps.shard_process import ShardProcess
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.chaos.cluster import Cluster
from tests.chaos.forwarder import Forwarder

_STATUS_SECONDS = 2.0
_ANSWER_SECONDS = 60.0


class Pairs(Cluster):
    """mode replicated. A process that ended is started anew, one that is silent is ended, by its pair's thread."""

    mode = "replicated"

    def __init__(self, spec, count, name="chaos"):
        super().__init__(spec, name)
        self.pairs, self.processes, self.folders, self.forwarders = [], [], [], []  # of processes: two for each pair
        self.authority = Authority(self.forwarders)
        self._may_start = threading.Lock()
        try:
            self.grow(count)
            self.assign_first()
        except BaseException:
            self.close()
            raise

    @property
    def count(self):
        return len(self.pairs)

    @property
    def addresses(self):
        return [pair.address for pair in self.pairs]

    @property
    def client_addresses(self):
        return [forwarder.address for forwarder in self.forwarders[:2]]

    def grow(self, count):
        """Start pairs until there are so many."""
        for shard in range(self.count, count):
            journal = journal_folder(self.spec, self.name, shard)
            folders = (journal, standby_folder(journal))
            self.folders += folders
            self.forwarders += [Forwarder(0), Forwarder(0)]
            seconds = self.spec.durability.standby_seconds
            self.pairs.append(
                Pair(shard, folders, self.processes, self.authority, standby_seconds=seconds, start=self._start)
            )
        for pair in self.pairs:
            pair.wait_until_led()

    def _start(self, *, journal, port=0, **options):
        with self._may_start:
            return _Forwarded(self.forwarders[self.folders.index(journal)], journal=journal, **options)

    def primary(self, shard):
        """The place of its process in `processes`, `folders` and `forwarders`."""
        places = (2 * shard, 2 * shard + 1)
        return next(place for place in places if self.forwarders[place].address == self.pairs[shard].address)

    def standby(self, shard):
        """Likewise of the other process."""
        return self.primary(shard) ^ 1

    def kill(self, place):
        """SIGKILL; returns when the process is gone."""
        self.processes[place].kill()

    def kill_any(self, rng):
        """SIGKILL of one, which is started again by itself."""
        self.kill(int(rng.integers(len(self.processes))))
        return lambda: None

    @contextmanager
    def left_alone(self):
        """Nobody is started or ordered meanwhile."""
        with self._may_start, self.authority.silent():
            yield

    def is_joined(self, shard):
        """Whether updates of a shard wait for its standby, by what both processes say now."""
        transport, places = GrpcTransport(), (self.primary(shard), self.standby(shard))
        addresses = [f"127.0.0.1:{self.forwarders[place].target_port}" for place in places]
        found = control.statuses(transport, addresses, _STATUS_SECONDS)
        transport.close()
        if None in found:
            return False
        one, two = (status.pair for status in found)
        return (one.role, two.role, one.has_standby, one.term) == ("primary", "standby", True, two.term)

    def wait_until_whole(self):
        """Until each pair has a standby with all rows."""
        for pair in self.pairs:
            pair.wait_until_whole()

    def restart_gently(self, shard):
        """As a rolling restart does it: the standby, and when it has all rows again the primary, which it replaces."""
        for role in (self.standby, self.primary):
            self.processes[role(shard)].stop()
            self.pairs[shard].wait_until_whole()

    def recoveries(self):
        """Yields when all standbys have taken over, and when all processes began anew from their journals."""
        self.wait_until_whole()
        for shard in range(self.count):
            self.kill(self.primary(shard))
        self.wait_until_whole()
        yield
        with self.left_alone():
            for place in range(len(self.processes)):
                self.kill(place)
        self.wait_until_whole()
        yield

    def close(self):
        for pair in self.pairs:
            pair.stop()
        for forwarder in self.forwarders:
            forwarder.close()
        for process in self.processes:
            process.stop()
        self.authority.close()

    def _end(self, kept):
        for pair in self.pairs[kept:]:
            pair.stop()
        for place in range(2 * kept, len(self.processes)):
            self.forwarders[place].close()
            self.processes[place].stop()
            shutil.rmtree(self.folders[place])
        for each in (self.processes, self.folders, self.forwarders):
            del each[2 * kept :]
        del self.pairs[kept:]


class _Forwarded(ShardProcess):
    """A process whose address is its forwarder's. It keeps its port when it is started anew."""

    def __init__(self, forwarder, **options):
        self._forwarder = forwarder
        super().__init__(port=forwarder.target_port, **options)

    @property
    def address(self):
        self._forwarder.target_port = int(super().address.rpartition(":")[2])
        return self._forwarder.address


class Authority:
    """The transport of whoever orders the pairs. is_past: it reaches processes whatever their forwarders do."""

    crosses_processes = True

    def __init__(self, forwarders):
        self.is_past = False
        self._forwarders = forwarders
        self._inner = GrpcTransport()
        self._speaking = threading.Lock()
        self._orders = []

    def send(self, address, method, message, timeout_seconds):
        with self._speaking:
            ports = {each.address: each.target_port for each in self._forwarders}
            if self.is_past and address in ports:
                address = f"127.0.0.1:{ports[address]}"
            answer = self._inner.send(address, method, message, timeout_seconds)
            if isinstance(message, pb.PairRequest):
                self._orders = [*(order for order in self._orders if not order.done()), answer]
            return answer

    @contextmanager
    def silent(self):
        """No message is sent meanwhile, and orders that were given before are carried out."""
        with self._speaking:
            deadline = time.monotonic() + _ANSWER_SECONDS
            while not all(order.done() for order in self._orders):
                assert time.monotonic() < deadline, "an order to a pair has no answer"
                time.sleep(0.01)
            yield

    def close(self):
        self._inner.close()
