"""The measured figures that `weir plan` computes with, of this machine.

    python benchmarks/plan_figures.py [--json] [--quick] [--out workers/planning/figures.json]

Times are CPU time of the process concerned, so a busy neighbour on the machine counts little; medians of the rounds.

    pull, push          a Table in this process, one thread: batches of unique keys grouped by bucket, as a shard gets
                        them, uniform over a table that lies in no cache; row-wise AdaGrad; by codec and dim
    messages, bytes     a shard process and clients in this process, gRPC on the loopback, no shared memory, fp32 wire:
                        messages of one key, then of 16,384. What a long message costs beyond a short one and beyond
                        the Table's own time is put on its bytes. Bytes beyond the arrays are counted on the loopback
    process, resident   resident memory of that shard process before its rows; and what 4 million rows add to it,
                        against what the table reports
    checkpoint          bytes a second of a shard's save, by the clock, fsync included
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

import ps
from ps.storage.table import Table
from ps.storage.unique import unique_by_bucket
from workers.planning.figures import Figures

CODECS, DIMS = ("fp32", "bf16"), (8, 16, 64)
NUM_BUCKETS, BATCH, SMALL, LARGE = 256, 16_384, 1, 16_384
RPC_DIM, RPC_KEYS, HELD_ROWS, THREADS = 16, 200_000, 4_000_000, 4
COMMAND = "python benchmarks/plan_figures.py"


def spec_of(codec: str, dim: int) -> ps.TableSpec:
    segment = {
        "dim": dim,
        "codec": codec,
        "optimizer": "rowwise_adagrad",
        "initializer": {"name": "normal", "std": 0.1},
    }
    return ps.TableSpec.model_validate({"segments": {"embedding": segment}})


class InProcess:
    """A table, and how long its pulls and pushes take a row."""

    def __init__(self, codec: str, dim: int, rows: int) -> None:
        self.table, self.rows, self.dim = Table("t", spec_of(codec, dim), seed=0, num_buckets=NUM_BUCKETS), rows, dim
        self.rates, self.rng = np.full(1, 0.01, np.float32), np.random.default_rng(0)
        for first in range(0, rows, BATCH):
            keys = np.arange(first, min(first + BATCH, rows), dtype=np.uint64)
            self.push(unique_by_bucket(keys, NUM_BUCKETS)[0])

    def push(self, keys: np.ndarray) -> None:
        gradients = np.full((len(keys), self.dim), 0.1, np.float32)
        self.table.push(keys, gradients, step=1, learning_rates=self.rates)

    def rows_per_core_second(self, rounds: int) -> tuple[float, float]:
        """(pulled, pushed)."""
        pulled, pushed = [], []
        out, gradients = np.empty((BATCH, self.dim), np.float32), np.full((BATCH, self.dim), 0.1, np.float32)
        for _ in range(rounds):
            raw = self.rng.integers(0, self.rows, BATCH).astype(np.uint64)
            keys = unique_by_bucket(raw, NUM_BUCKETS)[0]
            started = time.process_time()
            self.table.pull(keys, out=out[: len(keys)])
            between = time.process_time()
            self.table.push(keys, gradients[: len(keys)], step=1, learning_rates=self.rates)
            pulled.append(len(keys) / (between - started))
            pushed.append(len(keys) / (time.process_time() - between))
        return statistics.median(pulled), statistics.median(pushed)


class Remote:
    """A shard process, and what messages to it cost both sides."""

    def __init__(self, cluster: ps.LocalCluster, seconds: float) -> None:
        self.cluster, self.seconds, self.pid = cluster, seconds, cluster.processes[0].pid
        options = ps.ClientOptions(share_from_bytes=None)
        self.clients = [cluster.connect(options) for _ in range(THREADS)]
        self.keys = np.arange(RPC_KEYS, dtype=np.uint64)
        self.grads = np.full((LARGE, RPC_DIM), 0.1, np.float32)

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def cost(self, verb: str, num_keys: int) -> dict[str, float]:
        """A message of so many keys: CPU seconds of shard and client, bytes on the loopback."""
        counts, end = [0] * THREADS, time.monotonic() + self.seconds

        def work(place: int) -> None:
            client, rng = self.clients[place], np.random.default_rng(place)
            while time.monotonic() < end:
                first = int(rng.integers(0, RPC_KEYS - num_keys))
                keys = self.keys[first : first + num_keys]
                if verb == "pull":
                    client.pull("t", keys)
                else:
                    client.push("t", keys, self.grads[:num_keys], step=1).wait()
                counts[place] += 1

        threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
        before = self._counters()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = self._counters()
        return {name: (after[name] - before[name]) / sum(counts) for name in before}

    def _counters(self) -> dict[str, float]:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # user and system
        loopback = next(
            line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
        )
        return {
            "shard": ticks / os.sysconf("SC_CLK_TCK"),
            "client": time.process_time(),
            "bytes": float(loopback.split(":")[1].split()[0]),
        }

    def resident(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_messages(remote: Remote, local: InProcess) -> dict[str, Any]:
    """Costs of messages and bytes, by verb. local: the same table in this process."""
    found: dict[str, Any] = {}
    in_process = dict(zip(("pull", "push"), local.rows_per_core_second(60), strict=True))
    for verb, rate in in_process.items():
        remote.cost(verb, LARGE)  # warm
        small, large = remote.cost(verb, SMALL), remote.cost(verb, LARGE)
        arrays = 8 + 4 * RPC_DIM  # a key, and a row or a gradient
        length = arrays * (LARGE - SMALL)
        at_shard = large["shard"] - small["shard"] - (LARGE - SMALL) / rate
        found[verb] = {
            "shard_messages_per_core_second": 1 / small["shard"],
            "shard_bytes_per_core_second": length / at_shard,
            "client_messages_per_core_second": 1 / small["client"],
            "client_bytes_per_core_second": length / (large["client"] - small["client"]),
            "message_bytes": small["bytes"] - arrays * SMALL,
        }
    return found


def measure(rows: int, rounds: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    table = []
    for codec in CODECS:
        for dim in DIMS:
            print(f"table: {codec}, dim {dim}, {rows:,} rows", file=sys.stderr)
            one = InProcess(codec, dim, rows)
            pulled, pushed = one.rows_per_core_second(rounds)
            table.append(
                {
                    "codec": codec,
                    "dim": dim,
                    "row_bytes": one.table.bytes_per_row,
                    "pull_rows_per_core_second": pulled,
                    "push_rows_per_core_second": pushed,
                }
            )
            del one
    print("messages, memory and checkpoint of a shard process", file=sys.stderr)
    spec = ps.ClusterSpec(tables={"t": spec_of("fp32", RPC_DIM)}, num_buckets=NUM_BUCKETS)
    with ps.LocalCluster(spec, shards=1, placement="process") as cluster:
        remote = Remote(cluster, seconds)
        client = remote.clients[0]
        process_bytes = remote.resident()

        def push(first: int, last: int) -> None:
            for start in range(first, last, 4096):
                keys = np.arange(start, min(start + 4096, last), dtype=np.uint64)
                client.push("t", keys, np.full((len(keys), RPC_DIM), 0.1, np.float32), step=1).wait()

        push(0, RPC_KEYS)
        messages = measure_messages(remote, InProcess("fp32", RPC_DIM, RPC_KEYS))
        client.clear("t")
        push(0, 4 * 4096)
        before, small = remote.resident(), client.describe()[0]["tables"]["t"]["memory_bytes"]
        push(4 * 4096, HELD_ROWS)
        added = client.describe()[0]["tables"]["t"]["memory_bytes"] - small
        resident_share = (remote.resident() - before) / added
        rates = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                client.save(folder)
                length = sum(file.stat().st_size for file in Path(folder).iterdir())
                rates.append(length / (time.monotonic() - started))
        remote.close()
    return {
        "date": date.today().isoformat(),
        "command": COMMAND,
        "machine": machine(),
        "table_rows": rows,
        "table": table,
        "messages": messages,
        "process_bytes": process_bytes,
        "resident_share": resident_share,
        "checkpoint_bytes_per_second": statistics.median(rates),
    }


def machine() -> str:
    """Model, cores, caches and memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    caches = [
        f"L{(index / 'level').read_text().strip()} {(index / 'size').read_text().strip()}"
        for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[23]"))
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return ", ".join([model, f"{os.cpu_count()} cores", *caches, f"{memory:.0f} GiB"])


def rounded(value: Any) -> Any:
    """Floats at four digits: the rest is noise."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="2 million rows, shorter: about two minutes")
    parser.add_argument("--out", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rows, rounds, seconds = (2_000_000, 60, 3.0) if arguments.quick else (10_000_000, 400, 10.0)
    figures = rounded(measure(rows, rounds, seconds))
    Figures.model_validate(figures)
    text = json.dumps(figures, indent=1)
    print(text, file=sys.stderr)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
