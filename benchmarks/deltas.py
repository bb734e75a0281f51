"""What publishing costs a shard: pushes a second with and without deltas, and bytes a row in the stream.

    python benchmarks/deltas.py [--json] [--quick] [--rows N] [--rounds N] [--seconds S] [--folder DIR]

Two shards in this process (one thread of work each, one of them busy at a time) hold the same rows (dim 16 and 1, fp32,
AdaGrad) and take the same pushes of 10,000 Zipf-distributed keys, one after another, each acknowledged before the next
is sent. One publishes. They take turns of some seconds within a round; a ratio is taken within a round, and its median
over rounds is printed with the least and the greatest. Publishing runs on the shard's own thread and on a writer's, and
both are counted.

    ratio_pushes_with_deltas_WINDOW   pushes a second of the shard that publishes over the other's; window in ms
    ratio_cpu_with_deltas_WINDOW      the same of pushes a second of CPU time
    bytes_per_record_CODEC            of the stream, everything counted
    records_saved_WINDOW              keys that changed / rows that were published
    seconds_to_publish_all            of every row, by a shard that starts
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ps.placement import LocalCluster
from ps.spec import ClusterSpec

KEYS, ZIPF = 10_000, 1.2
SCATTER = np.uint64(0x9E3779B97F4A7C15)
SEGMENTS = {
    "linear": {"dim": 1, "optimizer": "adagrad"},
    "embedding": {"dim": 16, "optimizer": "adagrad", "initializer": {"name": "normal", "std": 0.01}},
}


class Side:
    """A shard and its client. options: of deltas; None: it publishes nothing."""

    def __init__(self, rows: int, options: dict[str, Any] | None) -> None:
        spec = {"tables": {"t": {"segments": SEGMENTS}}, "num_buckets": 256, "deltas": options}
        self.cluster = LocalCluster(ClusterSpec.model_validate(spec))
        self.client = self.cluster.connect()
        (host,) = self.cluster._hosts.values()
        self.outlet = host.shard.outlet
        self.step = 0
        for start in range(0, rows, 50_000):
            self.push(np.arange(start + 1, min(start + 50_000, rows) + 1, dtype=np.uint64) * SCATTER)
        self.drain()

    def push(self, keys: np.ndarray) -> None:
        self.step += 1
        self.client.push("t", keys, np.full((len(keys), 17), 0.01, np.float32), step=self.step).wait()

    def drain(self) -> None:
        """Wait until all that changed is written."""
        if self.outlet.publisher is not None:
            self.client.mark("end", step=self.step, data_time=0.0)

    def pushes_a_second(self, batches: list[np.ndarray], seconds: float) -> tuple[float, float]:
        """And the same of CPU seconds, which neighbours on the machine trouble little."""
        began, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            self.push(batches[count % len(batches)])
            count += 1
        return count / (time.perf_counter() - began), count / (time.process_time() - used)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


def throughput(folder: Path, rows: int, window_ms: int, rounds: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    options = {"directory": str(folder / f"w{window_ms}"), "window_seconds": window_ms / 1000}
    sides = [Side(rows, None), Side(rows, options)]
    ratios, cpu_ratios, publisher = [], [], sides[1].outlet.publisher
    assert publisher is not None
    collected, written = publisher.collected, publisher.writer.num_records
    for number in range(rounds + 1):
        batches = [(rng.zipf(ZIPF, KEYS) % rows + 1).astype(np.uint64) * SCATTER for _ in range(200)]
        order = (0, 1) if number % 2 else (1, 0)
        speeds = {which: sides[which].pushes_a_second(batches, seconds) for which in order}
        if number:  # the first warms up
            (wall, cpu), (wall_without, cpu_without) = speeds[1], speeds[0]
            ratios.append(wall / wall_without)
            cpu_ratios.append(cpu / cpu_without)
            shown = f"{wall:.0f} pushes/s with, {wall_without:.0f} without: {ratios[-1]:.3f}, CPU {cpu_ratios[-1]:.3f}"
            show(f"window {window_ms} ms: {shown}")
    sides[1].drain()
    saved = (publisher.collected - collected) / (publisher.writer.num_records - written)
    for side in sides:
        side.close()
    return {
        **spread(f"ratio_pushes_with_deltas_{window_ms}ms", ratios),
        **spread(f"ratio_cpu_with_deltas_{window_ms}ms", cpu_ratios),
        f"records_saved_{window_ms}ms": round(saved, 2),
    }


def sizes(folder: Path, rows: int, codec: str) -> dict[str, Any]:
    side = Side(rows, {"directory": str(folder / codec), "codec": codec, "window_seconds": 3600})
    publisher = side.outlet.publisher
    assert publisher is not None
    writer = publisher.writer
    before = writer.num_bytes, writer.num_records
    side.push(np.arange(1, rows + 1, dtype=np.uint64) * SCATTER)
    side.drain()
    num_bytes, records = writer.num_bytes - before[0], writer.num_records - before[1]
    began = time.perf_counter()
    side.cluster._hosts["in-process:0"].submit(lambda answer: answer.set_result(_all_anew(publisher))).result()
    side.drain()
    seconds = time.perf_counter() - began
    side.close()
    return {f"bytes_per_record_{codec}": round(num_bytes / records, 2), "seconds_to_publish_all": round(seconds, 3)}


def _all_anew(publisher: Any) -> None:
    for pending in publisher._pending.values():
        pending.want_all()


def spread(name: str, values: list[float]) -> dict[str, Any]:
    return {name: round(statistics.median(values), 3), f"{name}_spread": [round(min(values), 3), round(max(values), 3)]}


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at most 180 s: fewer rows, shorter turns, wider spread")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant (default: a temporary folder)")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds, arguments.seconds = 200_000, 5, 1.5
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="weir-deltas-") as name:
        folder = Path(name)
        for window_ms in (0, 200, 1000):
            result |= throughput(folder, arguments.rows, window_ms, arguments.rounds, arguments.seconds)
        for codec in ("fp32", "fp16", "int8"):
            result |= sizes(folder, arguments.rows, codec)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    result |= {"rows": arguments.rows, "rounds": arguments.rounds, "keys_a_push": KEYS, "machine": machine}
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
