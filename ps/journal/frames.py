"""What stands in a journal, as bytes. One writer, one reader.

    segment := magic start frame*              magic := "WEIRJRNL"
    start   := frame {version, kind "start", epoch, shard, first, after, spec,
               routing, groups, leaving, arriving}                                         no body
    rows    := frame {version, kind "rows", number, table, layout, full, early, removed, gathered, dropped} body crc
    commit  := frame {version, kind "commit", number, ...}                                 no body
    body    := keys images  keys images  keys  keys amounts

A frame is `length crc header`, as ps/record.py has it. The body holds keys (u64) and images of full rows, then of early
ones, keys of removed rows, keys that gathered towards admission and how much (f32); crc is of the body. Images are as
Table.image_layout describes them; `layout` is its digest. Dropped are buckets that went whole.

An update is its rows frames and the commit frame behind them, all of one number: without its commit it did not happen.
Numbers rise by one. The commit says what is remembered as applied:

    marks    [[table, [[client, sequence]...], buckets (i32 little-endian)]...]
    group    [generation, step] of a synchronous group        expired  {table: [client]} that are refused from now on
    routing  [epoch, owners (i32), [address...], shard, least epoch]   the place that the shard has from now on
    spec     the cluster's from now on: the same rows, other options
    leaving, arriving  [bucket...]  that are given away, or come (ps/moving.py)
    windows  what came beside rows: msgpack {windows [[table, bucket, applied, gathered]...], expired {table: [client]}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from ps.errors import JournalError
from ps.record import VERSION, Buffer, Frame, FrameReader, encode_frame
from ps.types import Floats, Images, Keys

MAGIC = b"WEIRJRNL"
_CRC_BYTES = 4


@dataclass(frozen=True, eq=False)
class RowsFrame:
    """Changes of one table. full, early: (keys, images) of rows as they are now."""

    number: int
    table: str
    layout: str  # digest
    full: tuple[Keys, Images]
    early: tuple[Keys, Images]
    removed: Keys
    gathered: tuple[Keys, Floats]
    dropped: tuple[int, ...] = ()


NO_KEYS: Keys = np.empty(0, np.uint64)
NO_ROWS: tuple[Keys, Images] = (NO_KEYS, np.empty((0, 0), np.uint8))
NOTHING_GATHERED: tuple[Keys, Floats] = (NO_KEYS, np.empty(0, np.float32))


def encode_start(header: dict[str, Any], *, is_file: bool = True) -> bytes:
    """The beginning of a segment; or, not of a file, its frame alone."""
    return MAGIC * is_file + encode_frame({"version": VERSION, "kind": "start", **header})


def encode_rows(frame: RowsFrame) -> list[Buffer]:
    """As pieces to be written one behind the other: images are many megabytes, and are not copied."""
    header = {
        "version": VERSION,
        "kind": "rows",
        "number": frame.number,
        "table": frame.table,
        "layout": frame.layout,
        "full": [len(frame.full[0]), frame.full[1].shape[1]],
        "early": [len(frame.early[0]), frame.early[1].shape[1]],
        "removed": len(frame.removed),
        "gathered": len(frame.gathered[0]),
        "dropped": list(frame.dropped),
    }
    arrays = (*frame.full, *frame.early, frame.removed, *frame.gathered)
    body = [np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size]
    return [encode_frame(header), *body]


def with_checksum(pieces: Sequence[Buffer]) -> list[Buffer]:
    """What `encode_rows` gave, with the checksum of its body behind it. Apart from it, so that another thread can do
    it.
    """
    crc = 0
    for piece in pieces[1:]:
        crc = crc32(piece, crc)
    return [*pieces, crc.to_bytes(_CRC_BYTES, "little")]


def encode_commit(number: int, header: dict[str, Any]) -> bytes:
    """The end of an update."""
    return encode_frame({"version": VERSION, "kind": "commit", "number": number, **header})


class JournalReader(FrameReader):
    """Reads the frames of one segment. Every error names file and byte."""

    def damaged(self, offset: int, what: str) -> JournalError:  # type: ignore[override]
        return JournalError(
            f"{self._path} at byte {offset}: {what}; acknowledged updates are damaged. Restore a checkpoint (move the "
            "folder away first), or bring the file back"
        )

    def _truncated(self, offset: int) -> JournalError:  # type: ignore[override]
        return self.damaged(offset, f"the file ends at byte {self._num_bytes}, inside what begins here")

    def read_rows(self, frame: Frame) -> RowsFrame:
        """The body of a "rows" frame, checked."""
        header, offset = frame.header, frame.offset
        pairs = [header.get(name) for name in ("full", "early")]
        counts = [header.get("removed"), header.get("gathered")]
        dropped = header.get("dropped")
        lists = [*pairs, dropped]
        if not all(isinstance(given, list) and all(_is_count(each) for each in given) for given in lists):
            raise self.damaged(offset, "a frame of rows with impossible lengths")
        if not all(len(pair) == 2 for pair in pairs if pair is not None) or not all(_is_count(n) for n in counts):
            raise self.damaged(offset, "a frame of rows with impossible lengths")
        if not isinstance(header.get("table"), str) or not isinstance(header.get("layout"), str):
            raise self.damaged(offset, "a frame of rows without table and layout")
        (full, full_bytes), (early, early_bytes) = pairs  # type: ignore[misc]
        removed, gathered = int(counts[0] or 0), int(counts[1] or 0)
        num_bytes = full * (8 + full_bytes) + early * (8 + early_bytes) + 8 * removed + 12 * gathered
        body = self._take(num_bytes, offset)
        crc = int.from_bytes(self._take(_CRC_BYTES, offset), "little")
        if crc32(body) != crc:
            raise self.damaged(offset, f"the checksum of {full + early} rows of table {header['table']!r} differs")
        at = 0

        def take(dtype: str, *shape: int) -> NDArray[Any]:
            nonlocal at
            count = int(np.prod(shape))
            found = np.require(np.frombuffer(body, dtype, count, at).reshape(shape), requirements="A")
            at += count * np.dtype(dtype).itemsize
            return found

        return RowsFrame(
            _number(self, frame),
            header["table"],
            header["layout"],
            (take("<u8", full), take("u1", full, full_bytes)),
            (take("<u8", early), take("u1", early, early_bytes)),
            take("<u8", removed),
            (take("<u8", gathered), take("<f4", gathered)),
            tuple(dropped or ()),
        )

    def read_number(self, frame: Frame) -> int:
        """The number of the update that a frame belongs to."""
        return _number(self, frame)


def open_reader(file: BinaryIO, path: str, num_bytes: int) -> tuple[JournalReader, dict[str, Any]]:
    """A segment's reader behind its start, and the start's header. num_bytes: where it is to end."""
    reader = JournalReader(file, path, num_bytes=num_bytes)
    if file.read(len(MAGIC)) != MAGIC:
        raise reader.damaged(0, "it does not begin as a journal")
    start = reader.read_frame()
    if start.header.get("kind") != "start":
        raise reader.damaged(start.offset, "it does not begin with a start frame")
    return reader, start.header


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(reader: JournalReader, frame: Frame) -> int:
    number = frame.header.get("number")
    if not _is_count(number):
        raise reader.damaged(frame.offset, "a frame without a number")
    return int(number or 0)
