"""The files of a journal: their names, what of them counts, and where the last one ends.

    journal-EEEEEEEE-NNNNNNNNNNNN.weir   a segment. E: epoch, one more at every start of the shard's process; N: number
                                         of its first update
    ACKNOWLEDGED                         up to which byte of which segment updates have been acknowledged
    snapshot-EEEEEEEE-NNNNNNNNNNNN.weir  all rows (snapshot.py); SNAPSHOT.json names the one that counts, written last

Every segment's start says where the one before it ended, so what a process that was thought dead writes behind that is
never read. The last segment may end in an update that was cut off: behind what was acknowledged that is no damage, and
is left out. Before it, every byte must be right.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from ps.errors import JournalError
from ps.journal.frames import RowsFrame, open_reader
from ps.record import Frame

_NAME = re.compile(r"journal-(\d{8})-(\d{12})\.weir")
_ACKNOWLEDGED = struct.Struct("<QQQI")  # epoch, first, offset, crc32 of these


@dataclass(frozen=True, order=True)
class SegmentName:
    """epoch: of the process that wrote it; first: number of its first update."""

    epoch: int
    first: int

    def __str__(self) -> str:
        return f"journal-{self.epoch:08d}-{self.first:012d}.weir"


@dataclass(frozen=True)
class Segment:
    """A file that counts, up to byte `end`. start: the header of its start frame."""

    name: SegmentName
    path: Path
    end: int
    start: dict[str, Any]


def find_segments(folder: Path) -> list[SegmentName]:
    """All of a folder, in the order in which they were written."""
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(SegmentName(int(match[1]), int(match[2])) for match in found if match)


class Acknowledged:
    """The file ACKNOWLEDGED. Kept in memory of the operating system, as segments are: as safe as they without fsync."""

    NAME = "ACKNOWLEDGED"

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / self.NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size < _ACKNOWLEDGED.size:
            os.pwrite(self._file, bytes(_ACKNOWLEDGED.size), 0)  # later writes need no room on the disk

    def read(self) -> tuple[SegmentName, int] | None:
        """Segment and offset; None where nothing was acknowledged, or it cannot be told."""
        data = os.pread(self._file, _ACKNOWLEDGED.size, 0)
        if len(data) != _ACKNOWLEDGED.size or crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        epoch, first, offset, _ = _ACKNOWLEDGED.unpack(data)
        return SegmentName(epoch, first), offset

    def write(self, name: SegmentName, offset: int) -> None:
        data = _ACKNOWLEDGED.pack(name.epoch, name.first, offset, 0)[:-4]
        os.pwrite(self._file, data + crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        os.close(self._file)


def check_segments(
    folder: Path, acknowledged: tuple[SegmentName, int] | None, since: SegmentName | None
) -> list[Segment]:
    """The segments that count, oldest first, every byte of them checked. since: the oldest one that is needed.

    Raises JournalError with file and byte where an acknowledged update is damaged or gone.
    """
    names = [name for name in find_segments(folder) if since is None or name >= since]
    if since is not None and (not names or names[0] != since):
        raise JournalError(f"{folder / str(since)} is gone, and with it acknowledged updates; restore a checkpoint")
    if acknowledged is not None and acknowledged[0] not in names and (since is None or acknowledged[0] > since):
        raise JournalError(f"{folder / str(acknowledged[0])} is gone, and with it acknowledged updates")
    segments: list[Segment] = []
    for name in reversed(names):
        # Where a segment ends is said by the one after it; where the last one ends is seen.
        end = None if not segments else _end_of(name, segments[-1], folder)
        if end == 0:
            continue  # nothing of it was ever taken over
        least = acknowledged[1] if acknowledged is not None and acknowledged[0] == name else 0
        segment = _check(folder, name, end, least)
        if segment is not None:
            segments.append(segment)
    segments.reverse()
    if segments and segments[0].name != since and segments[0].start.get("after") is not None:
        raise JournalError(f"{folder / segments[0].start['after'][0]} is gone, and with it acknowledged updates")
    for before, after in pairwise(segments):
        if after.start.get("after") != [str(before.name), before.end]:
            raise JournalError(f"{after.path} does not follow {before.path}: a segment between them is gone")
    return segments


def _end_of(name: SegmentName, after: Segment, folder: Path) -> int:
    """Where the segment ends that stands before `after`: 0 where another one stands there."""
    said = after.start.get("after")
    if said is None or said[0] != str(name):
        return 0
    return int(said[1])


def _check(folder: Path, name: SegmentName, end: int | None, least: int) -> Segment | None:
    """Read all of a segment: up to `end`, or to the last whole update, which ends at `least` or behind it."""
    path = folder / str(name)
    num_bytes = path.stat().st_size
    if end is not None and num_bytes < end:
        raise JournalError(f"{path} has {num_bytes} bytes, {end} were acknowledged; restore a checkpoint")
    with path.open("rb") as file:
        try:
            reader, start = open_reader(file, str(path), end if end is not None else num_bytes)
        except JournalError:
            if end is None and least == 0:
                return None  # the process died while it began the file
            raise
        whole = file.tell()
        limit = end if end is not None else num_bytes
        try:
            while file.tell() < limit:
                frame = reader.read_frame()
                if frame.header.get("kind") == "rows":
                    reader.read_rows(frame)
                elif frame.header.get("kind") == "commit":
                    reader.read_number(frame)
                    whole = file.tell()
                else:
                    raise reader.damaged(frame.offset, f"a frame of unknown kind {frame.header.get('kind')!r}")
        except JournalError:
            if end is not None or whole < least:
                raise
    if end is not None and whole != end:
        raise JournalError(f"{path} at byte {whole}: an update has no end before byte {end}, where the segment ends")
    if whole < least:
        raise JournalError(
            f"{path} ends at byte {whole}, {least} bytes were acknowledged; restore a checkpoint, or remove "
            f"{Acknowledged.NAME} beside it to go on without the missing end (docs/durability.md)"
        )
    return Segment(name, path, whole, start)


def read_frames(segment: Segment) -> Iterator[tuple[Frame, RowsFrame | None]]:
    """The frames of a checked segment; of those that hold rows also these."""
    with segment.path.open("rb") as file:
        reader, _ = open_reader(file, str(segment.path), segment.end)
        while file.tell() < segment.end:
            frame = reader.read_frame()
            yield frame, reader.read_rows(frame) if frame.header["kind"] == "rows" else None


def remove_before(folder: Path, first_needed: SegmentName) -> None:
    """Delete the segments that a snapshot made unnecessary."""
    for name in find_segments(folder):
        if name < first_needed:
            with suppress(FileNotFoundError):
                (folder / str(name)).unlink()
