"""The sparse table against FBGEMM's CPU table, one thread: pull and push of raw keys on 10 million rows of dim 16.

    python benchmarks/table.py [--json] [--quick] [--rows N] [--beside N] [--rounds N] [--markdown FILE]

Both sides take the same array of 106,496 raw keys with duplicates and hold the same rows under the same optimizer
(row-wise AdaGrad).

    pull    keys -> float32 [106496, 16] in their order. Weir: hash, find, decode. FBGEMM: forward with bags of one key;
            its table is a dense array, so the key is the row number and nothing is hashed.
    push    gradients float32 [106496, 16] of those keys -> rows. Weir: dedupe, sum, find, update, round. FBGEMM:
            backward with its fused update, which dedupes and sums too.

fp32 is compared with fp32; bf16 with FBGEMM's fp16, both with stochastic rounding. Keys are uniform, or Zipf 1.1
scattered over the table. Sides take turns within a round; a ratio is taken within a round, and its median over rounds
is printed with the quartiles. Times are CPU time of the process, which has one working thread, so that neighbours on
the machine count little. FBGEMM's memory gets huge pages too (THP_MEM_ALLOC_ENABLE).

--beside measures a second size, under the same keys with `_at_N` behind them. Cache lines and pages touched per key
are computed, of layouts and index fill: `lines_{pull,push}_CODEC_{weir,fbgemm}`, `pages_...`. Counted is what lies in
no cache: lines of the index and the row; directories and the table of buckets (a few hundred kilobytes) do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", THP_MEM_ALLOC_ENABLE="1")

import numpy as np

from ps.spec import TableSpec
from ps.storage.kernels import index
from ps.storage.table import Table
from ps.storage.unique import sum_by_key, unique_by_bucket

DIM, BATCH, NUM_BUCKETS, ZIPF = 16, 106_496, 256, 1.1
LEARNING_RATE, EPS = 0.01, 1e-8
LINE, PAGE = 64, 2 << 20  # bytes; huge pages on both sides
SCATTER = 0x9E3779B1  # has no common divisor with the number of rows: maps ranks to row numbers one to one


class Weir:
    """Our side."""

    def __init__(self, codec: str, rows: int) -> None:
        optimizer = {"name": "rowwise_adagrad", "eps": EPS}
        segment = {"dim": DIM, "codec": codec, "optimizer": optimizer, "initializer": {"name": "uniform", "scale": 0.1}}
        self.table = Table("t", TableSpec.model_validate({"segments": {"e": segment}}), seed=0, num_buckets=NUM_BUCKETS)
        self.rates = np.array([LEARNING_RATE], np.float32)
        for start in range(0, rows, BATCH):
            keys = np.arange(start, min(start + BATCH, rows), dtype=np.uint64)
            unique, _, _ = unique_by_bucket(keys, NUM_BUCKETS)
            self.table.push(unique, np.zeros((len(keys), DIM), np.float32), step=0, learning_rates=self.rates)

    def pull(self, keys: np.ndarray) -> np.ndarray:
        return self.table.pull(keys)

    def push(self, keys: np.ndarray, gradients: np.ndarray, step: int) -> float:
        started = time.process_time()
        unique, inverse, _ = unique_by_bucket(keys, NUM_BUCKETS)
        sums = sum_by_key(gradients, inverse, len(unique))
        self.table.push(unique, sums, step=step, learning_rates=self.rates)
        return time.process_time() - started


class Fbgemm:
    """The peer: SplitTableBatchedEmbeddingBagsCodegen in host memory."""

    def __init__(self, codec: str, rows: int, fill: Callable[[np.ndarray], np.ndarray]) -> None:
        """fill: keys -> first values."""
        try:
            import torch
            from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )
        except ImportError as error:
            sys.exit(f"the peer is missing ({error}); install it with: pip install fbgemm-gpu-cpu==1.8.0 torch==2.13.0")
        torch.set_num_threads(1)
        self.torch = torch
        self.module = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPS,
            weights_precision=SparseType.FP32 if codec == "fp32" else SparseType.FP16,
            output_dtype=SparseType.FP32,
            pooling_mode=PoolingMode.SUM,  # of bags of one key: several times faster backward than PoolingMode.NONE
            stochastic_rounding=True,
        )
        weights = self.module.split_embedding_weights()[0]
        for part in np.array_split(np.arange(rows, dtype=np.uint64), 100):
            weights[int(part[0]) : int(part[-1]) + 1].copy_(torch.from_numpy(fill(part)))
        self.offsets = torch.arange(BATCH + 1)

    def forward(self, keys: np.ndarray) -> Any:
        return self.module(self.torch.from_numpy(keys.view(np.int64)), self.offsets)

    def pull(self, keys: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self.forward(keys).detach().numpy()
        return rows

    def push(self, keys: np.ndarray, gradients: np.ndarray, step: int) -> float:
        output, gradient = self.forward(keys), self.torch.from_numpy(gradients)
        started = time.process_time()
        output.backward(gradient)
        return time.process_time() - started


def keys_of(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "uniform":
        return rng.integers(0, rows, BATCH).astype(np.uint64)
    # Inverse of the distribution function of a Zipf law cut at `rows`, taken as continuous.
    ranks = ((rows ** (1 - ZIPF) - 1) * rng.random(BATCH) + 1) ** (1 / (1 - ZIPF))
    return (ranks.astype(np.uint64) * np.uint64(SCATTER)) % np.uint64(rows)


def seconds(action: Callable[[np.ndarray], Any], keys: np.ndarray) -> float:
    started = time.process_time()
    action(keys)
    return time.process_time() - started


def machine() -> dict[str, Any]:
    """Cores, caches and model of this machine."""
    caches = {}
    for level in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (level / "type").read_text().strip()
        caches[f"L{(level / 'level').read_text().strip()} {kind}"] = (level / "size").read_text().strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"model": model, "cores": os.cpu_count(), "caches": caches}


def groups_passed(load: float) -> float:
    """How many groups of the index a search passes before that of its key, on average: rows that find their group full
    go to the next one, so what passes from a group to the next is a queue with Poisson arrivals and 16 places.
    """
    mean, most = index.GROUP * load, 400
    arrivals = [math.exp(-mean)]
    for k in range(1, 100):
        arrivals.append(arrivals[-1] * mean / k)
    passing = np.zeros(most)
    passing[0] = 1.0
    for _ in range(1000):
        present = np.convolve(passing, arrivals)
        passing = present[index.GROUP : index.GROUP + most]
        passing[0] += present[: index.GROUP].sum()
    return float(passing @ np.arange(most)) / mean


def units_touched(stride: int, unit: int, rows: int = 256) -> float:
    """Lines or pages of `unit` bytes that a row touches, on average over a block of dense rows."""
    first = np.arange(rows) * stride
    return float(((first + stride - 1) // unit - first // unit + 1).mean())


def touched(codec: str, table: Table) -> dict[str, float]:
    """Cache lines and pages per key that lies in no cache."""
    lines = table._buckets.table[: table.num_buckets]
    passed = groups_passed(lines[:, index.ROWS].sum() / lines[:, index.CAPACITY].sum())
    stride, theirs = table.bytes_per_row, DIM * (4 if codec == "fp32" else 2)
    ours = 1 + passed + units_touched(stride, LINE)
    ours_pages = 2 + units_touched(stride, PAGE, PAGE) - 1
    return {
        f"lines_pull_{codec}_weir": round(ours, 2),
        f"lines_push_{codec}_weir": round(ours, 2),  # the state is part of the row
        f"lines_pull_{codec}_fbgemm": units_touched(theirs, LINE),
        f"lines_push_{codec}_fbgemm": 1 + units_touched(theirs, LINE),  # its state is an array of its own
        f"pages_pull_{codec}_weir": round(ours_pages, 2),
        f"pages_push_{codec}_weir": round(ours_pages, 2),
        f"pages_pull_{codec}_fbgemm": 1.0,
        f"pages_push_{codec}_fbgemm": 2.0,
    }


def compare(codec: str, rows: int, rounds: int, results: dict[str, Any], suffix: str = "") -> None:
    """Fill results with the figures of one precision."""
    ours = Weir(codec, rows)
    theirs = Fbgemm(codec, rows, ours.pull)
    results.update({key + suffix: value for key, value in touched(codec, ours.table).items()})
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    for kind in ("uniform", "zipf"):
        times: dict[str, list[float]] = {
            f"{verb}_{side}": [] for verb in ("pull", "push") for side in ("weir", "fbgemm")
        }
        for step in range(rounds + 2):
            keys = keys_of(kind, rows, rng)
            sides = [("weir", ours), ("fbgemm", theirs)]
            for name, side in sides if step % 2 else sides[::-1]:
                pulled, pushed = seconds(side.pull, keys), side.push(keys, gradients, step + 1)
                if step >= 2:  # the first two warm up
                    times[f"pull_{name}"].append(pulled)
                    times[f"push_{name}"].append(pushed)
        difference = float(np.abs(ours.pull(keys) - theirs.pull(keys)).max())
        # After the same pushes the rows agree: to rounding of sums in fp32, to a few roundings in 16 bits.
        assert difference < (1e-5 if codec == "fp32" else 0.05), f"{codec} {kind}: rows differ by {difference}"
        for verb in ("pull", "push"):
            weir, fbgemm = times[f"{verb}_weir"], times[f"{verb}_fbgemm"]
            ratios = [b / a for a, b in zip(weir, fbgemm)]
            low, _, high = statistics.quantiles(ratios, n=4)
            name = f"{verb}_{codec}_{kind}{suffix}"
            results[f"ratio_{name}"] = round(statistics.median(ratios), 3)
            results[f"quartiles_{name}"] = [round(low, 3), round(high, 3)]
            results[f"million_keys_per_second_{name}"] = round(BATCH / statistics.median(weir) / 1e6, 2)
            results[f"fbgemm_million_keys_per_second_{name}"] = round(BATCH / statistics.median(fbgemm) / 1e6, 2)


def markdown(results: dict[str, Any]) -> str:
    """The dated table."""
    lines = [
        "Machine: {model}, {cores} cores, caches {caches}.".format(**results["machine"]),
        f"{results['rows']:,} rows (beside: as said), dim {DIM}, batches of {BATCH:,} raw keys, one thread, "
        f"{results['rounds']} rounds.",
        "",
        "| | Weir, M keys/s | FBGEMM, M keys/s | ratio | quartiles |",
        "|---|---|---|---|---|",
    ]
    for key in (key for key in results if key.startswith("ratio_")):
        name = key.removeprefix("ratio_")
        low, high = results[f"quartiles_{name}"]
        ours, peer = results[f"million_keys_per_second_{name}"], results[f"fbgemm_million_keys_per_second_{name}"]
        lines.append(f"| {name.replace('_', ' ')} | {ours} | {peer} | **{results[key]}** | {low} to {high} |")
    lines += ["", "| computed, per key in no cache | Weir | FBGEMM |", "|---|---|---|"]
    for key in (key for key in results if key.startswith(("lines_", "pages_")) and "_weir" in key):
        label = key.replace("_weir", "").replace("_", " ")
        lines.append(f"| {label} | {results[key]} | {results[key.replace('_weir', '_fbgemm')]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--beside", type=int, help="a second size, such as 50000000 (takes 8 GB)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="15 rounds: at most three minutes, wider spread")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    rounds = 15 if arguments.quick else max(5, arguments.rounds)
    results: dict[str, Any] = {"machine": machine(), "rows": arguments.rows, "rounds": rounds}
    for codec in ("fp32", "bf16"):
        compare(codec, arguments.rows, rounds, results)
    for codec in ("fp32", "bf16") if arguments.beside else ():
        compare(codec, arguments.beside, rounds, results, f"_at_{arguments.beside}")
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/table.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
