"""Quality on Frappe: five seeds of each recipe through two Ray shards; mean, standard deviation and standard error.

    python benchmarks/quality.py [RECIPE ...] [--seeds 1,2,3,4,5] [--json] [--quick]

Each run is the command that a user types; its result is read from `--json`. Data: Frappe with train negatives re-drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPES = ("frappe_lr", "frappe_fm", "frappe_deepfm", "frappe_deepfm_sparse", "frappe_deepfm_bf16", "frappe_fibinet")


def train(recipe: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """One run in its own process, from the start."""
    command = [sys.executable, "-m", "workers.cli", "train", str(ROOT / "configs" / f"{recipe}.yaml"), "--json"]
    for setting in (f"seed={seed}", "checkpoint.resume=never", *settings):
        command += ["--set", setting]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{recipe}, seed {seed}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "seconds": time.monotonic() - started}


def summary(results: list[dict[str, Any]]) -> dict[str, float]:
    """Mean, deviation and standard error of the test metrics over the seeds."""
    row: dict[str, float] = {"num_seeds": len(results)}
    for name in ("auc", "logloss", "valid_auc", "seconds", "epochs"):
        values = [result[name] for result in results]
        row[name] = statistics.mean(values)
        if len(values) > 1:
            row[f"{name}_std"] = statistics.stdev(values)
            row[f"{name}_stderr"] = statistics.stdev(values) / math.sqrt(len(values))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed of LR and FM only")
    arguments = parser.parse_args()
    recipes = ["frappe_lr", "frappe_fm"] if arguments.quick else list(arguments.recipes)
    seeds = [1] if arguments.quick else [int(seed) for seed in arguments.seeds.split(",")]
    table: dict[str, Any] = {}
    for recipe in recipes:
        results = []
        for seed in seeds:
            results.append(train(recipe, seed, arguments.settings))
            latest = results[-1]
            text = "  ".join(f"{name} {latest[name]:.5f}" for name in ("auc", "logloss", "valid_auc"))
            print(f"{recipe} seed {seed}: {text}  {latest['seconds']:.0f} s", file=sys.stderr, flush=True)
        table[recipe] = {**summary(results), "auc_by_seed": [round(result["auc"], 5) for result in results]}
    if arguments.json:
        print(json.dumps(table))
        return
    print(
        "| recipe | test AUC | std | logloss | std | valid AUC | epochs | seconds |\n|---|---|---|---|---|---|---|---|"
    )
    for recipe, row in table.items():
        cells = [
            row["auc"],
            row.get("auc_std", math.nan),
            row["logloss"],
            row.get("logloss_std", math.nan),
            row["valid_auc"],
        ]
        print(
            f"| {recipe} | "
            + " | ".join(f"{cell:.5f}" for cell in cells)
            + f" | {row['epochs']:.1f} | {row['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
