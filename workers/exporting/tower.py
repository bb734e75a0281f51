"""The tower out of torch: ONNX and torch.export files of the model in evaluation mode, run beside it and compared."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ps.errors import BundleError, RequestError
from ps.types import Floats
from workers.serving.manifest import TowerChecks

OPSET = 20
TOLERANCE = 1e-5  # of a logit, relative to the greatest one
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_TRACED_SAMPLES = 3  # any number but 0 and 1, which torch.export would take for constants


@dataclass(frozen=True)
class TowerInputs:
    """What a model reads. rows: by segment float32 [n, num_fields, dim]; dense: float32 [n, num_dense]."""

    rows: Mapping[str, Floats]
    dense: Floats

    def read_by(self, model: nn.Module) -> TowerInputs:
        """Without segments that a model does not name."""
        read = getattr(_bare(model), "segments", self.rows)
        return TowerInputs({segment: rows for segment, rows in self.rows.items() if segment in read}, self.dense)

    def named(self) -> dict[str, Floats]:
        """By the names of the ONNX tower's inputs, in their order."""
        found = {f"rows_{segment}": np.ascontiguousarray(rows) for segment, rows in self.rows.items()}
        return found | ({"dense": np.ascontiguousarray(self.dense)} if self.dense.shape[1] else {})


class Tower(nn.Module):
    """A model whose inputs are tensors side by side, as TowerInputs.named has them."""

    def __init__(self, model: nn.Module, segments: tuple[str, ...], *, has_dense: bool) -> None:
        super().__init__()
        self.model, self.segments, self.has_dense = model, segments, has_dense

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits [n, num_tasks]."""
        rows = dict(zip(self.segments, inputs, strict=False))
        dense = inputs[-1] if self.has_dense else inputs[0].new_zeros(inputs[0].shape[0], 0)
        logits: Tensor = self.model(rows, dense)
        return logits


def check_packages() -> None:
    """Raises RequestError where a package that export needs is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"export needs {', '.join(missing)}: pip install 'weir-ps[export]'")


def logits_of(model: nn.Module, inputs: TowerInputs) -> Floats:
    """float32 [n, num_tasks] of the training model in evaluation mode; it is left as it was."""
    bare = _bare(model)
    was_training = bare.training
    bare.eval()
    try:
        with torch.inference_mode():
            rows = {segment: torch.from_numpy(np.ascontiguousarray(each)) for segment, each in inputs.rows.items()}
            logits: Floats = bare(rows, torch.from_numpy(np.ascontiguousarray(inputs.dense))).numpy()
            return logits
    finally:
        bare.train(was_training)


def onnx_logits(path: str | Path, inputs: TowerInputs) -> Floats:
    """float32 [n, num_tasks] of an ONNX tower."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: Floats = session.run(["logits"], inputs.named())[0]
    return logits


def difference(logits: Floats, expected: Floats) -> float:
    """The greatest difference, divided by the greatest expected logit (at least 1)."""
    return float(np.abs(logits - expected).max(initial=0.0)) / scale_of(expected)


def scale_of(logits: Floats) -> float:
    return float(np.abs(logits).max(initial=1.0))


def export_tower(
    model: nn.Module, inputs: TowerInputs, path: str | Path, *, torch_path: str | Path | None = None
) -> TowerChecks:
    """Write the model as ONNX to `path` and, where given, as torch.export to `torch_path`; compare both with the model.

    inputs: recorded ones, at least one sample. The model, which may be in training and inside DDP, stays as it is.
    Raises RequestError without the packages, BundleError where a logit differs by more than TOLERANCE.
    """
    check_packages()
    inputs = inputs.read_by(model)
    expected = logits_of(model, inputs)
    if not np.isfinite(expected).all():
        raise BundleError(f"{path}: the training model answers recorded samples with NaN or infinity; nothing to serve")
    names = list(inputs.named())
    # A copy: tracing would leave its marks in a model that trains on.
    tower = Tower(copy.deepcopy(_bare(model)), tuple(inputs.rows), has_dense="dense" in names).eval()
    example = tuple(torch.zeros(_TRACED_SAMPLES, *each.shape[1:]) for each in inputs.named().values())
    with _quiet():
        exported = torch.export.export(
            tower, example, dynamic_shapes=(tuple({0: torch.export.Dim("n")} for _ in names),)
        )
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # names files of this machine
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=tuple({0: "n"} for _ in names),
            verbose=False,
        )
        assert program is not None
        for described in program.model.graph:
            described.metadata_props.clear()  # for developers of exporters; more than the graph itself
        program.save(str(path))
        if torch_path is not None:
            torch.export.save(exported, torch_path)
    checks = TowerChecks(
        samples=len(expected),
        logit_scale=scale_of(expected),
        onnx=difference(onnx_logits(path, inputs), expected),
        torch_export=None if torch_path is None else difference(_logits_of_program(exported, inputs), expected),
    )
    for kind, found in (("ONNX", checks.onnx), ("torch.export", checks.torch_export)):
        if found is not None and not found <= TOLERANCE:
            for written in (path, torch_path):
                if written is not None:
                    Path(written).unlink()
            raise BundleError(
                f"{path}: the {kind} tower differs from the training model by {found:.2g} of the greatest logit on "
                f"{checks.samples} recorded samples, more than {TOLERANCE:g}; nothing was written"
            )
    return checks


def _logits_of_program(exported: torch.export.ExportedProgram, inputs: TowerInputs) -> Floats:
    with torch.inference_mode():
        logits: Floats = exported.module()(*map(torch.from_numpy, inputs.named().values())).numpy()
    return logits


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger: Any = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
