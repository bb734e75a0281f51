"""The faults of pairs. As those of faults.py: each gets the pairs, a random generator and the clients, and returns what
it did. A pair starts its processes by itself, so a fault may return while one of them is still away.

What was acknowledged is destroyed at one process of a pair only, and only while the pair is joined.
"""

import os
import re
import shutil
import signal
import time
from contextlib import contextmanager, suppress

from tests.chaos.cluster import freeze
from tests.chaos.disks import damage_acknowledged, limit_files, tear
from tests.chaos.faults import kill_client

_SNAPSHOT_SECONDS = 3.0
_JOIN_SECONDS = 60.0


def kill_primary(pairs, rng, clients):
    """SIGKILL: the standby takes over."""
    pairs.kill(pairs.primary(_any(pairs, rng)))
    return "kill of a primary"


def kill_standby(pairs, rng, clients):
    """SIGKILL: the primary goes on alone."""
    pairs.kill(pairs.standby(_any(pairs, rng)))
    return "kill of a standby"


def kill_both(pairs, rng, clients):
    """SIGKILL of a whole pair, or of all: journals are read."""
    places = range(len(pairs.processes)) if rng.random() < 0.3 else _places(_any(pairs, rng))
    for place in places:
        pairs.kill(place)
    return "kill of both processes"


def kill_while_filled(pairs, rng, clients):
    """SIGKILL of the standby, and of either process while the standby has not all rows again."""
    shard = _any(pairs, rng)
    pairs.wait_until_whole()
    standby = pairs.standby(shard)
    pairs.kill(standby)
    _running(pairs, standby)
    time.sleep(rng.uniform(0.0, 0.4))
    pairs.kill(pairs.primary(shard) if rng.random() < 0.7 else standby)
    return "kill while the standby is filled"


def kill_in_snapshot(pairs, rng, clients):
    """SIGKILL of a process while it writes a snapshot."""
    place, deadline = int(rng.integers(len(pairs.processes))), time.monotonic() + _SNAPSHOT_SECONDS
    found = False
    while not found and time.monotonic() < deadline:
        found = any(re.fullmatch(r"snapshot-.*\.tmp", entry.name) for entry in os.scandir(pairs.folders[place]))
    time.sleep(rng.choice([0.0, 0.0, 0.001, 0.005, 0.02]))
    pairs.kill(place)
    return "kill during snapshot" if found else "kill of a process"


def pause(pairs, rng, clients):
    """SIGSTOP of either process, SIGCONT before it is replaced."""
    process = _running(pairs, int(rng.integers(len(pairs.processes))))
    freeze(process.pid)
    time.sleep(rng.uniform(0.2, 0.6 * pairs.spec.durability.standby_seconds))
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    return "stop and continue"


def freeze_until_replaced(pairs, rng, clients):
    """SIGSTOP of either process, until its pair ends it."""
    shard = _any(pairs, rng)
    place = pairs.primary(shard) if rng.random() < 0.5 else pairs.standby(shard)
    process = _running(pairs, place)
    freeze(process.pid)
    assert process.process.wait(_JOIN_SECONDS) == -signal.SIGKILL, "the frozen process was not ended"
    return "frozen, and replaced"


def cut_clients(pairs, rng, clients):
    """All connections to a primary end, several times."""
    _cut(pairs.forwarders[pairs.primary(_any(pairs, rng))], rng)
    return "connections to a primary cut"


def cut_pair(pairs, rng, clients):
    """All connections between primary and standby end, several times."""
    _cut(pairs.forwarders[pairs.standby(_any(pairs, rng))], rng)
    return "connections between primary and standby cut"


def lose_answers(pairs, rng, clients):
    """Answers of a primary to clients, or of a standby to its primary, are lost: what was done is asked for again."""
    forwarder = pairs.forwarders[int(rng.integers(len(pairs.processes)))]
    forwarder.swallow()
    time.sleep(rng.uniform(0.05, 1.0))
    forwarder.cut()
    forwarder.forward()
    return "answers lost"


def hold_clients(pairs, rng, clients):
    """No byte passes to and from a primary for a while; who orders the pair sees it all the same."""
    _hold(pairs, pairs.primary(_any(pairs, rng)), rng, is_past=True)
    return "black hole before a primary"


def hold_pair(pairs, rng, clients):
    """No byte passes between primary and standby for a while, perhaps until updates are refused; who orders the pair
    sees both.
    """
    _hold(pairs, pairs.standby(_any(pairs, rng)), rng, is_past=True)
    return "black hole between primary and standby"


def cut_off(pairs, rng, clients):
    """A process is cut off from everybody, perhaps until it is replaced."""
    _hold(pairs, int(rng.integers(len(pairs.processes))), rng, is_past=False)
    return "a process cut off"


def full_disk(pairs, rng, clients):
    """Writes of one process fail (a limit on the size of its files). Sometimes it dies meanwhile."""
    place = int(rng.integers(len(pairs.processes)))
    process = _running(pairs, place)
    undo = limit_files(process.pid, int(rng.integers(4096, 1 << 19)))
    time.sleep(rng.uniform(0.3, 1.5 * pairs.spec.durability.standby_seconds))
    if rng.random() < 0.4:
        process.kill()
        return "disk full (file size limit), then kill"
    undo()
    return "disk full (file size limit)"


def torn_tails(pairs, rng, clients):
    """SIGKILL of both, and what stands behind the last acknowledged record of either becomes something else."""
    shard = _any(pairs, rng)
    with _joined(pairs, shard):
        for place in _places(shard):
            pairs.kill(place)
            tear(pairs.folders[place], rng)
    return "kill of both, then torn bytes"


def damage_one(pairs, rng, clients):
    """SIGKILL of both, and bytes that one of them had acknowledged are flipped or cut off: the other has them."""
    shard = _any(pairs, rng)
    with _joined(pairs, shard):
        damaged = pairs.primary(shard) if rng.random() < 0.7 else pairs.standby(shard)
        for place in _places(shard):
            pairs.kill(place)
        how = damage_acknowledged(pairs.folders[damaged], rng)
    pairs.wait_until_whole()
    return f"kill of both, then acknowledged bytes of one {how}"


def lose_disk(pairs, rng, clients):
    """SIGKILL of one, and its folder is gone."""
    shard = _any(pairs, rng)
    with _joined(pairs, shard):
        place = pairs.primary(shard) if rng.random() < 0.5 else pairs.standby(shard)
        pairs.kill(place)
        shutil.rmtree(pairs.folders[place])
    pairs.wait_until_whole()
    return "kill of one, its folder gone"


FAULTS = [
    kill_primary, damage_one, cut_pair, kill_both, hold_pair, kill_in_snapshot, kill_standby, lose_answers, full_disk,
    freeze_until_replaced, torn_tails, cut_clients, kill_while_filled, pause, lose_disk, hold_clients, cut_off,
    kill_client,
]  # fmt: skip


@contextmanager
def _joined(pairs, shard):
    """Nobody is started or ordered inside, and the pair is joined."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < deadline:
        pairs.wait_until_whole()
        with pairs.left_alone():
            if pairs.is_joined(shard):
                yield
                return
    raise AssertionError(f"pair {shard} was not joined for {_JOIN_SECONDS:g} s")


def _any(pairs, rng):
    return int(rng.integers(pairs.count))


def _places(shard):
    return (2 * shard, 2 * shard + 1)


def _running(pairs, place):
    """The process at a place once it listens; it may have been killed a moment ago."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while not (pairs.processes[place].is_running and pairs.processes[place].is_up):
        assert time.monotonic() < deadline, "a process was not started anew"
        time.sleep(0.005)
    return pairs.processes[place]


def _cut(forwarder, rng):
    for _ in range(int(rng.integers(1, 6))):
        forwarder.cut()
        time.sleep(rng.uniform(0.0, 0.2))


def _hold(pairs, place, rng, *, is_past):
    forwarder = pairs.forwarders[place]
    pairs.authority.is_past = is_past
    forwarder.hold()
    time.sleep(rng.uniform(0.2, 2.0 * pairs.spec.durability.standby_seconds))
    if rng.random() < 0.5:
        forwarder.cut()
    forwarder.forward()
    pairs.authority.is_past = False
