"""Models: pure torch towers over rows, each from its paper."""

from workers.models.losses import loss
from workers.models.model import Inputs, Model, Rows
from workers.models.registry import (
    MODELS,
    build_model,
    check_segments,
    parse_params,
    register,
    required_segments,
)
from workers.models.sync_batch_norm import SyncBatchNorm, convert_batch_norm

__all__ = [
    "MODELS",
    "Inputs",
    "Model",
    "Rows",
    "SyncBatchNorm",
    "build_model",
    "check_segments",
    "convert_batch_norm",
    "loss",
    "parse_params",
    "register",
    "required_segments",
]
