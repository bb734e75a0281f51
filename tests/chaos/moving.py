"""Faults while buckets move and while shards are started anew one after another, for clusters of either kind."""

import threading
import time
from concurrent.futures import Future

from ps.errors import UnavailableError, WeirError
from ps.transport import GrpcTransport

_MOVES_SECONDS = 120.0
_MESSAGES = 30  # about as many as the moves of one resharding take


def reshard(shards, rng, clients):
    """To another number of shards and nothing else."""
    _finish_moves(shards, _other_count(shards), _at_once(rng))
    return "resharding"


def kill_in_move(shards, rng, clients):
    """SIGKILL of a process while buckets move; then the command is run again until it is done."""
    return _strike(shards, rng, "kill of a process", lambda: shards.kill_any(rng))


def cut_in_move(shards, rng, clients):
    """Connections of a process end while buckets move: those of clients, and of the command."""

    def cut():
        shards.forwarders[int(rng.integers(len(shards.forwarders)))].cut()
        return lambda: None

    return _strike(shards, rng, "connections cut", cut)


def lose_mover(shards, rng, clients):
    """Whoever moves the buckets dies between two messages; another one goes on."""
    return _strike(shards, rng, "the command dies", None)


def restart_all(shards, rng, clients):
    """A rolling restart; half of the times some process is killed meanwhile."""
    is_struck = rng.random() < 0.5
    struck_at = int(rng.integers(shards.count))
    for shard in range(shards.count):
        if is_struck and shard == struck_at:
            revive = shards.kill_any(rng)
            time.sleep(rng.uniform(0.0, 0.5))
            revive()
        shards.restart_gently(shard)
    return "kill during a rolling restart" if is_struck else "rolling restart"


FAULTS = [kill_in_move, restart_all, lose_mover, reshard, cut_in_move]


class _Struck:
    """A transport on which something happens at the Nth message, those that ask for a status aside. strike: None: it is
    cut off for ever.
    """

    crosses_processes = True

    def __init__(self, at, delay, strike):
        self._inner, self._left, self._delay, self._strike = GrpcTransport(), at, delay, strike
        self._is_dead = False
        self._strikers, self.revivals = [], []

    def send(self, address, method, message, timeout_seconds):
        if self._is_dead:
            gone = Future()
            gone.set_exception(UnavailableError("the command has died"))
            return gone
        self._left -= method != "Status"
        if self._left == 0 and method != "Status":
            if self._strike is None:
                self._is_dead = True
                answer = self._inner.send(address, method, message, timeout_seconds)  # its last words
                time.sleep(self._delay)
                return answer
            striker = threading.Thread(target=self._run, daemon=True)
            striker.start()
            self._strikers.append(striker)
        return self._inner.send(address, method, message, timeout_seconds)

    @property
    def has_struck(self):
        return self._left <= 0

    def close(self):
        for striker in self._strikers:
            striker.join()
        self._inner.close()

    def _run(self):
        time.sleep(self._delay)
        self.revivals.append(self._strike())


def _strike(shards, rng, what, strike):
    count, at_once = _other_count(shards), _at_once(rng)
    shards.grow(count)
    transport = _Struck(int(rng.integers(1, _MESSAGES)), rng.choice([0.0, 0.0, 0.005, 0.02, 0.1]), strike)
    failed = False
    try:
        for _ in shards.moves(count, at_once, transport):
            pass
    except WeirError:
        failed = True
    transport.close()
    for revive in transport.revivals:
        revive()
    _finish_moves(shards, count, at_once)
    if not transport.has_struck:
        return "resharding"
    return f"{what} during a move" + (", which is begun again" if failed else "")


def _finish_moves(shards, count, at_once):
    """As whoever runs the command until it says that it is done."""
    deadline = time.monotonic() + _MOVES_SECONDS
    while True:
        transport = GrpcTransport()
        try:
            shards.grow(count)
            for _ in shards.moves(count, at_once, transport):
                pass
            break
        except WeirError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        finally:
            transport.close()


def _other_count(shards):
    """Two become three, three two."""
    return 2 if shards.count > 2 else shards.count + 1


def _at_once(rng):
    return int(rng.choice([2, 4, 8]))
