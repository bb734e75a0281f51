"""What a key costs as a table grows from 10^5 to 10^8 rows, beside a plain random gather over as many bytes.

    python benchmarks/scale.py [--json] [--quick] [--rows N ...] [--rounds N] [--markdown FILE]
    python benchmarks/scale.py --big [--rows 200000000] --folder FOLDER      20 GiB of memory, 7 GB of disk, minutes

    pull             Table.pull of 106,496 uniform keys that have rows
    pull by bucket   the same of unique keys grouped by bucket, as a shard gets them from a client
    push             Table.push of such: find, row-wise AdaGrad, round
    gather           np.take of as many rows of the same bytes, out of one dense array

Rows have dim 8 in bf16. Times are CPU time, the median over rounds, in which they take turns. Cost grows with
caches and address translation whatever one does, so the claim is about growth over the smallest size beside the
gather's: `ratio_growth_{pull,pull_by_bucket,push}` at the largest.

--big: a shard with one table whose rows keep their last push. Load (pushes of new keys), pull, push, save to FOLDER,
restore from there, evict the half that is old, once; wall seconds and resident memory after each. Start-up of a shard
with a table of two segments, cold (compile) and warm (load), is measured unless --big; imports aside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ps.checkpoint import write_manifest
from ps.routing import Routing
from ps.shard import Shard
from ps.spec import ClusterSpec, TableSpec
from ps.storage.eviction import Evictor
from ps.storage.table import Table
from ps.storage.unique import unique_by_bucket
from ps.types import Seen
from ps.wire import weir_pb2 as pb
from ps.work import WorkThread

DIM, BATCH, NUM_BUCKETS = 8, 106_496, 256
BIG_BUCKETS = 1024
OLD, NEW, MAX_AGE = 1_000_000, 2_000_000, 500_000  # seconds of event time
SEGMENT = {"dim": DIM, "codec": "bf16", "optimizer": "rowwise_adagrad"}
TWO_SEGMENTS = {
    "segments": {"linear": {"dim": 1, "optimizer": "ftrl"}, "embedding": {"dim": 16, "optimizer": "rowwise_adagrad"}}
}
RATES = np.array([0.01], np.float32)


def fill(table: Table, first: int, end: int, event_time: int = 0) -> None:
    gradients = np.ones((BATCH, DIM), np.float32)
    for start in range(first, end, BATCH):
        keys, _, _ = unique_by_bucket(np.arange(start, min(start + BATCH, end), dtype=np.uint64), table.num_buckets)
        table.push(keys, gradients[: len(keys)], step=1, learning_rates=RATES, seen=Seen(event_time))


def costs(rows: int, rounds: int) -> dict[str, float]:
    """Nanoseconds a key, by what is done."""
    spec = TableSpec.model_validate({"segments": {"e": SEGMENT}})
    table = Table("t", spec, seed=0, num_buckets=NUM_BUCKETS)
    fill(table, 0, rows)
    dense = np.ones((rows, table.bytes_per_row // 4), np.uint32)
    taken, pulled = np.empty((BATCH, dense.shape[1]), np.uint32), np.empty((BATCH, DIM), np.float32)
    gradients, rng = np.ones((BATCH, DIM), np.float32), np.random.default_rng(0)
    times: dict[str, list[float]] = {"pull": [], "pull_by_bucket": [], "push": [], "gather": []}
    for step in range(rounds + 2):
        numbers = rng.integers(0, rows, BATCH)
        raw = numbers.astype(np.uint64)
        keys, _, _ = unique_by_bucket(rng.integers(0, rows, BATCH).astype(np.uint64), NUM_BUCKETS)
        actions: dict[str, tuple[int, Callable[[], Any]]] = {
            "pull": (BATCH, partial(table.pull, raw, pulled)),
            "pull_by_bucket": (len(keys), partial(table.pull, keys, pulled[: len(keys)])),
            "push": (len(keys), partial(table.push, keys, gradients[: len(keys)], step=step, learning_rates=RATES)),
            "gather": (BATCH, partial(np.take, dense, numbers, axis=0, out=taken, mode="clip")),
        }
        for name, (count, action) in sorted(actions.items(), reverse=step % 2 == 0):
            started = time.process_time()
            action()
            if step >= 2:  # the first two warm up
                times[name].append((time.process_time() - started) / count * 1e9)
    return {name: round(statistics.median(each), 1) for name, each in times.items()}


def curve(sizes: list[int], rounds: int) -> dict[str, Any]:
    by_rows = {rows: costs(rows, rounds) for rows in sizes}
    first, last = by_rows[sizes[0]], by_rows[sizes[-1]]
    growth = {name: last[name] / first[name] for name in first}
    return {
        "nanoseconds_per_key": by_rows,
        **{f"growth_{name}": round(value, 2) for name, value in growth.items()},
        **{f"ratio_growth_{verb}": round(growth[verb] / growth["gather"], 3) for verb in growth if verb != "gather"},
    }


def placed(spec: ClusterSpec) -> WorkThread:
    """A shard at work that owns all buckets."""
    work = WorkThread(Shard())
    routing = Routing.initial(spec.num_buckets, ["in process"], 1).to_message()
    work.assign(pb.AssignRequest(cluster_spec=spec.model_dump_json().encode(), routing=routing, shard=0)).result()
    return work


def start_up() -> dict[str, float]:
    """Seconds from nothing to a shard that is ready, in new processes: compiled code kept nowhere, then there."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            f"start_up_seconds_{name}": json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--start-up"],
                    check=True,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "WEIR_CACHE_DIR": cache},
                ).stdout
            )
            for name in ("cold", "warm")
        }


def resident_gib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 2**20, 2)
    raise OSError("no VmRSS in /proc/self/status")


def big(rows: int, folder: Path) -> dict[str, Any]:
    """One life of a big table."""
    eviction = {"max_age_seconds": MAX_AGE}
    spec = ClusterSpec.model_validate(
        {"num_buckets": BIG_BUCKETS, "tables": {"t": {"segments": {"e": SEGMENT}, "eviction": eviction}}}
    )
    work = placed(spec)
    assert work.shard.holding is not None
    table, steps, rng = work.shard.holding.tables["t"], {}, np.random.default_rng(0)

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        seconds = time.perf_counter() - started
        steps[name] = {"seconds": round(seconds, 2), "resident_gib": resident_gib(), "rows": table.num_rows}
        print(name, steps[name], file=sys.stderr, flush=True)
        return result

    def load() -> None:
        fill(table, 0, rows // 2, OLD)
        fill(table, rows // 2, rows, NEW)

    def evict() -> None:
        evictor = Evictor(table)
        for bucket in range(BIG_BUCKETS):
            for _ in evictor.evict(bucket, now=NEW):
                pass

    def save() -> None:
        write_manifest(folder, spec, [work.save(str(folder)).manifest])

    try:
        timed("load", load)
        steps["load"]["bytes_per_row"] = round(table.memory_bytes / rows, 1)
        sample = rng.integers(0, rows, 1_000_000).astype(np.uint64)
        timed("pull of 1,000,000 keys", lambda: table.pull(sample))
        newer = rng.integers(rows // 2, rows, 1_000_000).astype(np.uint64)
        keys, _, _ = unique_by_bucket(newer, BIG_BUCKETS)
        push = np.ones((len(keys), DIM), np.float32)
        seen = Seen(NEW)
        timed("push of 1,000,000", lambda: table.push(keys, push, step=2, learning_rates=RATES, seen=seen))
        before = table.pull(sample)
        timed("save", save)
        steps["save"]["file_gb"] = round(sum(each.stat().st_size for each in folder.iterdir()) / 1e9, 2)
        timed("restore (drops all, checks the file, loads it)", lambda: work.restore(str(folder)))
        np.testing.assert_array_equal(table.pull(sample), before)
        timed("evict half", evict)
        assert table.num_rows == rows - rows // 2
        is_new = sample >= rows // 2
        np.testing.assert_array_equal(table.pull(sample[is_new]), before[is_new])
        assert not table.contains(sample[~is_new]).any()
    finally:
        work.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {"rows": rows, "steps": steps}


def markdown(results: dict[str, Any]) -> str:
    """The dated tables."""
    if "steps" in results:
        lines = [f"{results['rows']:,} rows of dim 8 in bf16, {BIG_BUCKETS} buckets, one thread.", ""]
        lines += ["| step | seconds | resident after it, GiB | rows |", "|---|---|---|---|"]
        for name, step in results["steps"].items():
            lines.append(f"| {name} | {step['seconds']} | {step['resident_gib']} | {step['rows']:,} |")
        return "\n".join(lines) + "\n"
    names = ("pull", "pull_by_bucket", "push", "gather")
    lines = [
        f"| rows | {' | '.join(f'{name}, ns a key'.replace('_', ' ') for name in names)} |",
        "|---|---|---|---|---|",
    ]
    for rows, each in results["nanoseconds_per_key"].items():
        lines.append(f"| {rows:,} | {' | '.join(str(each[name]) for name in names)} |")
    lines.append(f"| growth | {' | '.join(str(results[f'growth_{name}']) for name in names)} |")
    beside = " | ".join(f"**{results[f'ratio_growth_{name}']}**" for name in names[:3])
    lines.append(f"| beside the gather's | {beside} | 1 |")
    cold, warm = results["start_up_seconds_cold"], results["start_up_seconds_warm"]
    lines += ["", f"Start-up of a shard, table of two segments: {cold} s compiling, {warm} s loading compiled code."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", help="default 10^5 10^6 10^7 10^8 (6 GB); of --big 2*10^8")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--folder", type=Path, help="of --big: an empty one; it is removed in the end")
    parser.add_argument("--start-up", action="store_true", help="only that, in this process")
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="up to 10^7 rows, 15 rounds")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    if arguments.start_up:
        started = time.perf_counter()
        placed(ClusterSpec.model_validate({"tables": {"t": TWO_SEGMENTS}})).close()
        print(round(time.perf_counter() - started, 2))
        return
    if arguments.big:
        if arguments.folder is None or (arguments.folder.exists() and any(arguments.folder.iterdir())):
            parser.error("--big needs --folder, which is empty or does not exist")
        results = big((arguments.rows or [200_000_000])[0], arguments.folder)
    else:
        sizes = [10**5, 10**6, 10**7] if arguments.quick else arguments.rows or [10**5, 10**6, 10**7, 10**8]
        results = {**curve(sizes, 15 if arguments.quick else arguments.rounds), **start_up()}
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/scale.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
