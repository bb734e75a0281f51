"""One client in a process of its own: `python -m tests.chaos.worker --addresses A B --number C --ledger FILE`.

Sends its updates, several at once, until its standard input closes; then waits for all of them, and ends with status 0.
"""

import argparse
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import numpy as np

import ps
from tests.chaos.ledger import LedgerWriter
from tests.chaos.workload import CYCLE, MARKS, own_keys, send, step_of

_CONNECT_SECONDS = 60.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addresses", nargs="+", required=True, help="of processes that serve a shard, or may")
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until one message counts as failed")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between two updates")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for whoever started this, whose end closes the pipe
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    retry = ps.RetryOptions(timeout_seconds=options.timeout)
    client = _connect(options.addresses, ps.ClientOptions(staleness=-1, share_from_bytes=16_384, retry=retry))
    worker = _Worker(client, options.number, LedgerWriter(options.ledger))
    number = 0
    while not ending.is_set():
        worker.run(number)
        number += 1
        time.sleep(options.pause)
    worker.settle(0)
    with suppress(ps.WeirError):  # of an update that failed, as the ledger says
        client.close()
    return 0


class _Worker:
    def __init__(self, client, number, ledger):
        self._client, self._number, self._ledger = client, number, ledger
        self._open = deque()  # (number, future)
        self._marked = deque(maxlen=50)  # numbers of acknowledged updates with a mark

    def run(self, number):
        """Send update `number`, wait for one of those before it, and look now and then whether acknowledged ones are
        seen.
        """
        step = step_of(self._number, number)
        self._ledger.begin(number)
        try:
            future = send(self._client, step, number)
        except ps.WeirError as error:
            self._ledger.failed(number, error)
        else:
            if future is None:
                self._ledger.done(number)
            else:
                self._open.append((number, future))
        self.settle(7)
        if number % CYCLE == CYCLE - 1:
            self._look(number)

    def settle(self, at_most):
        """Wait until so many have no outcome."""
        while len(self._open) > at_most or (self._open and self._open[0][1].done()):
            number, future = self._open.popleft()
            try:
                future.wait()
            except ps.WeirError as error:
                self._ledger.failed(number, error)
                continue
            self._ledger.done(number)
            if MARKS in {int(key) >> 52 for key in step_of(self._number, number).adds.get("ones", ())}:
                self._marked.append(number)

    def _look(self, number):
        marked = list(self._marked)
        if not marked:
            return
        keys = np.concatenate([own_keys(MARKS, self._number, each) for each in marked])
        try:
            found = self._client.pull("ones", keys)[:, 0]
        except ps.WeirError:
            return
        for place in np.flatnonzero(found != 1).tolist():
            self._ledger.wrong(number, f"update {marked[place]}, acknowledged, is there {found[place]:g} times")


def _connect(addresses, options):
    deadline = time.monotonic() + _CONNECT_SECONDS
    for address in cycle(addresses):
        try:
            return ps.connect(address, options)
        except ps.WeirError:  # it is down, or was started a moment ago and belongs to no cluster yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    raise AssertionError("no address")


if __name__ == "__main__":
    sys.exit(main())
