"""A tower whose weights are filled in later: ONNX as it is traced, every weight an initializer of its own name.

Tracing a model takes seconds and patches torch for all threads of a process; filling takes a tenth of a second and no
torch. What is filled is folded and fused afterwards, as `export_tower` does, and must be compared with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ps.errors import BundleError
from workers.exporting.tower import OPSET, Tower, TowerInputs

_PREFIX = "model."  # of Tower's weights


def write_template(model: nn.Module, inputs: TowerInputs, path: Path) -> None:
    """Trace a model in evaluation mode. inputs: of any samples, two at least."""
    named = inputs.named()
    tower = Tower(model, tuple(inputs.rows), has_dense="dense" in named).eval()
    example = tuple(torch.from_numpy(each) for each in named.values())
    shapes = tuple({0: torch.export.Dim("n")} for _ in named)
    program = torch.onnx.export(
        torch.export.export(tower, example, dynamic_shapes=(shapes,)),
        dynamo=True,
        optimize=False,
        opset_version=OPSET,
        input_names=list(named),
        output_names=["logits"],
        dynamic_shapes=tuple({0: "n"} for _ in named),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def fill_template(template: Path, weights: Mapping[str, np.ndarray[Any, Any]], path: Path) -> None:
    """Write the tower with these weights, by the names of the model's state_dict. Raises BundleError for one whose
    weights are not those of the template.
    """
    import onnx
    from onnx import numpy_helper
    from onnxscript import optimizer

    model = onnx.load(template)
    for tensor in model.graph.initializer:
        if not tensor.name.startswith(_PREFIX):
            continue
        found = weights.get(tensor.name.removeprefix(_PREFIX))
        if found is None or list(found.shape) != list(tensor.dims):
            raise BundleError(f"{template}: the model has no weight {tensor.name} of {list(tensor.dims)}; export again")
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found), tensor.name))
    onnx.save(optimizer.optimize(model), path)
