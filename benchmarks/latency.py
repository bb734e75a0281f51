"""How long one request takes while a shard's table grows from empty, and while half of it is evicted.

    python benchmarks/latency.py [--json] [--quick] [--rows N] [--buckets N] [--markdown FILE]

A shard in this process runs messages as the wire carries them; nothing else uses its table. Growing: pushes of 5,000
keys, all of them new, and before one in ten a pull of 5,000. Evicting by age: while the job runs in its
slices, pushes and pulls of 5,000 keys that have rows go on; a request takes as long as all slices from its arrival to
its answer.

    worst_{push,pull}_ms_above_median_{growing,evicting}    the slowest request of its kind above the median of its kind
    longest_slice_ms_{growing,evicting}                     of Schedule.run_slice; requests included
    longest_eviction_slice_ms                               of slices that only evicted

    first_{push,pull}_ms                                    of a process, of a shard that said it was ready

Times are CPU time of the thread, system calls included, so neighbours on the machine count little; `wall_...` beside.
In the end, what the slowest ten requests of growth did is listed: seconds in the kernel among them.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ps.request import check_request
from ps.routing import Routing
from ps.shard import Shard
from ps.spec import ClusterSpec
from ps.storage.unique import unique_by_bucket
from ps.wire import weir_pb2 as pb

DIM, BATCH = 8, 5_000
OLD, NEW, MAX_AGE = 1_000_000, 2_000_000, 500_000  # seconds of event time
SEGMENT = {"dim": DIM, "codec": "bf16", "optimizer": "rowwise_adagrad"}
ONES = np.ones((BATCH, DIM), np.float32)


@dataclass(frozen=True)
class Took:
    """One request or slice. rows: of the table then."""

    cpu_ms: float
    wall_ms: float
    system_ms: float
    rows: int


@dataclass
class Driver:
    """A shard without a thread, and what everything took, by name."""

    num_buckets: int
    took: dict[str, list[Took]] = field(default_factory=lambda: defaultdict(list))
    sequence: int = 0

    def __post_init__(self) -> None:
        table = {"segments": {"e": SEGMENT}, "eviction": {"max_age_seconds": MAX_AGE}}
        self.spec = ClusterSpec.model_validate({"num_buckets": self.num_buckets, "tables": {"t": table}})
        self.shard, placed = Shard(), Future[pb.AssignReply]()
        self.shard.assign(self.spec, Routing.initial(self.num_buckets, ["in process"], 1), 0, placed)
        while self.shard.run_slice():
            pass
        placed.result(0)
        assert self.shard.holding is not None
        self.table = self.shard.holding.tables["t"]

    def send(self, psfunc: str, event_time: int = 0, **fields: Any) -> Future[pb.Reply]:
        """A message that is taken in and has not run."""
        call = pb.Call(table="t", psfunc=psfunc, **fields)
        self.sequence += psfunc != "pull"
        sequence = 0 if psfunc == "pull" else self.sequence
        identity = {"client": 1, "sequence": sequence, "step": 1, "event_time": event_time}
        request = pb.Request(wire_version=1, routing_epoch=1, calls=[call], **identity)
        answer = Future[pb.Reply]()
        self.shard.receive(check_request(request, self.spec), answer)
        return answer

    def slice(self, name: str) -> None:
        with_system = resource.getrusage(resource.RUSAGE_THREAD).ru_stime
        cpu, wall = time.thread_time(), time.perf_counter()
        self.shard.run_slice()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        system = resource.getrusage(resource.RUSAGE_THREAD).ru_stime - with_system
        self.took[name].append(Took(1e3 * cpu, 1e3 * wall, 1e3 * system, self.table.num_rows))

    def request(self, psfunc: str, phase: str, keys: np.ndarray, **fields: Any) -> None:
        """Run slices until a message is answered."""
        slices = self.took[f"slice_{phase}"]
        first, started, wall = len(slices), time.thread_time(), time.perf_counter()
        answer = self.send(psfunc, keys=keys.tobytes(), **fields)
        while not answer.done():
            self.slice(f"slice_{phase}")
        cpu, wall = time.thread_time() - started, time.perf_counter() - wall
        system = sum(each.system_ms for each in slices[first:])
        answer.result()
        self.took[f"{psfunc}_{phase}"].append(Took(1e3 * cpu, 1e3 * wall, system, self.table.num_rows))

    def push(self, phase: str, numbers: np.ndarray, event_time: int) -> None:
        keys = unique_by_bucket(numbers.astype(np.uint64), self.num_buckets)[0]
        payload = ONES[: len(keys)].tobytes()
        self.request("push", phase, keys, payload=payload, learning_rates=[0.01], event_time=event_time)

    def pull(self, phase: str, numbers: np.ndarray) -> None:
        self.request("pull", phase, unique_by_bucket(numbers.astype(np.uint64), self.num_buckets)[0])


def measure(rows: int, num_buckets: int) -> dict[str, Any]:
    gc.freeze()  # as ps/process.py does
    first_one = Driver(num_buckets)  # what a process loads with its first requests is not of the table's growth
    first_one.pull("growing", np.arange(10))
    first_one.push("growing", np.arange(BATCH), OLD)
    took_first = {
        f"first_{psfunc}_ms": round(first_one.took[f"{psfunc}_growing"][0].cpu_ms, 1) for psfunc in ("pull", "push")
    }
    driver, rng = Driver(num_buckets), np.random.default_rng(0)
    for number, first in enumerate(range(0, rows, BATCH)):
        if number % 10 == 0:
            driver.pull("growing", rng.integers(0, max(1, first), BATCH))
        new = np.arange(first, min(first + BATCH, rows))
        driver.push("growing", new, OLD if first < rows // 2 else NEW)
    evicting = driver.send("evict", event_time=NEW)
    while not evicting.done():
        driver.slice("eviction_slice")
        if not evicting.done():
            numbers = rng.integers(rows // 2 + BATCH, rows, BATCH)
            driver.push("evicting", numbers, NEW)
            driver.pull("evicting", numbers)
    evicted = evicting.result().results[0].num_applied
    assert abs(evicted - rows // 2) <= BATCH, f"{evicted} of {rows} rows were evicted"
    return {**took_first, **summary(driver, rows, num_buckets)}


def summary(driver: Driver, rows: int, num_buckets: int) -> dict[str, Any]:
    results: dict[str, Any] = {"rows": rows, "num_buckets": num_buckets, "batch": BATCH}
    for phase in ("growing", "evicting"):
        for psfunc in ("push", "pull"):
            for prefix, clock in (("", "cpu_ms"), ("wall_", "wall_ms")):
                times = [getattr(took, clock) for took in driver.took[f"{psfunc}_{phase}"]]
                median = statistics.median(times)
                results[f"{prefix}median_{psfunc}_ms_{phase}"] = round(median, 2)
                results[f"{prefix}worst_{psfunc}_ms_above_median_{phase}"] = round(max(times) - median, 2)
        # A slice of the eviction may run before a request's own: those count here, as in the request.
        results[f"longest_slice_ms_{phase}"] = round(max(took.cpu_ms for took in driver.took[f"slice_{phase}"]), 2)
    only = driver.took["eviction_slice"]
    results["eviction_slices"] = len(only)
    results["longest_eviction_slice_ms"] = round(max(took.cpu_ms for took in only), 2)
    results["wall_longest_eviction_slice_ms"] = round(max(took.wall_ms for took in only), 2)
    slowest = sorted(driver.took["push_growing"], key=lambda took: -took.cpu_ms)[:10]
    results["slowest_pushes"] = [
        {"rows": took.rows, "ms": round(took.cpu_ms, 1), "of it in the kernel": round(took.system_ms, 1)}
        for took in slowest
    ]
    return results


def markdown(results: dict[str, Any]) -> str:
    """The dated table."""
    lines = [
        "{rows:,} rows of dim 8 in bf16, {num_buckets} buckets, requests of {batch:,} keys.".format(**results),
        "",
        "| | median, ms | worst above it, ms | in wall time: median | worst above it |",
        "|---|---|---|---|---|",
    ]
    for phase in ("growing", "evicting"):
        for psfunc in ("push", "pull"):
            median, worst = f"median_{psfunc}_ms_{phase}", f"worst_{psfunc}_ms_above_median_{phase}"
            lines.append(
                f"| {psfunc}, {phase} | {results[median]} | **{results[worst]}** "
                f"| {results['wall_' + median]} | {results['wall_' + worst]} |"
            )
    lines += [
        "",
        "Longest slice of eviction: **{longest_eviction_slice_ms} ms** ({wall_longest_eviction_slice_ms} ms of wall "
        "time) of {eviction_slices:,}.".format(**results),
        "First requests of a process: pull {first_pull_ms} ms, push {first_push_ms} ms.".format(**results),
        "Slowest pushes while growing: "
        + "; ".join(
            f"{each['ms']} ms ({each['of it in the kernel']} in the kernel) at {each['rows']:,} rows"
            for each in results["slowest_pushes"][:5]
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--buckets", type=int, default=1024, help="of the cluster; a power of two")
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="3 million rows")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    results = measure(3_000_000 if arguments.quick else arguments.rows, arguments.buckets)
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/latency.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
