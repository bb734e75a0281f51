"""The files of a split, and the check that they have the columns that the job reads."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.samples.errors import DataError, missing, node


def resolve(root: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Paths of a split: each pattern relative to `root`, a glob's files sorted. Raises DataError for a file that is
    not there.
    """
    paths: list[Path] = []
    for pattern in patterns:
        full = Path(root) / pattern
        if glob.has_magic(pattern):
            found = sorted(Path(path) for path in glob.glob(str(full), recursive=True))
            if not found:
                raise DataError(
                    f"{full}: no file matches on node {node()}; set data.root to the directory that has them"
                )
            paths += found
        else:
            if not full.is_file():
                raise missing(full.resolve())
            paths.append(full)
    return tuple(paths)


def check_columns(path: Path, present: Sequence[str], places: Mapping[str, str]) -> None:
    """Raises DataError unless all columns are there, once. places: where the configuration names each needed column."""
    for column, place in places.items():
        if column not in present:
            close = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean '{close[0]}'? The" if close else "the"
            has = ", ".join(present[:50]) + (", ..." if len(present) > 50 else "")
            raise DataError(f"{path}: no column '{column}' (from {place}); {hint} file has: {has}")
        if list(present).count(column) > 1:
            raise DataError(f"{path}: the column '{column}' (from {place}) comes more than once")
