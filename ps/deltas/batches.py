"""What stands in a delta stream, as bytes. One writer, one reader, both those of the journal.

    segment := magic start batch*     magic := "WEIRDLTA"
    start   := frame {version, kind "start", partition, first, after, total, layouts {table: text}}
    batch   := rows* commit           frames as ps/journal/frames.py has them, all of one number: the batch's offset
    commit  := frame {version, kind "commit", number, epoch, at, since, records, total, marker?, begins?}

Offsets rise, in a process by one; a process begins at its time in microseconds, or behind the offset before, so none
is given twice even where a machine lost what it had written. `after`: the offset before the segment's first, 0 where
the partition begins there; total: records before it.

Rows frames hold images of the serving layout (ps/serving_rows.py): `full` are rows that are set, `removed` keys that
have no row any more, `dropped` buckets whose rows all go before those of this frame are set; the frames of a batch
apply one after another, and all or nothing. epoch: of the routing, in which the shard owned all buckets of the batch.
at, since: unix seconds when the batch was closed, and of its oldest change. records: rows and keys in the batch;
total: and in all before it. marker: {version, step, data_time}: all changes before it stand before it. begins: true
in the first batch of a process, behind which every bucket comes whole: whoever has other batches before it than stand
here goes on from it all the same. So does a follower of a pair whose processes have a folder each.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import msgpack
from zlib_ng.zlib_ng import crc32

from ps.errors import DeltaError, RequestError
from ps.journal.frames import JournalReader, RowsFrame, encode_commit
from ps.record import VERSION, Buffer, encode_frame

MAGIC = b"WEIRDLTA"
_MAX_VERSION = 200
_FRAME = struct.Struct("<II")  # length and crc of a header
_END_SIGN, _BEFORE_SIGN = msgpack.packb("kind") + msgpack.packb("commit"), 64  # inside one, and bytes before it


class Marker(NamedTuple):
    """Where a version stands in the stream. data_time: unix seconds of the newest sample that it was trained on."""

    version: str
    step: int
    data_time: float

    def check(self) -> None:
        """Raise RequestError for what cannot stand in a stream."""
        if not 1 <= len(self.version) <= _MAX_VERSION or not 0 <= self.step < 1 << 63:
            raise RequestError(
                f"a marker of version {self.version[:40]!r} and step {self.step}: a version has 1 to {_MAX_VERSION} "
                "characters, a step is not negative"
            )
        if not math.isfinite(self.data_time):
            raise RequestError(f"a marker of data_time {self.data_time}; it must be unix seconds")


@dataclass(frozen=True, eq=False)
class Batch:
    """See the grammar above."""

    offset: int
    epoch: int
    at: float
    since: float
    records: int
    total: int
    marker: Marker | None
    rows: tuple[RowsFrame, ...]
    begins: bool = False


class IncompleteError(DeltaError):
    """The end of the bytes lies inside a batch."""


class BatchReader(JournalReader):
    """Reads the frames of a segment, or of a piece of a stream. Every error names file and byte."""

    def damaged(self, offset: int, what: str) -> DeltaError:  # type: ignore[override]
        return DeltaError(f"{self._path} at byte {offset}: {what}; published rows are damaged: take a newer bundle")

    def _truncated(self, offset: int) -> IncompleteError:  # type: ignore[override]
        return IncompleteError(f"{self._path} ends at byte {self._num_bytes}, inside what begins at byte {offset}")

    def read_start(self) -> dict[str, Any]:
        """The header of a segment's start. Raises DeltaError."""
        if self._take(len(MAGIC), 0) != MAGIC:
            raise self.damaged(0, "it does not begin as a partition of deltas")
        frame = self.read_frame()
        header, kinds = frame.header, dict.fromkeys(("partition", "first", "after", "total"), int)
        if header.get("kind") != "start" or not _has(header, kinds) or not isinstance(header.get("layouts"), dict):
            raise self.damaged(frame.offset, "it does not begin with a start frame")
        return header

    def read_batch(self) -> Batch:
        """The next one, checked. Raises DeltaError, and IncompleteError where the bytes end inside it."""
        rows: list[RowsFrame] = []
        while (frame := self.read_frame()).header.get("kind") == "rows":
            rows.append(self.read_rows(frame))
        header, offset = frame.header, frame.offset
        kinds = {"number": int, "epoch": int, "at": float, "since": float, "records": int, "total": int}
        if header.get("kind") != "commit" or not _has(header, kinds):
            raise self.damaged(offset, "rows without the end of their batch")
        number = self.read_number(frame)
        if any(each.number != number for each in rows):
            raise self.damaged(offset, f"rows of another batch in that of offset {number}")
        if any(len(each.early[0]) or len(each.gathered[0]) for each in rows):
            raise self.damaged(offset, f"rows that are no serving rows in the batch of offset {number}")
        times = (header["epoch"], header["at"], header["since"], header["records"], header["total"])
        return Batch(number, *times, self._marker(header, offset), tuple(rows), header.get("begins") is True)

    def _marker(self, header: Mapping[str, Any], offset: int) -> Marker | None:
        found = header.get("marker")
        if found is None:
            return None
        if not isinstance(found, dict) or not _has(found, {"version": str, "step": int, "data_time": float}):
            raise self.damaged(offset, "a marker without version, step and data_time")
        return Marker(found["version"], found["step"], found["data_time"])


def encode_start(partition: int, first: int, after: int, total: int, layouts: Mapping[str, str]) -> bytes:
    """The beginning of a segment."""
    place = {"partition": partition, "first": first, "after": after, "total": total}
    return MAGIC + encode_frame({"version": VERSION, "kind": "start", **place, "layouts": dict(layouts)})


def encode_end(
    offset: int,
    *,
    epoch: int,
    at: float,
    since: float,
    records: int,
    total: int,
    marker: Marker | None = None,
    begins: bool = False,
) -> bytes:
    """The end of a batch, behind its frames of rows."""
    header: dict[str, Any] = {"epoch": epoch, "at": at, "since": since, "records": records, "total": total}
    if marker is not None:
        header["marker"] = marker._asdict()
    if begins:
        header["begins"] = True
    return encode_commit(offset, header)


def has_end(data: bytes) -> bool:
    """Whether the end of a batch stands anywhere in some bytes."""
    place = data.find(_END_SIGN)
    while place >= 0:
        for start in range(max(0, place - _BEFORE_SIGN), place - _FRAME.size):
            length, crc = _FRAME.unpack_from(data, start)
            end = start + _FRAME.size + length
            if place < end <= len(data) and crc32(data[start + _FRAME.size : end]) == crc:
                return True
        place = data.find(_END_SIGN, place + 1)
    return False


def read_batches(frames: Buffer, shown: str) -> list[Batch]:
    """Whole batches, behind one another. shown: where they come from, for errors. Raises DeltaError."""
    file, batches = io.BytesIO(frames), []
    reader = BatchReader(file, shown, num_bytes=len(frames))
    while file.tell() < len(frames):
        batches.append(reader.read_batch())
    return batches


def open_segment(file: BinaryIO, path: str, num_bytes: int) -> tuple[BatchReader, dict[str, Any]]:
    """A segment's reader behind its start, and the start's header. Raises DeltaError."""
    reader = BatchReader(file, path, num_bytes=num_bytes)
    return reader, reader.read_start()


def _has(header: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    found = ((header.get(name), kind) for name, kind in kinds.items())
    return all(isinstance(value, kind) and not isinstance(value, bool) and _is_fit(value) for value, kind in found)


def _is_fit(value: Any) -> bool:
    return not isinstance(value, int) or 0 <= value < 1 << 63
