"""The faults of shards with journals. Each gets the shards, a random generator and the clients; when it returns, every
shard runs and is reachable. What it returns is what it did, for the table: its own name, or that of what came of it.
"""

import os
import re
import shutil
import signal
import time

from ps.journal.segments import find_segments
from tests.chaos.cluster import freeze
from tests.chaos.disks import fill_disk, limit_files, tear

_SNAPSHOT_SECONDS = 3.0
_SMALL_DISK_BYTES = 512 << 20


def kill(shards, rng, clients):
    """SIGKILL, and a new process."""
    shard = _any(shards, rng)
    shards.kill(shard)
    shards.restart(shard)
    return "kill"


def kill_several(shards, rng, clients):
    """All shards at once."""
    for shard in range(shards.count):
        shards.kill(shard)
    for shard in range(shards.count):
        shards.begin_start(shard)
    for shard in range(shards.count):
        shards.wait_until_started(shard)
    return "kill all shards"


def kill_in_recovery(shards, rng, clients):
    """SIGKILL, and again while the new process reads the journal."""
    shard = _any(shards, rng)
    shards.kill(shard)
    for _ in range(int(rng.integers(1, 3))):
        newest = find_segments(shards.journals[shard])[-1]
        shards.begin_start(shard)
        # Up to the moment when it has taken the journal over, and a little behind it.
        deadline = time.monotonic() + rng.uniform(0.5, 5.0)
        while time.monotonic() < deadline and find_segments(shards.journals[shard])[-1] == newest:
            time.sleep(0.001)
        time.sleep(rng.choice([0.0, 0.0, 0.002, 0.02]))
        shards.kill(shard)
    shards.restart(shard)
    return "kill during recovery"


def kill_in_snapshot(shards, rng, clients):
    """SIGKILL while a snapshot is being written."""
    shard, deadline = _any(shards, rng), time.monotonic() + _SNAPSHOT_SECONDS
    found = False
    while not found and time.monotonic() < deadline:
        found = any(re.fullmatch(r"snapshot-.*\.tmp", entry.name) for entry in os.scandir(shards.journals[shard]))
    time.sleep(rng.choice([0.0, 0.0, 0.001, 0.005, 0.02]))
    shards.kill(shard)
    shards.restart(shard)
    return "kill during snapshot" if found else "kill"


def pause(shards, rng, clients):
    """SIGSTOP for a while, then SIGCONT."""
    shard = _any(shards, rng)
    freeze(shards.processes[shard].pid)
    time.sleep(rng.uniform(0.2, 3.0))
    shards.send_signal(shard, signal.SIGCONT)
    return "stop and continue"


def take_over(shards, rng, clients):
    """SIGSTOP, and a new process on the same journal, which must end the frozen one first."""
    shard = _any(shards, rng)
    old = shards.processes[shard]
    freeze(old.pid)
    time.sleep(rng.uniform(0.0, 0.5))
    shards.restart(shard)
    assert old.process.wait(1) == -signal.SIGKILL, "the frozen process was not ended"
    old.stop()
    return "take-over from a frozen process"


def cut(shards, rng, clients):
    """All connections of a shard end, several times."""
    forwarder = shards.forwarders[_any(shards, rng)]
    for _ in range(int(rng.integers(1, 6))):
        forwarder.cut()
        time.sleep(rng.uniform(0.0, 0.2))
    return "connections cut"


def swallow(shards, rng, clients):
    """Answers of a shard are lost: what it has done is asked for again."""
    forwarder = shards.forwarders[_any(shards, rng)]
    forwarder.swallow()
    time.sleep(rng.uniform(0.05, 1.0))
    forwarder.cut()
    forwarder.forward()
    return "answers lost"


def hold(shards, rng, clients):
    """No byte passes for a while; then the line is good again, or cut."""
    forwarder = shards.forwarders[_any(shards, rng)]
    forwarder.hold()
    time.sleep(rng.uniform(0.2, 3.0))
    if rng.random() < 0.5:
        forwarder.cut()
    forwarder.forward()
    return "black hole"


def full_disk(shards, rng, clients):
    """Writes fail: a limit on the size of the process's files, or a disk that is full where it is small enough to fill.
    Sometimes the process dies meanwhile.
    """
    shard = _any(shards, rng)
    folder = shards.journals[shard]
    if shutil.disk_usage(folder).total <= _SMALL_DISK_BYTES:
        name, undo = "disk full", fill_disk(folder.parent)
    else:
        name, undo = (
            "disk full (file size limit)",
            limit_files(shards.processes[shard].pid, int(rng.integers(4096, 1 << 19))),
        )
    time.sleep(rng.uniform(0.3, 3.0))
    if rng.random() < 0.4:
        shards.kill(shard)
        undo()
        shards.restart(shard)
        return name + ", then kill"
    undo()
    return name


def torn_tail(shards, rng, clients):
    """SIGKILL, and what stands behind the last acknowledged record becomes something else."""
    shard = _any(shards, rng)
    shards.kill(shard)
    tear(shards.journals[shard], rng)
    shards.restart(shard)
    return "kill, then torn bytes"


def kill_client(shards, rng, clients):
    """SIGKILL of a client in the middle of its updates; another one takes its place."""
    clients.kill_one(rng)
    return "kill of a client"


FAULTS = [
    kill, torn_tail, kill_in_snapshot, cut, take_over, full_disk, kill_in_recovery, swallow, kill_several, pause, hold,
    kill_client,
]  # fmt: skip


def _any(shards, rng):
    return int(rng.integers(shards.count))
