"""From which offsets on a delta stream is kept, whatever its age and size: what versions that are kept need.

    <directory>/kept/<name>.json      {version, offsets {partition: next offset}, crc32}

A partition that a kept name does not speak of came later, and is kept whole. So is every one where a file there cannot
be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from ps.errors import RequestError
from ps.places import LocalPlace

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_VERSION = 1


def keep(directory: str | Path, name: str, offsets: Mapping[int, int]) -> None:
    """Keep all partitions below a directory from these next offsets on, until `release`. Raises RequestError for a
    name that is no plain name of a file, OSError.
    """
    body = {"version": _VERSION, "offsets": {str(shard): offset for shard, offset in offsets.items()}}
    text = json.dumps({**body, "crc32": _crc(body)})
    LocalPlace(_folder(directory)).replace(_file(name), text.encode())


def release(directory: str | Path, name: str) -> None:
    """What was kept under this name is not needed any more."""
    with suppress(FileNotFoundError):
        (_folder(directory) / _file(name)).unlink()


def kept_from(directory: str | Path, partition: int) -> int | None:
    """The least offset of a partition that has to stay; None: none has to."""
    try:
        names = [name for name in os.listdir(_folder(directory)) if name.endswith(".json")]
    except OSError:
        return None
    return min((_offset(_folder(directory) / name, partition) for name in names), default=None)


def _offset(path: Path, partition: int) -> int:
    try:
        body = json.loads(path.read_text())
        crc = body.pop("crc32")
        offset = body["offsets"].get(str(partition), 0)
        return offset if crc == _crc(body) and isinstance(offset, int) else 0
    except FileNotFoundError:
        return 1 << 63  # released meanwhile
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


def _folder(directory: str | Path) -> Path:
    return Path(directory) / "kept"


def _file(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name[:80]!r} is no name to keep deltas under; use letters, digits, '.', '_' and '-'")
    return f"{name}.json"


def _crc(body: Mapping[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
