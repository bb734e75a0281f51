"""Export in a process of its own, beside a training that goes on: tracing a tower patches torch for all threads of a
process, and building a model draws from torch's global generator, on which training's bits depend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ps.errors import BundleError, WeirError
from workers.config import Config

_NICENESS = 5  # training goes first


def export_apart(config: Config, checkpoint: Path, out: Path, *, version: str, template: Path) -> None:
    """As `export` with the codec of the delta stream, and the tower's template (workers/exporting/template.py).

    Raises BundleError with what the process said last.
    """
    request = {
        "config": config.model_dump_json(),
        "checkpoint": str(checkpoint),
        "out": str(out),
        "version": version,
        "template": str(template),
    }
    command = [sys.executable, "-m", "workers.exporting.process"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BundleError(f"the export of {checkpoint} failed: {said[-1]}")


def _main() -> None:
    os.nice(_NICENESS)
    request = json.load(sys.stdin)
    config, template = Config.model_validate_json(request["config"]), Path(request["template"])
    from workers.exporting.bundling import export, tower_inputs
    from workers.exporting.template import write_template
    from workers.exporting.tower import TowerInputs
    from workers.samples.schema import Schema
    from workers.training.job import model_of

    codec = "fp32" if config.cluster.deltas is None else config.cluster.deltas.codec
    schema, inputs = Schema(config), tower_inputs(config)
    rows = {name: np.zeros((3, len(each.fields), each.dim), np.float32) for name, each in inputs.items()}
    template.parent.mkdir(parents=True, exist_ok=True)
    write_template(model_of(config, schema), TowerInputs(rows, np.zeros((3, len(schema.dense)), np.float32)), template)
    export(config, request["checkpoint"], request["out"], codec=codec, version=request["version"])


if __name__ == "__main__":
    try:
        _main()
    except WeirError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
