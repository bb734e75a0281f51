"""Towers by hand: the sum of all rows' values, and a constant that tells one tower from another."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from workers.serving.manifest import TOWER_FILE


def write_tower(folder: Path, segments: dict[str, tuple[int, int]], *, adds: float = 0.0, num_dense: int = 0) -> None:
    """segments: (num_fields, dim) by name. logits [n, 1] = the sum of a sample's rows and dense values + adds."""
    inputs = [
        helper.make_tensor_value_info(f"rows_{name}", TensorProto.FLOAT, ["n", *shape])
        for name, shape in segments.items()
    ]
    nodes = [helper.make_node("ReduceSum", [f"rows_{name}", "both"], [f"sum_{name}"], keepdims=0) for name in segments]
    sums = [f"sum_{name}" for name in segments]
    if num_dense:
        inputs.append(helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["n", num_dense]))
        nodes.append(helper.make_node("ReduceSum", ["dense", "last"], ["sum_dense"], keepdims=0))
        sums.append("sum_dense")
    nodes += [
        helper.make_node("Sum", [*sums, "adds"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "last"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "both"),
        numpy_helper.from_array(np.array([1], np.int64), "last"),
        numpy_helper.from_array(np.array([adds], np.float32), "adds"),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])]
    graph = helper.make_graph(nodes, "tower", inputs, outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / TOWER_FILE)
