"""Models by the name that the config gives, and the checks that come before the first batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ps.errors import RequestError
from workers.config.errors import dotted, explain, nearest
from workers.config.section import Section
from workers.models.deepfm import DeepFM
from workers.models.fibinet import FiBiNET
from workers.models.fm import FM
from workers.models.linear import LR
from workers.models.model import Inputs, Model
from workers.models.wide_deep import WideDeep

MODELS: dict[str, type[Model]] = {"lr": LR, "fm": FM, "wide_deep": WideDeep, "deepfm": DeepFM, "fibinet": FiBiNET}


def register(name: str, model: type[Model]) -> None:
    """Makes `model` available to configs as `name`."""
    MODELS[name] = model


def parse_params(params: Mapping[str, Any], where: str = "model") -> tuple[type[Model], Section]:
    """The class and the checked parameters of {"name": "deepfm", "hidden": [...], ...}.

    Raises RequestError that names `where`, what was found and what is allowed.
    """
    name = params.get("name")
    if name not in MODELS:
        raise RequestError(f"{where}.name: unknown model {name!r}{nearest(name, MODELS)}")
    model = MODELS[name]
    own = {key: value for key, value in params.items() if key != "name"}
    try:
        return model, model.Params.model_validate(own)
    except ValidationError as failure:
        location, text = explain(failure, model.Params, own)
        raise RequestError(f"{dotted((where, *location))}: {text} (model {name})") from None


def required_segments(name: str, num_tasks: int = 1) -> dict[str, int | None]:
    """The segments that a model reads, with their dim; None where any dim will do."""
    dims = MODELS[name].segments
    return {segment: num_tasks if dim == "per task" else None if dim == "any" else dim for segment, dim in dims.items()}


def check_segments(name: str, segment_dims: Mapping[str, int], num_tasks: int = 1, where: str = "tables") -> None:
    """Raises RequestError unless `segment_dims` (of a table at `where`) has what the model reads; it may have more."""
    for segment, dim in required_segments(name, num_tasks).items():
        if segment not in segment_dims:
            has = ", ".join(f"{key} ({value})" for key, value in segment_dims.items()) or "none"
            shape = f"dim {dim}" if dim else "any dim"
            raise RequestError(f"{where}: model {name} reads a segment {segment!r} of {shape}; found {has}. Add it")
        if dim is not None and segment_dims[segment] != dim:
            tasks = f" ({num_tasks} tasks, one weight each)" if num_tasks > 1 else ""
            raise RequestError(
                f"{where}.{segment}.dim: found {segment_dims[segment]}; model {name} reads it with dim {dim}{tasks}"
            )


def build_model(
    params: Mapping[str, Any],
    *,
    num_fields: int,
    segment_dims: Mapping[str, int],
    num_dense: int = 0,
    num_tasks: int = 1,
    field_names: Sequence[str] = (),
) -> Model:
    """The model that `params` names, with initial values from torch's global generator.

    Raises RequestError for unknown names, values outside their range and missing segments.
    """
    model, checked = parse_params(params)
    check_segments(params["name"], segment_dims, num_tasks)
    inputs = Inputs(num_fields, dict(segment_dims), num_dense, num_tasks, tuple(field_names))
    return model(checked, inputs)
