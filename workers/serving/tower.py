"""The tower of a bundle in ONNX Runtime: rows of all segments and dense values in, logits out. Thread-safe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ps.errors import BundleError
from ps.types import Floats

LOGITS = "logits"
DENSE = "dense"
_ERRORS = (ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf, ort_errors.NoSuchFile)
_ERRORS_OF_A_TOWER = (*_ERRORS, ort_errors.NotImplemented, ort_errors.InvalidArgument, ort_errors.RuntimeException)


class Tower:
    """run(feeds) -> float32 [n, num_tasks].

    feeds: rows_<segment> float32 [n, num_fields, dim] of each segment; "dense" float32 [n, num_dense] where the tower
    reads any.
    """

    def __init__(self, path: Path, inputs: Mapping[str, tuple[int, ...]], num_tasks: int, *, threads: int) -> None:
        """inputs: the shape of each without its first dimension. threads: that compute one run. Raises BundleError for
        a file that is no tower, or one of other inputs.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # plans for one size of batch; these differ
        # Threads that spin between runs take the cores that decode the next request.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _ERRORS_OF_A_TOWER as error:
            raise BundleError(f"{path} is no tower that ONNX Runtime reads: {' '.join(str(error).split())}") from error
        found = {each.name: tuple(each.shape[1:]) for each in self._session.get_inputs()}
        if found != dict(inputs):
            raise BundleError(f"{path} reads {found}, but the manifest says {dict(inputs)}; export again")
        outputs = [each.name for each in self._session.get_outputs()]
        if LOGITS not in outputs or self._shape_of(LOGITS)[1:] != [num_tasks]:
            raise BundleError(
                f"{path} gives {', '.join(outputs)}; it must give {LOGITS} [n, {num_tasks}]; export again"
            )
        self.inputs = dict(inputs)

    def run(self, feeds: Mapping[str, Floats]) -> Floats:
        """float32 [n, num_tasks]: the logits."""
        logits: Floats = self._session.run([LOGITS], feeds)[0]
        return logits

    def _shape_of(self, output: str) -> list[Any]:
        return next(list(each.shape) for each in self._session.get_outputs() if each.name == output)
