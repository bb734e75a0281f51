"""The end of a message about an unknown name: the nearest known one and the list of all."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, allowed: Iterable[str]) -> str:
    """'; did you mean 'x'? Allowed: x, y', without the guess where nothing is near."""
    names = sorted(allowed)
    close = get_close_matches(name, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} Allowed: {', '.join(names) or 'none'}"
