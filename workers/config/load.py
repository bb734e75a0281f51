"""Read a configuration: YAML, then `--set` overrides, then validation. Every mistake is one line.

YAML as in its version 1.2: only true and false are booleans, 1e-3 is a number, and a key that comes twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from workers.config.errors import ConfigError, Location, dotted, explain, shown
from workers.config.job import Config

_NUMBERS = "-+0123456789."


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    def construct_decimal(self, node: yaml.Node) -> int:
        """An integer; decimal always, for in YAML 1.1 a leading zero means octal."""
        assert isinstance(node, yaml.ScalarNode)
        return int(self.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", _NUMBERS),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        _NUMBERS,
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in `path`, with overrides of the form `a.b=value` (value: YAML). Raises ConfigError."""
    data, lines = _read(Path(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of keys such as name, data, fields, found {shown(data)}")
    for override in overrides:
        set_value(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        location, text = explain(error, Config, data)
        if not location:  # a rule over several parts names its place itself
            raise ConfigError(f"{path}: {text}") from None
        line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None)
        overridden = any(dotted(location).startswith(override.partition("=")[0]) for override in overrides)
        place = f"{path}" if line is None or overridden else f"{path}:{line}"
        raise ConfigError(f"{place}: {dotted(location)}{' (from --set)' if overridden else ''}: {text}") from None


def _read(path: Path) -> tuple[Any, dict[Location, int]]:
    """The file's content, and the line of each path inside it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (current directory: {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    lines: dict[Location, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _note_lines(node, (), lines, path)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_text(error)}") from None


def _yaml_text(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f" {error.context}" if error.context else ""
        return f":{mark.line + 1}:{mark.column + 1}: not YAML: {error.problem}{context}"
    return f": not YAML: {' '.join(str(error).split())}"


def _note_lines(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*location, key.value)
            line = key.start_mark.line + 1
            if place in lines and key.value != "<<":
                raise ConfigError(f"{path}:{line}: {dotted(place)}: given twice, first in line {lines[place]}")
            lines[place] = line
            _note_lines(value, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*location, i)] = value.start_mark.line + 1
            _note_lines(value, (*location, i), lines, path)


def set_value(data: dict[str, Any], override: str) -> None:
    """Set one path, as in `a.b=value`, in place. The value is parsed as YAML."""
    dotted_path, equals, text = override.partition("=")
    parts = dotted_path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: must be of the form a.b=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}{_yaml_text(error)}") from None
    for i, part in enumerate(parts[:-1]):
        child = data.setdefault(part, {})
        if not isinstance(child, dict):
            place = ".".join(parts[: i + 1])
            raise ConfigError(
                f"--set {override}: {place} is {shown(child)}, not a mapping; set all of it: --set '{place}={{...}}'"
            )
        data = child
    data[parts[-1]] = value
