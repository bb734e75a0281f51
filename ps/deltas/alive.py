"""A sign that a partition's shard lives: a quiet shard writes no batches, and neither does a dead one.

    <partition folder>/ALIVE      {at, epoch, shards, last, total, crc32}, JSON, padded to 256 bytes, written over

at: unix seconds on the shard's clock. epoch, shards: of the shard's routing. last: the offset of the partition's last
batch, 0 for none; total: records up to it. A shard writes it every second, while no batch waits for the disk.

Who reads it compares it with what it read before, never its time with a clock of its own: one that has changed was
written since, by a shard that had published nothing behind `last`. One that cannot be read is none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from zlib_ng.zlib_ng import crc32

NAME = "ALIVE"
BEAT_SECONDS = 1.0
_BYTES = 256  # more than any has, and so little that a page of the disk holds it
_MAX_SHARDS = 1 << 16


class Beat(NamedTuple):
    """See above."""

    at: float
    epoch: int
    shards: int
    last: int
    total: int


def write_beat(folder: Path, beat: Beat) -> None:
    """Put it in place of the one before. Raises OSError."""
    body = beat._asdict()
    data = json.dumps({**body, "crc32": _crc(body)}).encode().ljust(_BYTES - 1) + b"\n"
    file = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.pwrite(file, data, 0) != len(data):
            raise OSError(28, "No space left on device")
    finally:
        os.close(file)  # where disks are shared, others see it from here on


def read_beat(folder: Path) -> Beat | None:
    """The newest one; None where there is none, or half of one."""
    try:
        with (folder / NAME).open("rb") as file:
            body = json.loads(file.read(_BYTES))
        crc = body.pop("crc32")
        beat = Beat(**body)
        is_fit = (
            all(type(each) is int and each >= 0 for each in beat[1:])
            and type(beat.at) is float
            and 1 <= beat.shards <= _MAX_SHARDS
        )
        return beat if is_fit and crc == _crc(body) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _crc(body: dict[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
