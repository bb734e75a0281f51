"""What clusters under faults have in common: they grow and shrink while clients go on, and come to rest."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from ps import control, resharding
from ps.errors import UnavailableError
from ps.transport import GrpcTransport

_READY_SECONDS = 60.0


class Cluster:
    """A context manager: ends all that it started. Shards are numbered from 0; clients know addresses of shard 0.

    Kinds have: mode, count, addresses (where shards serve now, as clients reach them), client_addresses, `grow`,
    `_end`, `kill_any`, `restart_gently`, `wait_until_whole`, `recoveries`, `close`.
    """

    def __init__(self, spec, name):
        self.spec, self.name = spec, name

    def assign_first(self):
        """Give all shards their places."""
        transport = GrpcTransport()
        try:
            control.assign(transport, self.spec, control.first_routing(transport, self.spec, self.addresses))
        finally:
            transport.close()

    def moves(self, count, at_once, transport):
        """Move buckets until so many shards have even rows, as LocalCluster.reshard does; yields each step. After
        `grow`, where shards are added. Raises what a shard meets; it may be called again then.
        """
        before = self.count
        directory = control.StatusDirectory(self.name, transport, self.addresses)
        goal = resharding.balanced(transport, count)
        yield from resharding.move(transport, self.spec, directory, goal, at_once=at_once)
        if count < before:
            directory = control.StatusDirectory(self.name, transport, self.addresses[:count])
            resharding.settle(transport, self.spec, directory)
            self._end(count)

    def wait_until_idle(self):
        """Until no shard has anything to do. Raises UnavailableError when one does not answer."""
        transport, deadline = GrpcTransport(), time.monotonic() + _READY_SECONDS
        quiet = 0
        while quiet < 3:
            found = control.statuses(transport, self.addresses)
            quiet = quiet + 1 if all(status is not None and status.queue_depth == 0 for status in found) else 0
            if time.monotonic() > deadline:
                raise UnavailableError(f"shards did not come to rest within {_READY_SECONDS:g} s")
            time.sleep(0.1)
        transport.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def freeze(pid):
    """SIGSTOP, and wait until each thread stands still, or the process has gone."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while any(_state(task) not in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
            time.sleep(0.001)


def _state(task):
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
