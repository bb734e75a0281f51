"""Do recorded samples score the same from the trainer, from a bundle's files and from what serves it, in each codec.

    python benchmarks/parity.py [--config CONFIG] [--set KEY=VALUE]... [--samples 10000] [--json] [--quick]

Trains the recipe (default: configs/frappe_deepfm.yaml where --data-root holds Frappe, else the generated log of
configs/demo.yaml), scores the test split with the trainer, exports the checkpoint in fp32, fp16, bf16 and int8, and
scores the same samples from the bundle's files, rows/ and tower.onnx, and through the prediction server's own code,
from the columns of a request on: hashing, replica, pooling, tower. All see the same samples in the same order.

int8 towers stand beside: the same trained tower through onnxruntime's quantize_dynamic, on the rows of the fp32 and of
the int8 bundle.

difference: the greatest of a logit, over the greatest logit (at least 1); in fp32 more than 1e-5, of bundle or server,
is an error. AUC difference: bundle less trainer, on the same samples, with its 95 % interval (metrics.auc_difference).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from serving import quantize

from ps.checkpoint import read_manifest
from workers import metrics
from workers.config import Config, load_config
from workers.exporting import export
from workers.exporting.recorded import Recorded, record
from workers.exporting.rows import ChosenRows, read_rows
from workers.exporting.tower import TOLERANCE, difference, onnx_logits
from workers.samples.schema import Schema
from workers.serving.bundle import Bundle, read_bundle
from workers.serving.columns import from_json
from workers.serving.loading import load
from workers.serving.request import Request
from workers.training.job import predictions_of, train

CONFIGS = Path(__file__).parent.parent / "configs"
CODECS = ("fp32", "fp16", "bf16", "int8")
INT8_TOWERS = ("fp32", "int8")  # codecs of the rows that they are tried on
Doubles = NDArray[np.float64]


def recipe(arguments: argparse.Namespace) -> Config:
    """The configuration to train, in this process."""
    own = ["cluster.placement=inprocess", "train.threads=1", *arguments.settings]
    root = Path(arguments.data_root).absolute()
    if arguments.config is not None:
        path = Path(arguments.config)
    elif (root / "frappe" / "test.csv.gz").exists() and not arguments.quick:
        path, own = CONFIGS / "frappe_deepfm.yaml", [f"data.root={root}", *own]
    else:
        path = CONFIGS / "demo.yaml"
        if arguments.quick:
            quick = ["data.generated={train_rows: 40000, valid_rows: 5000, test_rows: 10000}", "train.epochs=1"]
            own = [*quick, *own]
    return load_config(path, own)


def bundle_logits(bundle: Bundle, tower: Path, config: Config, recorded: Recorded) -> NDArray[np.float32]:
    """float32 [n, num_tasks] from the bundle's rows and a tower."""
    chosen = ChosenRows(recorded.keys, bundle.training_spec)
    for table, _, keys, values in read_rows(read_manifest(bundle.rows_directory)):
        chosen.see(table, keys, values)
    return onnx_logits(tower, recorded.inputs(config, chosen.values))


def server_logits(bundle: Bundle, recorded: Recorded) -> NDArray[np.float32]:
    """float32 [n, num_tasks] of requests of at most 200 candidates, as JSON carries them."""
    model = load(bundle, threads=1).model
    parts = []
    for start in range(0, recorded.batch.size, 200):
        columns = json.loads(
            json.dumps({name: values[start : start + 200] for name, values in recorded.columns.items()})
        )
        read = {name: from_json(f"candidates.{name}", columns[name]) for name in model.features.columns}
        count = min(200, recorded.batch.size - start)
        parts.append(model.logits([model.features.read(Request("recorded", "", count, {}, read))])[0])
    return np.concatenate(parts)


def beside(found: NDArray[np.float32], logits: NDArray[np.float32], labels: Doubles) -> dict[str, Any]:
    """Logits [n] of what serves beside those of the trainer."""
    return {
        "difference": difference(found, logits),
        "auc": metrics.auc(found, labels),
        "auc_difference": metrics.auc_difference(found, logits, labels)._asdict(),
        "logloss_difference": metrics.logloss(found, labels) - metrics.logloss(logits, labels),
    }


def compared(bundle: Bundle, config: Config, logits: NDArray[np.float32], labels: Doubles) -> dict[str, Any]:
    """One codec beside the trainer's logits and labels, both [n], of the first task."""
    recorded = record(config, Schema(config), len(logits))
    return {
        **beside(bundle_logits(bundle, bundle.tower_path, config, recorded)[:, 0], logits, labels),
        "server_difference": difference(server_logits(bundle, recorded)[:, 0], logits),
        "row_bytes": {name: table.bytes_per_row for name, table in bundle.manifest.tables.items()},
        "bundle_bytes": sum(file.bytes for file in bundle.manifest.files.values()),
        "greatest_value_difference": bundle.manifest.checks.rows,
        "saturated": bundle.manifest.checks.saturated,
    }


def with_int8_tower(
    bundle: Bundle, config: Config, scratch: Path, logits: NDArray[np.float32], labels: Doubles
) -> dict[str, Any]:
    """The bundle's rows under its tower in int8, as `compared`."""
    tower, recorded = scratch / "int8.onnx", record(config, Schema(config), len(logits))
    quantize(bundle.tower_path, tower)
    sizes = {"tower_bytes": tower.stat().st_size, "fp32_tower_bytes": bundle.tower_path.stat().st_size}
    return {**beside(bundle_logits(bundle, tower, config, recorded)[:, 0], logits, labels), **sizes}


def markdown(result: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [
        f"{result['recipe']}: {result['samples']} recorded samples of test, trainer's AUC {result['auc']:.5f}",
        "",
        "| codec | difference, bundle | server | AUC difference | logloss difference | bytes a row | export, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for codec, row in result["codecs"].items():
        auc, row_bytes = row["auc_difference"], ", ".join(map(str, row["row_bytes"].values()))
        lines.append(
            f"| {codec} | {row['difference']:.1e} | {row['server_difference']:.1e} "
            f"| {auc['mean']:+.2e} ± {auc['half_interval']:.1e} "
            f"| {row['logloss_difference']:+.2e} | {row_bytes} | {row['export_seconds']:.1f} |"
        )
    lines += ["", "| int8 tower on rows in | difference | AUC difference | logloss difference |", "|---|---|---|---|"]
    for codec, row in result["int8_towers"].items():
        auc = row["auc_difference"]
        lines.append(
            f"| {codec} | {row['difference']:.1e} | {auc['mean']:+.2e} ± {auc['half_interval']:.1e} "
            f"| {row['logloss_difference']:+.2e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="CONFIG")
    parser.add_argument("--data-root", default="../shared/data", metavar="DIR")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a generated log of 40,000 rows, one epoch")
    arguments = parser.parse_args()
    config = recipe(arguments)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        config = config.model_copy(update={"runs": str(folder / "runs")})
        checkpoint = Path(train(config, local=True)["checkpoint"])
        _, predictions = predictions_of(config, checkpoint, local=True)
        samples = min(arguments.samples, len(predictions.logits))
        logits, labels = predictions.logits[:samples, 0], predictions.labels[:samples, 0].astype(np.float64)
        result: dict[str, Any] = {"recipe": config.name, "samples": samples, "auc": metrics.auc(logits, labels)}
        codecs: dict[str, Any] = {}
        for codec in CODECS:
            started = time.monotonic()
            export(config, checkpoint, folder / codec, codec=codec)  # type: ignore[arg-type]
            seconds = time.monotonic() - started
            codecs[codec] = compared(read_bundle(folder / codec), config, logits, labels)
            codecs[codec]["export_seconds"] = seconds
            print(f"{codec}: difference {codecs[codec]['difference']:.2e}", file=sys.stderr, flush=True)
        towers = {
            codec: with_int8_tower(read_bundle(folder / codec), config, folder, logits, labels) for codec in INT8_TOWERS
        }
    exact = codecs["fp32"]
    result |= {
        "codecs": codecs,
        "int8_towers": towers,
        "parity_fp32": max(exact["difference"], exact["server_difference"]),
    }
    print(json.dumps(result) if arguments.json else markdown(result))
    if not result["parity_fp32"] <= TOLERANCE:
        sys.exit(f"parity: fp32 differs by {result['parity_fp32']:.2g}, more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
