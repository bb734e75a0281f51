"""Dense state of a checkpoint: the tower and its optimizer, as one safetensors file. Nothing is pickled.

model/<name>                 parameters and buffers
optimizer/<index>/<name>     optimizer state of parameter <index>
metadata["param_groups"]     JSON, the optimizer's groups without their tensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from ps.errors import CheckpointError
from ps.places import inside, open_place, reason

FILE = "dense.safetensors"


class OtherModelError(CheckpointError):
    """The file holds another model than the config builds."""


def save_dense(directory: str | Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write `directory`/dense.safetensors (a path or a URI), whole or not at all. Raises CheckpointError."""
    tensors = {f"model/{name}": value.detach().clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, slots in state["state"].items():
        for name, value in slots.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).detach().clone()
    data = save(tensors, metadata={"param_groups": json.dumps(state["param_groups"])})
    try:
        open_place(directory).replace(FILE, data)
    except OSError as error:
        raise CheckpointError(f"{inside(directory, FILE)} cannot be written: {reason(error)}") from error


def load_dense(directory: str | Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Load what `save_dense` wrote; with an optimizer, its state too.

    Raises CheckpointError if the file is missing or damaged, OtherModelError if it is of another model.
    """
    path = inside(directory, FILE)
    try:
        with open_place(directory).open(FILE) as file:
            data = file.read()
        tensors, metadata = load(data), _metadata(data)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint") from None
    _load_model(path, model, _under(tensors, "model/"))
    if optimizer is None:
        return
    try:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer/").items():
            index, _, slot = name.partition("/")
            slots.setdefault(int(index), {})[slot] = value
        state: dict[str, Any] = {"state": slots, "param_groups": json.loads(metadata["param_groups"])}
        optimizer.load_state_dict(state)
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the optimizer's state is damaged ({error!r}); take another checkpoint"
        ) from error


def _metadata(data: bytes) -> dict[str, str]:
    """Of a file that safetensors could read: 8 bytes length, a JSON header of so many, tensors."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_model(path: str, model: nn.Module, saved: dict[str, Tensor]) -> None:
    present = model.state_dict()
    wrong = sorted(saved.keys() ^ present.keys()) or sorted(
        f"{name} {list(saved[name].shape)} (here {list(present[name].shape)})"
        for name in saved
        if saved[name].shape != present[name].shape
    )
    if wrong:
        raise OtherModelError(
            f"{path}: holds another model than the config builds; they differ in {', '.join(wrong[:3])}"
        )
    model.load_state_dict(saved)
