"""Results as text for a person: YAML, or lines with aligned columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


def as_yaml(result: Any) -> str:
    """Maps and lists, floats at six digits."""
    return yaml.safe_dump(_rounded(result), sort_keys=False, allow_unicode=True, width=120)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A line for the header and for each row; a column is to the right where all its cells begin with a digit."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    right = [all(row[column][:1].isdigit() or not row[column] for row in rows) for column in range(len(header))]
    return "".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )
