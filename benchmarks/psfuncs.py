"""A user's row function against the built-in optimizer that it restates: row-wise AdaGrad, one thread, dim 16.

    python benchmarks/psfuncs.py [--json] [--quick] [--rows N] [--rounds N] [--markdown FILE]

Two tables hold the same rows; one has `rowwise_adagrad`, the other the class Restated below, in plain Python, with the
same operations in the same order. Both take the same pushes, and their rows stay equal to the bit (checked). A push of
the user's table keeps what each row was, so that it can be put back if the function raises; that is inside the time.

    ratio_user_psfunc            seconds of a push of the built-in / of the user's, as in benchmarks/table.py: raw keys,
                                 with duplicates; dedupe, sum, find, update, keep what was
    ratio_user_psfunc_table      of Table.push alone: unique keys and their gradients
    ratio_user_psfunc_simple     as that, of a user who sums squares in one plain loop (other bits, by rounding)
    ratio_update_row             Table.push of the built-in / a psfunc (ps.UpdateRow) that does the same to a segment
                                 beside, with gradients as payload: images of all rows are kept, rows searched twice

Keys are uniform, 106,496 raw keys a push. Sides take turns within a round; a ratio is taken within a round; medians,
with quartiles. Times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

import ps
from ps.spec import TableSpec
from ps.storage.table import Table
from ps.storage.unique import sum_by_key, unique_by_bucket
from ps.types import NOTHING_SEEN

DIM, BATCH, NUM_BUCKETS = 16, 106_496, 256
LEARNING_RATE, EPS = 0.01, 1e-8


def square(gradient, values, l2, j):
    if j >= values.shape[0]:
        return np.float32(0)
    g = gradient[j] + l2 * values[j]
    return g * g


@ps.register("restated_adagrad")
class Restated(ps.RowOptimizer):
    """Row-wise AdaGrad, its sum of squares in eight lanes as the built-in one takes it."""

    eps: float = EPS
    l2: float = 0.0

    def state_dim(self, dim):
        return 1

    def update(self, values, state, gradient, learning_rate):
        zero = np.float32(0)
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for j in range(0, values.shape[0], 8):
            a += square(gradient, values, self.l2, j)
            b += square(gradient, values, self.l2, j + 1)
            c += square(gradient, values, self.l2, j + 2)
            d += square(gradient, values, self.l2, j + 3)
            e += square(gradient, values, self.l2, j + 4)
            f += square(gradient, values, self.l2, j + 5)
            g += square(gradient, values, self.l2, j + 6)
            h += square(gradient, values, self.l2, j + 7)
        total = ((a + e) + (c + g)) + ((b + f) + (d + h))
        state[0] += total / np.float32(values.shape[0])
        rate = learning_rate / (np.sqrt(state[0]) + self.eps)
        for j in range(values.shape[0]):
            values[j] -= rate * (gradient[j] + self.l2 * values[j])


@ps.register("simple_adagrad")
class Simple(ps.RowOptimizer):
    """Row-wise AdaGrad as one would write it first."""

    eps: float = EPS

    def state_dim(self, dim):
        return 1

    def update(self, values, state, gradient, learning_rate):
        total = np.float32(0)
        for g in gradient:
            total += g * g
        state[0] += total / np.float32(len(gradient))
        rate = learning_rate / (np.sqrt(state[0]) + self.eps)
        for j in range(len(values)):
            values[j] -= rate * gradient[j]


@ps.register("adagrad_psfunc")
@dataclass(frozen=True)
class AdaGradPsfunc(ps.UpdateRow):
    """The same as a psfunc, called with gradients."""

    learning_rate: float
    eps: float = EPS

    def update_row(self, values, state, payload):
        total = np.float32(0)
        for g in payload:
            total += g * g
        state[0] += total / np.float32(len(payload))
        rate = self.learning_rate / (np.sqrt(state[0]) + self.eps)
        for j in range(len(values)):
            values[j] -= rate * payload[j]


class Side:
    """One table, filled with `rows` rows."""

    def __init__(self, optimizer: str, rows: int) -> None:
        segment = {"dim": DIM, "optimizer": {"name": optimizer}, "initializer": {"name": "uniform", "scale": 0.1}}
        self.table = Table("t", TableSpec.model_validate({"segments": {"e": segment}}), seed=0, num_buckets=NUM_BUCKETS)
        self.rates = np.array([LEARNING_RATE], np.float32)
        for start in range(0, rows, BATCH):
            keys, _, _ = unique_by_bucket(np.arange(start, min(start + BATCH, rows), dtype=np.uint64), NUM_BUCKETS)
            self.push(keys, np.zeros((len(keys), DIM), np.float32), 0)

    def push(self, keys: np.ndarray, gradients: np.ndarray, step: int) -> None:
        self.table.push(keys, gradients, step=step, learning_rates=self.rates)

    def push_raw(self, keys: np.ndarray, gradients: np.ndarray, step: int) -> None:
        unique, inverse, _ = unique_by_bucket(keys, NUM_BUCKETS)
        self.push(unique, sum_by_key(gradients, inverse, len(unique)), step)

    def update_row(self, keys: np.ndarray, gradients: np.ndarray, step: int) -> None:
        self.table.programs.update_keys(AdaGradPsfunc(LEARNING_RATE).program(), keys, gradients, step, NOTHING_SEEN)


def seconds(action: Callable[[np.ndarray, np.ndarray, int], None], *inputs: Any) -> float:
    started = time.process_time()
    action(*inputs)
    return time.process_time() - started


def measure(rows: int, rounds: int) -> dict[str, Any]:
    """All ratios. The built-in side of each is timed in the same round."""
    ours, theirs, simple, psfunc = (
        Side(name, rows) for name in ("rowwise_adagrad", "restated_adagrad", "simple_adagrad", "rowwise_adagrad")
    )
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    pairs = [
        ("user_psfunc_table", ours.push, theirs.push),
        ("user_psfunc_simple", None, simple.push),
        ("update_row", None, psfunc.update_row),
        ("user_psfunc", ours.push_raw, theirs.push_raw),
    ]
    for step in range(1, rounds + 3):
        raw = rng.integers(0, rows, BATCH).astype(np.uint64)
        gradients = rng.normal(size=(BATCH, DIM)).astype(np.float32)
        keys, inverse, _ = unique_by_bucket(raw, NUM_BUCKETS)
        sums = sum_by_key(gradients, inverse, len(keys))
        for name, built_in, users in pairs if step % 2 else pairs[::-1]:
            inputs = (raw, gradients, step) if name == "user_psfunc" else (keys, sums, step)
            sides = [(f"{name}_built_in", built_in), (f"{name}_users", users)]
            for side, action in sides if step % 2 else sides[::-1]:
                if action is not None and step > 2:  # the first two warm up
                    times.setdefault(side, []).append(seconds(action, *inputs))
                elif action is not None:
                    action(*inputs)
    everything = np.arange(0, rows, 7, dtype=np.uint64)
    np.testing.assert_array_equal(ours.table.pull(everything), theirs.table.pull(everything))
    results: dict[str, Any] = {"machine": machine(), "rows": rows, "rounds": rounds}
    for name, built_in, _ in pairs:
        base = times[f"{name}_built_in" if built_in else "user_psfunc_table_built_in"]
        users = times[f"{name}_users"]
        ratios = [b / u for b, u in zip(base, users)]
        low, _, high = statistics.quantiles(ratios, n=4)
        results[f"ratio_{name}"] = round(statistics.median(ratios), 3)
        results[f"quartiles_{name}"] = [round(low, 3), round(high, 3)]
        results[f"nanoseconds_per_key_{name}"] = round(statistics.median(users) / BATCH * 1e9, 1)
        results[f"built_in_nanoseconds_per_key_{name}"] = round(statistics.median(base) / BATCH * 1e9, 1)
    return results


def machine() -> dict[str, Any]:
    """Cores and model of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"model": model, "cores": os.cpu_count()}


def markdown(results: dict[str, Any]) -> str:
    """The dated table."""
    lines = [
        "Machine: {model}, {cores} cores.".format(**results["machine"]),
        f"{results['rows']:,} rows, dim {DIM}, pushes of {BATCH:,} raw keys, one thread, {results['rounds']} rounds.",
        "",
        "| | built-in, ns a raw key | user's | ratio | quartiles |",
        "|---|---|---|---|---|",
    ]
    for name in (key.removeprefix("ratio_") for key in results if key.startswith("ratio_")):
        low, high = results[f"quartiles_{name}"]
        built_in, users = results[f"built_in_nanoseconds_per_key_{name}"], results[f"nanoseconds_per_key_{name}"]
        label = name.replace("_", " ")
        lines.append(f"| {label} | {built_in} | {users} | **{results[f'ratio_{name}']}** | {low} to {high} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="of each of four tables")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="2 million rows, 15 rounds: about a minute")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    rows, rounds = (2_000_000, 15) if arguments.quick else (arguments.rows, max(5, arguments.rounds))
    results = measure(rows, rounds)
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/psfuncs.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
