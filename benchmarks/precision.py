"""What low precision, admission and late segments cost in quality and save in memory, against fp32, by paired seeds.

    python benchmarks/precision.py [VARIANT ...] [--seeds 1,2,...] [--results FILE] [--json] [--quick]

Each variant is configs/generated_precision.yaml with a few settings changed, trained in this process. A seed is that of
the log's teacher and draws, of the order, of the initial values and of the rounding; a pair has it in common. Test
figures are those of the last step. Memory is what the table holds after training, sketch included; bytes a row are
those of rows, index and reserve without it. The interval is Student's, 95 %, of the mean paired difference to fp32.

--results: a file of one JSON object a run; runs that stand there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

from scipy import stats

from workers.config import load_config
from workers.training.job import train

RECIPE = Path(__file__).parent.parent / "configs" / "generated_precision.yaml"
TABLE, EMBEDDING = "tables.main", "tables.main.segments.embedding"
SKETCH_BYTES = 1 << 19
COUNT = f"{TABLE}.admission={{name: count, threshold: 2, sketch_bytes: {SKETCH_BYTES}}}"
BY_SHOWS = f"{TABLE}.score={{show: 1, click: 1, decay: 1}}"  # else the default: 0.1 a show, 1 a click, 0.98 a day
VARIANTS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": (f"{EMBEDDING}.codec=bf16",),
    "fp16": (f"{EMBEDDING}.codec=fp16",),
    "int8": (f"{EMBEDDING}.codec=int8",),
    "bf16, state bf16": (f"{EMBEDDING}.codec=bf16", f"{EMBEDDING}.state_codec=bf16"),
    "int8, state bf16": (f"{EMBEDDING}.codec=int8", f"{EMBEDDING}.state_codec=bf16"),
    "admission 2": (COUNT,),
    "late, score 1": (f"{EMBEDDING}.late=1.0",),
    "admission 2, late, score 1": (COUNT, f"{EMBEDDING}.late=1.0"),
    "late, show 1": (BY_SHOWS, f"{EMBEDDING}.late=1.0"),
    "late, show 2": (BY_SHOWS, f"{EMBEDDING}.late=2.0"),
    "late, show 4": (BY_SHOWS, f"{EMBEDDING}.late=4.0"),
}


def run(variant: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """One training; its test metrics and what its table took."""
    with tempfile.TemporaryDirectory() as directory:
        own = (f"seed={seed}", f"data.generated.seed={seed}", "train.threads=1", f"runs={directory}")
        started = time.monotonic()
        result = train(load_config(RECIPE, [*own, *settings, *VARIANTS[variant]]), local=True)
    table_bytes = round(result["bytes_per_row"] * result["rows"])
    sketch_bytes = SKETCH_BYTES if COUNT in VARIANTS[variant] else 0
    return {
        "variant": variant,
        "seed": seed,
        "auc": result["auc"],
        "logloss": result["logloss"],
        "best_possible_auc": result["best_possible_auc"],
        "rows": result["rows"],
        "table_bytes": table_bytes,
        "sketch_bytes": sketch_bytes,
        "seconds": time.monotonic() - started,
    }


def difference(runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], metric: str) -> dict[str, Any]:
    """Mean, half a 95 % interval and p-value of a metric less that of fp32 of the same seed."""
    deltas = [runs[seed][metric] - reference[seed][metric] for seed in sorted(runs.keys() & reference.keys())]
    found: dict[str, Any] = {"mean": statistics.mean(deltas), "num_pairs": len(deltas)}
    if len(deltas) > 1:
        stderr = statistics.stdev(deltas) / math.sqrt(len(deltas))
        found["half_interval"] = float(stats.t.ppf(0.975, len(deltas) - 1)) * stderr
        if stderr > 0:
            found["p_value"] = 2 * float(stats.t.sf(abs(found["mean"]) / stderr, len(deltas) - 1))
    return found


def summary(by_seed: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A variant's means over seeds, and its differences to fp32."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    means = {name: statistics.mean(each[name] for each in runs) for name in ("auc", "logloss", "rows", "table_bytes")}
    row_bytes = statistics.mean((each["table_bytes"] - each["sketch_bytes"]) / each["rows"] for each in runs)
    return {
        **means,
        "bytes_per_row": row_bytes,
        "auc_difference": difference(by_seed, reference, "auc"),
        "logloss_difference": difference(by_seed, reference, "logloss"),
        "auc_by_seed": {seed: round(by_seed[seed]["auc"], 5) for seed in sorted(by_seed)},
        "logloss_by_seed": {seed: round(by_seed[seed]["logloss"], 5) for seed in sorted(by_seed)},
    }


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The figures for a person."""
    lines = [
        "| variant | seeds | test AUC | difference to fp32 | p | logloss | difference | rows | table, MB | bytes/row |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, row in table.items():
        auc, logloss = row["auc_difference"], row["logloss_difference"]
        shown = [
            f"{each['mean']:+.5f} ± {each.get('half_interval', math.nan):.5f}" if variant != "fp32" else ""
            for each in (auc, logloss)
        ]
        p_value = f"{auc['p_value']:.2g}" if "p_value" in auc else ""
        lines.append(
            f"| {variant} | {len(row['auc_by_seed'])} | {row['auc']:.5f} | {shown[0]} | {p_value} "
            f"| {row['logloss']:.5f} | {shown[1]} "
            f"| {row['rows']:,.0f} | {row['table_bytes'] / 1e6:.2f} | {row['bytes_per_row']:.1f} |"
        )
    seeds = sorted({seed for row in table.values() for seed in row["auc_by_seed"]})
    for metric in ("auc", "logloss"):
        lines += ["", f"| {metric} by seed | " + " | ".join(map(str, seeds)) + " |", "|---" * (len(seeds) + 1) + "|"]
        for variant, row in table.items():
            cells = (f"{row[f'{metric}_by_seed'][s]:.5f}" if s in row[f"{metric}_by_seed"] else "" for s in seeds)
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two seeds of a log of 20,000 rows")
    arguments = parser.parse_args()
    if unknown := set(arguments.variants) - set(VARIANTS):
        parser.error(f"unknown variant {min(unknown)!r}; there are: {', '.join(VARIANTS)}")
    chosen = ["fp32", *(name for name in arguments.variants if name != "fp32")]
    settings, seeds = arguments.settings, [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.quick:
        seeds = seeds[:2]
        settings = [*settings, "data.generated.train_rows=20000", "data.generated.test_rows=5000"]
    known: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in chosen}
    if arguments.results and arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            each = json.loads(line)
            known.setdefault(each["variant"], {})[each["seed"]] = each
    for seed in seeds:
        for variant in chosen:
            if seed in known[variant]:
                continue
            latest = known[variant][seed] = run(variant, seed, settings)
            text = "  ".join(f"{name} {latest[name]:.5f}" for name in ("auc", "logloss"))
            print(f"{variant} seed {seed}: {text}  {latest['seconds']:.0f} s", file=sys.stderr, flush=True)
            if arguments.results:
                with arguments.results.open("a") as file:
                    print(json.dumps(latest), file=file)
    table = {
        name: summary({seed: known[name][seed] for seed in seeds}, {seed: known["fp32"][seed] for seed in seeds})
        for name in chosen
    }
    print(json.dumps(table) if arguments.json else markdown(table))


if __name__ == "__main__":
    main()
