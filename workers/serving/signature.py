"""What a model reads and answers, for people and programs: GET /v1/model, Describe, and the schema of its requests."""

from __future__ import annotations

from typing import Any

from workers.config.fields import Categorical, FeatureField, Multi
from workers.serving.columns import MAX_TEXT_BYTES
from workers.serving.model import Model
from workers.serving.options import ServeOptions
from workers.serving.request import REQUEST_ID

_TEXT = {"type": "string", "maxLength": MAX_TEXT_BYTES // 4}  # a character has at most four bytes
_INTEGER = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
_FLOAT32_MAX = 3.4028234e38


def describe(model: Model, options: ServeOptions) -> dict[str, Any]:
    """name, version, columns, tasks, limits and an example request."""
    return {
        "name": model.name,
        "version": model.version,
        "columns": {
            column: [_field(name, field) for name, field in _fields_of(model, column)]
            for column in model.features.columns
        },
        "tasks": {name: label.type for name, label in model.labels.items()},
        "limits": {
            "candidates": options.max_candidates,
            "body_bytes": options.max_body_bytes,
            "text_bytes": MAX_TEXT_BYTES,
            "timeout_seconds": options.timeout_seconds,
        },
        "example": example(model),
    }


def example(model: Model) -> dict[str, Any]:
    """A request that the model answers: its first column shared, two candidates."""
    values = {column: _example_value(_fields_of(model, column)[0][1]) for column in model.features.columns}
    first, *others = values
    if not others:
        return {"candidates": {first: [values[first]] * 2}}
    return {"shared": {first: values[first]}, "candidates": {name: [values[name]] * 2 for name in others}}


def request_schema(model: Model, options: ServeOptions) -> dict[str, Any]:
    """JSON schema of a request. What it cannot say: that every column stands in exactly one of the two objects, and
    that all lists have one length.
    """
    values = {
        column: _value_schema([field for _, field in _fields_of(model, column)]) for column in model.features.columns
    }
    candidates = {
        column: {"type": "array", "items": value, "minItems": 1, "maxItems": options.max_candidates}
        for column, value in values.items()
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "request_id": {"type": "string", "pattern": f"^{REQUEST_ID}$", "description": "names it in the log"},
            "version": {"type": "string", "enum": ["", model.version], "description": "the only one that may answer"},
            "shared": {"type": "object", "additionalProperties": False, "properties": values},
            "candidates": {"type": "object", "additionalProperties": False, "properties": candidates},
        },
        "example": example(model),
    }


def _fields_of(model: Model, column: str) -> list[tuple[str, FeatureField]]:
    return [(name, field) for name, field in model.features.fields.items() if (field.column or name) == column]


def _field(name: str, field: FeatureField) -> dict[str, Any]:
    found: dict[str, Any] = {"field": name, "type": field.type}
    if isinstance(field, Multi):
        found |= {"separator": field.separator, "max_length": field.max_length}
    elif not isinstance(field, Categorical):
        found |= {"transform": field.transform}
    return found


def _value_schema(fields: list[FeatureField]) -> dict[str, Any]:
    """Of one row of a column."""
    field = fields[0]
    if isinstance(field, Categorical):
        return {"anyOf": [_TEXT, _INTEGER, {"type": "null"}]}
    if isinstance(field, Multi):
        return {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _INTEGER]}}, {"type": "null"}]}
    return {"anyOf": [{"type": "number", "minimum": -_FLOAT32_MAX, "maximum": _FLOAT32_MAX}, {"type": "null"}]}


def _example_value(field: FeatureField) -> Any:
    if isinstance(field, Categorical):
        return "a value"
    return ["one value", "another"] if isinstance(field, Multi) else 1.5
