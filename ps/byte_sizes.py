"""Sizes in bytes as people write and read them: 8GiB, 500MB, 1.5 TiB, or a plain number of bytes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS: dict[str, int] = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGTP", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
_BY_LENGTH = {unit.lower(): length for unit, length in _UNITS.items()}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def read_bytes(text: str) -> int:
    """The number of bytes, rounded down. Raises ValueError that says what is allowed."""
    found = _SIZE.fullmatch(text)
    unit = _BY_LENGTH.get((found[2] or "B").lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"must be a number of bytes or a size as 8GiB or 500MB (units {', '.join(_UNITS)})")
    whole, _, fraction = found[1].partition(".")
    return int(whole) * unit + int(fraction or "0") * unit // int(10 ** len(fraction))


def show_bytes(num_bytes: float) -> str:
    """In the greatest binary unit that it has at least one of, at most four digits: 8 GiB, 22.34 GiB."""
    unit = next((unit for unit in ("PiB", "TiB", "GiB", "MiB", "KiB") if num_bytes >= _UNITS[unit]), "B")
    return f"{num_bytes / _UNITS[unit]:.4g} {unit}"


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return read_bytes(value)
    except ValueError as error:
        raise ValueError(f"{error}, found {value!r}") from None


ByteSize = Annotated[int, BeforeValidator(_from_text)]  # an option: a number, or text as read_bytes takes it
