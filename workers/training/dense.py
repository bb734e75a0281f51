"""Dense state on disk: the tower and its optimizer, as one safetensors file. Nothing is pickled.

model/<name>                 parameters and buffers
optimizer/<index>/<name>     optimizer state of parameter <index>
metadata["param_groups"]     JSON, the optimizer's groups without their tensors
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ps.errors import CheckpointError

FILE = "dense.safetensors"


class OtherModelError(CheckpointError):
    """The file holds another model than the config builds."""


def save_dense(directory: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write `directory`/dense.safetensors by atomic rename."""
    tensors = {f"model/{name}": value.detach().clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, slots in state["state"].items():
        for name, value in slots.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).detach().clone()
    target = directory / FILE
    temporary = target.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"param_groups": json.dumps(state["param_groups"])})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def load_dense(directory: Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Load what `save_dense` wrote; with an optimizer, its state too.

    Raises CheckpointError if the file is missing or damaged, OtherModelError if it is of another model.
    """
    path = directory / FILE
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
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


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_model(path: Path, model: nn.Module, saved: dict[str, Tensor]) -> None:
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
