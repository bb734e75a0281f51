"""What a folder's journal is of its pair: ROLE.json, {version, term, role, crc32}.

    primary   the journal of the shard        standby   has every update that the primary acknowledged at that term
    filling   of a standby that has not all rows yet: good for nothing

Of two folders the one of the higher term counts: a term has one primary, and every change of the pair is a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from zlib_ng.zlib_ng import crc32

from ps.errors import JournalError
from ps.places import sync_folder
from ps.record import VERSION

KeptRole: TypeAlias = Literal["", "primary", "filling", "standby"]
_NAME = "ROLE.json"


class Kept(NamedTuple):
    """role: empty where there is no journal of a pair."""

    term: int = 0
    role: KeptRole = ""


def read_role(folder: Path) -> Kept:
    """Raises JournalError."""
    try:
        body = json.loads((folder / _NAME).read_text())
        crc = body.pop("crc32")
        if crc != _crc(body) or body["version"] > VERSION:
            raise ValueError("its checksum or version differs")
        return Kept(int(body["term"]), body["role"])
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(f"{folder / _NAME} cannot be read: {error}; restore a checkpoint") from error


def write_role(folder: Path, kept: Kept) -> None:
    """It lasts when this returns. Raises JournalError."""
    body = {"version": VERSION, "term": kept.term, "role": kept.role}
    temporary = folder / (_NAME + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps({**body, "crc32": _crc(body)}))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / _NAME)
        sync_folder(folder)
    except OSError as error:
        raise JournalError(f"{folder / _NAME} cannot be written: {error.strerror}; free space there") from error


def remove_role(folder: Path) -> None:
    """With the journal that it speaks of."""
    (folder / _NAME).unlink(missing_ok=True)


def _crc(body: Mapping[str, object]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
