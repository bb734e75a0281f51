"""recorded.json of a dense version: inputs of the tower and the logits that training had for them.

{inputs {name: nested lists of numbers}, logits [[task] * n]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ps.places import LocalPlace
from ps.types import Floats
from workers.serving.versions import VersionError

RECORDED_FILE = "recorded.json"


@dataclass(frozen=True, eq=False)
class Recorded:
    """inputs: float32 by name, as of tower.onnx; logits: float32 [n, num_tasks]."""

    inputs: dict[str, Floats]
    logits: Floats


def write_recorded(folder: Path, recorded: Recorded) -> None:
    """Numbers are written so that they read back to the same bits."""
    inputs = {name: values.tolist() for name, values in recorded.inputs.items()}
    LocalPlace(folder).replace(
        RECORDED_FILE, json.dumps({"inputs": inputs, "logits": recorded.logits.tolist()}).encode()
    )


def read_recorded(folder: Path) -> Recorded:
    """Raises VersionError."""
    path = folder / RECORDED_FILE
    try:
        found: Any = json.loads(path.read_bytes())
        inputs = {str(name): np.array(values, np.float32) for name, values in found["inputs"].items()}
        return Recorded(inputs, np.array(found["logits"], np.float32))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VersionError(f"{path} cannot be read: {error!r}; publish another version") from error
