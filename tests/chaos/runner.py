"""A cluster under faults: `python -m tests.chaos.runner [--faults N] [--kinds K ...] [--json]` (make chaos).

Clients update, faults happen one after another, each after every client had updates acknowledged since the last one. At
the end: every acknowledged update is in the rows once, every failed one at most once, and nothing else; and fresh
processes, from the journals alone, have the same bits. Exit status 1 where that is not so.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import ps
from tests.chaos.faults import FAULTS
from tests.chaos.ledger import read_ledger
from tests.chaos.shards import Shards
from tests.chaos.verdict import Expected, judge, read_all, same_bits
from tests.chaos.workload import prepare, spec

_TIMEOUTS = (30.0, 1.5, 30.0)  # seconds, of clients in turn: an impatient one has updates of unknown outcome
_PROGRESS_SECONDS, _END_SECONDS = 90.0, 150.0


class Clients:
    """The client processes. A context manager: kills what is left of them."""

    def __init__(self, folder, address, count, pause):
        self._folder, self._address, self._pause = folder, address, pause
        self._processes, self._num_started = {}, 0  # by number of the client
        for _ in range(count):
            self._start()

    def kill_one(self, rng):
        """SIGKILL, of any but the one that evicts; and another one."""
        number = sorted(self._processes)[int(rng.integers(1, len(self._processes)))]
        process = self._processes.pop(number)
        process.kill()
        process.wait()
        process.stdin.close()
        self._start()

    def wait_for_progress(self):
        """Until each client had an update acknowledged from now on. Raises RuntimeError for one that has not."""
        before = {number: len(read_ledger(self._path(number)).acknowledged) for number in self._processes}
        deadline = time.monotonic() + _PROGRESS_SECONDS
        while before:
            for number in list(before):
                if self._processes[number].poll() is not None:
                    raise RuntimeError(f"client {number} ended; its output is above")
                if len(read_ledger(self._path(number)).acknowledged) > before[number]:
                    del before[number]
            if time.monotonic() > deadline:
                raise RuntimeError(f"clients {sorted(before)} got nothing done for {_PROGRESS_SECONDS:g} s")
            time.sleep(0.02)

    def finish(self):
        """End them, and read what all clients were told, those that were killed too: {number: Ledger}."""
        for process in self._processes.values():
            process.stdin.close()
        for number, process in self._processes.items():
            if process.wait(_END_SECONDS) != 0:
                raise RuntimeError(f"client {number} failed; its output is above")
        return {number: read_ledger(self._path(number)) for number in range(self._num_started)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdin.close()

    def _start(self):
        number = self._num_started
        self._num_started += 1
        self._path(number).touch()
        options = {"address": self._address, "number": number, "ledger": self._path(number), "pause": self._pause}
        options["timeout"] = _TIMEOUTS[number % len(_TIMEOUTS)]
        command = [sys.executable, "-m", "tests.chaos.worker"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._processes[number] = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def _path(self, number):
        return self._folder / f"client-{number}"


def run_chaos(folder, *, faults, num_shards=2, num_clients=3, seed=0, pause=0.002, tell=lambda text: None):
    """Inject the faults, one after another, and judge. Returns (Verdict, Counter of faults by what they did, names of
    tables that differ after the last recovery, seconds).
    """
    rng, began, done = np.random.default_rng(seed), time.monotonic(), Counter()
    (folder / "ledgers").mkdir()
    with ExitStack() as stack:
        shards = stack.enter_context(Shards(spec(folder / "journals"), num_shards))
        with ps.connect(shards.addresses[0]) as client:
            prepare(client)
        clients = stack.enter_context(Clients(folder / "ledgers", shards.addresses[0], num_clients, pause))
        for number, fault in enumerate(faults):
            clients.wait_for_progress()
            time.sleep(rng.uniform(0.0, 0.3))
            name = fault(shards, rng, clients)
            done[name] += 1
            tell(f"{number + 1}/{len(faults)} {name}")
        clients.wait_for_progress()
        ledgers = clients.finish()
        shards.wait_until_idle()
        expected = Expected()
        for number, ledger in ledgers.items():
            expected.add(number, ledger)
        with ps.connect(shards.addresses[0]) as client:
            served = read_all(client, expected)
        for shard in range(num_shards):
            shards.kill(shard)
        for shard in range(num_shards):
            shards.restart(shard)
        with ps.connect(shards.addresses[0]) as client:
            recovered = read_all(client, expected)
    verdict = judge(expected, served, list(ledgers.values()))
    return verdict, done, same_bits(served, recovered), time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=[fault.__name__ for fault in FAULTS], help="default: all")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where journals and ledgers lie; kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = [fault for fault in FAULTS if not options.kinds or fault.__name__ in options.kinds]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="weir-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    verdict, done, differ, seconds = run_chaos(
        folder,
        faults=[kinds[number % len(kinds)] for number in range(options.faults)],
        num_shards=options.shards,
        num_clients=options.clients,
        seed=options.seed,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    is_good = verdict.is_good and not differ
    result = {"good": is_good, **verdict.as_dict(), "differ": differ, "seconds": round(seconds), "faults": dict(done)}
    if options.json:
        print(json.dumps(result))
    else:
        for name, count in [*sorted(done.items()), *((n, v) for n, v in result.items() if n != "faults")]:
            print(f"{name:<36} {count}")
    if is_good and options.folder is None:
        shutil.rmtree(folder)
    elif not is_good:
        print(f"journals and ledgers are in {folder}", file=sys.stderr)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
