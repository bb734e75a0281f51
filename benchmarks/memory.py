"""Resident memory of a table against what its rows must take, while it grows from 1 to 4 million rows.

    python benchmarks/memory.py [--json] [--quick] [--markdown FILE]

    ratio_bytes_per_row              resident / rows over (encoded values + state + 8 bytes of key); the worst of
                                     ratio_bytes_per_row_LAYOUT, each the worst over growth, taken every 100,000 rows
    ratio_resident_to_reported_...   resident over Table.memory_bytes, worst over growth

Layouts: fp32 dim 16 and bf16 dim 8, row-wise AdaGrad, no metadata. A fresh process for each; pushes of 20,000 new keys.
Resident is the growth of Rss in /proc/self/smaps_rollup since just after an empty table was made; before that a first
table of the same layout has loaded kernels and heap, and was emptied. So Python's objects of the table count.
Another table is measured when it is empty and when it has 1,000 rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ps.spec import TableSpec
from ps.storage.table import Table

LAYOUTS = {"fp32_dim16": ("fp32", 16), "bf16_dim8": ("bf16", 8)}
BATCH, NUM_BUCKETS, FROM, EVERY = 20_000, 256, 1_000_000, 100_000


def resident_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss"):
            return int(line.split()[1]) * 1024
    raise OSError("no Rss in /proc/self/smaps_rollup")


def measure(layout: str, rows: int) -> dict[str, Any]:
    """Figures of one layout; in a process of its own."""
    codec, dim = LAYOUTS[layout]
    segment = {"dim": dim, "optimizer": "rowwise_adagrad", "codec": codec}
    spec = TableSpec.model_validate({"segments": {"e": segment}})
    rates, gradients = np.ones(1, np.float32), np.zeros((BATCH, dim), np.float32)

    def push(table: Table, first: int, end: int) -> None:
        keys = np.arange(first, end, dtype=np.uint64)
        table.push(keys, gradients[: end - first], step=1, learning_rates=rates)

    first_table = Table("first", spec, seed=1, num_buckets=NUM_BUCKETS)
    push(first_table, 0, BATCH)
    first_table.pull(np.arange(BATCH, dtype=np.uint64))
    first_table.clear()
    before = resident_bytes()
    table = Table("t", spec, seed=1, num_buckets=NUM_BUCKETS)
    start = resident_bytes()
    results: dict[str, Any] = {f"empty_kib_{layout}": (start - before) // 1024}
    push(table, 0, 1000)
    results[f"thousand_rows_kib_{layout}"] = (resident_bytes() - before) // 1024
    table.clear()
    table, start = Table("t", spec, seed=1, num_buckets=NUM_BUCKETS), resident_bytes()
    least, ratios, reported = table.bytes_per_row, {}, []
    for end in range(BATCH, rows + 1, BATCH):
        push(table, end - BATCH, end)
        if end >= FROM and end % EVERY == 0:
            resident = resident_bytes() - start
            ratios[end] = resident / end / least
            reported.append(resident / table.memory_bytes)
    worst = max(ratios, key=lambda end: ratios[end])
    results[f"ratio_bytes_per_row_{layout}"] = round(ratios[worst], 3)
    results[f"worst_at_rows_{layout}"] = worst
    results[f"mean_ratio_bytes_per_row_{layout}"] = round(sum(ratios.values()) / len(ratios), 3)
    results[f"bytes_per_row_{layout}"] = least
    results[f"ratio_resident_to_reported_{layout}"] = round(max(reported), 3)
    return results


def markdown(results: dict[str, Any]) -> str:
    """The dated table."""
    lines = [
        f"1 to {results['rows']:,} rows, pushes of {BATCH:,} new keys, {NUM_BUCKETS} buckets, row-wise AdaGrad.",
        "",
        "| | bytes a row at least | resident over that, worst | at rows | mean | resident / reported, worst "
        "| empty table, KiB | 1,000 rows, KiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in LAYOUTS:
        of = {key.removesuffix(f"_{name}"): value for key, value in results.items() if key.endswith(f"_{name}")}
        lines.append(
            f"| {name.replace('_', ' ')} | {of['bytes_per_row']} | **{of['ratio_bytes_per_row']}** "
            f"| {of['worst_at_rows']:,} | {of['mean_ratio_bytes_per_row']} | {of['ratio_resident_to_reported']} "
            f"| {of['empty_kib']:,} | {of['thousand_rows_kib']:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, help="only this one, in this process")
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="up to 2 million rows")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    rows = 2_000_000 if arguments.quick else 4_000_000
    if arguments.layout:
        print(json.dumps(measure(arguments.layout, rows)))
        return
    results: dict[str, Any] = {"rows": rows}
    for layout in LAYOUTS:
        command = [sys.executable, __file__, "--layout", layout, *(["--quick"] if arguments.quick else [])]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.update(json.loads(output.splitlines()[-1]))
    results["ratio_bytes_per_row"] = max(results[f"ratio_bytes_per_row_{layout}"] for layout in LAYOUTS)
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/memory.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
