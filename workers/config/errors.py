"""A mistake in the configuration, and how a validation error becomes one clear line.

configs/x.yaml:12: data.batch_sise: unknown key; did you mean 'batch_size'?
configs/x.yaml: train.epochs (from --set): must be greater than 0, found -1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ps.errors import RequestError

Location = tuple[str | int, ...]


class ConfigError(RequestError):
    """A mistake in the configuration, as one line: file, path inside it, what was found, what is allowed."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """'; did you mean ...?' with the nearest allowed name, or the list of all of them when none is near."""
    names = list(allowed)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; allowed: {', '.join(names)}" if names else ""


def dotted(location: Location) -> str:
    """('data', 'train', 0) -> 'data.train.0'."""
    return ".".join(str(part) for part in location)


def shown(value: Any) -> str:
    """A found value, cut to one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> tuple[Location, str]:
    """The place and the text of the first mistake, unknown keys first (a misspelt key also reads as a missing one)."""
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    location = _in_file(first["loc"], data)
    text = _text(first, model.model_json_schema())
    if len(details) > 1:
        text += f" (and {len(details) - 1} more)"
    return location, text


def _text(detail: ErrorDetails, schema: dict[str, Any]) -> str:
    kind, context, found = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return "unknown key" + nearest(detail["loc"][-1], _keys_at(schema, detail["loc"][:-1]))
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        discriminator = context["discriminator"].strip("'")
        return f"unknown {discriminator} '{context['tag']}'" + nearest(context["tag"], tags)
    if kind == "union_tag_not_found":
        return f"must be a mapping with the key {context['discriminator']}, found {shown(found)}"
    text = detail["msg"].replace("Input should be", "must be") + f", found {shown(found)}"
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in context["expected"].replace(" or ", ",").split(",")]
        close = difflib.get_close_matches(str(found), choices, n=1)
        text += f"; did you mean '{close[0]}'?" if close else ""
    return text


def _in_file(location: Location, data: Any) -> Location:
    """A location without the union tags that pydantic puts between the keys of the file."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        in_mapping = isinstance(data, Mapping) and part in data
        if in_mapping or (isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif i < len(location) - 1:
            continue
        path.append(part)
    return tuple(path)


def _keys_at(schema: dict[str, Any], location: Location) -> list[str]:
    """The keys that a mapping at `location` may have, in their order."""
    nodes = [schema]
    for part in location:
        nodes = [child for node in nodes for child in _children(node, part, schema)]
    return list(
        dict.fromkeys(key for node in nodes for form in _forms(node, schema) for key in form.get("properties", {}))
    )


def _children(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for form in _forms(node, schema):
        mapping = form.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            yield {"$ref": mapping[part]}
        elif part in form.get("properties", {}):
            yield form["properties"][part]
        elif isinstance(part, int) and "items" in form:
            yield form["items"]
        elif isinstance(form.get("additionalProperties"), dict):
            yield form["additionalProperties"]


def _forms(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of the JSON schema with references followed and alternatives (`X | None`) laid side by side."""
    if "$ref" in node:
        yield from _forms(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
        return
    yield node
    for alternative in node.get("anyOf", ()):
        yield from _forms(alternative, schema)
