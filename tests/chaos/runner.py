"""A cluster under faults: `python -m tests.chaos.runner [--mode M] [--faults N] [--kinds K ...] [--json]` (make chaos).

Clients update, faults happen one after another, each after every client had updates acknowledged since the last one. At
the end: every acknowledged update is in the rows once, every failed one at most once, and nothing else; and fresh
processes, from the journals alone (in mode replicated the standbys, too), have the same bits. Exit status 1 where that
is not so.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import ps
from tests.chaos import faults, moving, pair_faults
from tests.chaos.clients import Clients
from tests.chaos.pairs import Pairs
from tests.chaos.shards import Shards
from tests.chaos.verdict import Expected, judge, read_all, same_bits
from tests.chaos.workload import prepare, spec

CLUSTERS = {"journal": Shards, "replicated": Pairs}
KINDS = {"journal": [*faults.FAULTS, *moving.FAULTS], "replicated": [*pair_faults.FAULTS, *moving.FAULTS]}


def run_chaos(
    folder,
    *,
    faults,
    mode="journal",
    num_shards=2,
    num_clients=3,
    seed=0,
    pause=0.002,
    tell=lambda text: None,
    ledgers_folder=None,
):
    """Inject the faults, one after another, and judge. Returns (Verdict, Counter of faults by what they did, names of
    tables that differ after the last recovery, seconds).
    """
    rng, began, done = np.random.default_rng(seed), time.monotonic(), Counter()
    ledgers_folder = ledgers_folder or folder / "ledgers"
    ledgers_folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        shards = stack.enter_context(CLUSTERS[mode](spec(folder / "journals", mode=mode), num_shards))
        with ps.connect(shards.addresses[0]) as client:
            prepare(client)
        clients = stack.enter_context(Clients(ledgers_folder, shards.client_addresses, num_clients, pause))
        for number, fault in enumerate(faults):
            clients.wait_for_progress()
            time.sleep(rng.uniform(0.0, 0.3))
            name = fault(shards, rng, clients)
            done[name] += 1
            tell(f"{time.monotonic() - began:.0f} s: {number + 1}/{len(faults)} {name}")
        clients.wait_for_progress()
        ledgers = clients.finish()
        shards.wait_until_whole()
        shards.wait_until_idle()
        expected = Expected()
        for number, ledger in ledgers.items():
            expected.add(number, ledger)
        with ps.connect(shards.addresses[0]) as client:
            served = read_all(client, expected)
        differ = []
        for _ in shards.recoveries():
            with ps.connect(shards.addresses[0]) as client:
                differ += same_bits(served, read_all(client, expected))
    verdict = judge(expected, served, list(ledgers.values()))
    return verdict, done, differ, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--mode", choices=list(CLUSTERS), default="journal")
    known = sorted({fault.__name__ for kinds in KINDS.values() for fault in kinds})
    parser.add_argument("--kinds", nargs="+", choices=known, help="default: all of the mode")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between two updates of a client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where journals and ledgers lie; kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with it all that was started ends, frozen processes too
    kinds = [fault for fault in KINDS[options.mode] if not options.kinds or fault.__name__ in options.kinds]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="weir-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    verdict, done, differ, seconds = run_chaos(
        folder,
        mode=options.mode,
        faults=[kinds[number % len(kinds)] for number in range(options.faults)],
        num_shards=options.shards,
        num_clients=options.clients,
        seed=options.seed,
        pause=options.pause,
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
