"""After-images of rows as bytes: the one record of checkpoints, and of what will stream out of a shard. One writer,
one reader.

    record  := length crc header keys images crc
    length  := u32                      bytes of header
    crc     := u32                      zlib crc32 of header; of keys + images
    header  := msgpack map              version, kind "rows" or "gone", table, bucket, layout, count, image_bytes,
                                        applied
    keys    := u64 [count]              in row order
    images  := u8 [count, image_bytes]  encoded values and state, as Table.image_layout describes them; those of rows
                                        without late segments are shorter, and stand in records of their own
    applied := (client u64, highest u64, bits u64)*    what the bucket has had (ps/applied.py); once a bucket, else
    empty

The header has `admission` as well, beside `applied`, where the bucket's keys without rows have gathered something
(ps/storage/admission.py).

Kind "gone", since version 2: keys that have no row any more, without images.

All numbers are little-endian. `layout` is a digest of Table.image_layout(): equal digests, interchangeable images. A
frame without a body (start and end of a checkpoint file) is `length crc header` alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import msgpack
import numpy as np
from zlib_ng.zlib_ng import crc32

from ps.errors import CheckpointError
from ps.types import Images, Keys

Buffer: TypeAlias = bytes | memoryview
VERSION = 2  # 2: "gone", and checkpoints that name a base
_FRAME = struct.Struct("<II")
_CRC = struct.Struct("<I")
_MAX_HEADER_BYTES = 1 << 24  # a longer one can only be damage


@dataclass(frozen=True, eq=False)
class Record:
    """Rows of one bucket of one table. layout: Table.image_layout() or its digest. applied: packed entries, or
    empty. admission: what keys without rows have gathered, or empty. is_gone: the keys have no row any more; images
    are [n, 0].
    """

    table: str
    bucket: int
    layout: str
    keys: Keys
    images: Images
    applied: bytes = b""
    admission: bytes = b""
    is_gone: bool = False


def layout_digest(layout: str) -> str:
    """16 hexadecimal digits that stand for a row layout."""
    return hashlib.sha256(layout.encode()).hexdigest()[:16]


def encode_frame(header: dict[str, Any]) -> bytes:
    """A frame without a body."""
    packed: bytes = msgpack.packb(header)
    return _FRAME.pack(len(packed), crc32(packed)) + packed


def record_pieces(record: Record) -> tuple[Buffer, ...]:
    """What `encode_record` gives, as pieces to be written one behind the other: images are not copied."""
    count = len(record.keys)
    head = encode_frame(
        {
            "version": VERSION,
            "kind": "gone" if record.is_gone else "rows",
            "table": record.table,
            "bucket": record.bucket,
            "layout": layout_digest(record.layout),
            "count": count,
            "image_bytes": record.images.shape[1] if count else 0,
            "applied": record.applied,
            **({"admission": record.admission} if record.admission else {}),
        }
    )
    arrays = (record.keys.astype("<u8", copy=False), record.images)
    body = [np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size]
    crc = 0
    for piece in body:
        crc = crc32(piece, crc)
    return (head, *body, _CRC.pack(crc))


def encode_record(record: Record) -> bytes:
    """A record whose `layout` is the text of Table.image_layout()."""
    return b"".join(record_pieces(record))


@dataclass(frozen=True)
class Frame:
    """A header, and where it stands in its file."""

    header: dict[str, Any]
    offset: int


class FrameReader:
    """Reads frames one after another. Every error names file and byte, and says what to do."""

    def __init__(self, file: BinaryIO, path: str, *, num_bytes: int) -> None:
        self._file = file
        self._path = path
        self._num_bytes = num_bytes

    def damaged(self, offset: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} at byte {offset}: {what}; the file is damaged, use another checkpoint")

    def read_frame(self) -> Frame:
        """The next header. Raises CheckpointError."""
        offset = self._file.tell()
        length, crc = _FRAME.unpack(self._take(_FRAME.size, offset))
        if length > _MAX_HEADER_BYTES:
            raise self.damaged(offset, f"a header of {length} bytes")
        packed = self._take(length, offset)
        if crc32(packed) != crc:
            raise self.damaged(offset, "the checksum of a header differs")
        try:
            header = msgpack.unpackb(packed)
        except Exception as error:  # msgpack raises many classes
            raise self.damaged(offset, f"a header cannot be read ({error})") from error
        if not isinstance(header, dict) or not isinstance(header.get("version"), int):
            raise self.damaged(offset, "a header is no map with a version")
        if header["version"] > VERSION:
            raise CheckpointError(
                f"{self._path} at byte {offset}: format version {header['version']} is newer than {VERSION}; "
                "read it with a newer weir-ps"
            )
        return Frame(header, offset)

    def read_record(
        self, frame: Frame, wanted: Callable[[str, int], bool] = lambda table, bucket: True
    ) -> Record | None:
        """The body of a "rows" or "gone" frame, checked; or None, passed over unread, where wanted(table, bucket) is
        false.
        """
        header, offset = frame.header, frame.offset
        fields = {"table": str, "bucket": int, "layout": str, "count": int, "image_bytes": int, "applied": bytes}
        for name, kind in fields.items():
            if not isinstance(header.get(name), kind):
                raise self.damaged(offset, f"a record without {name}")
        count, image_bytes = header["count"], header["image_bytes"]
        if not isinstance(header.get("admission", b""), bytes):
            raise self.damaged(offset, "a record whose admission is no bytes")
        if header["bucket"] < 0 or count < 0 or image_bytes < 0 or len(header["applied"]) % 24:
            raise self.damaged(offset, "a record with impossible lengths")
        is_gone = header.get("kind") == "gone"
        if is_gone and image_bytes:
            raise self.damaged(offset, "keys without rows that have images")
        num_bytes = count * (8 + image_bytes)
        if self._file.tell() + num_bytes + _CRC.size > self._num_bytes:
            raise self._truncated(offset)
        if not wanted(header["table"], header["bucket"]):
            self._file.seek(num_bytes + _CRC.size, 1)
            return None
        body = self._take(num_bytes, offset)
        (crc,) = _CRC.unpack(self._take(_CRC.size, offset))
        if crc32(body) != crc:
            raise self.damaged(offset, f"the checksum of {count} rows of table {header['table']!r} differs")
        keys = np.frombuffer(body, "<u8", count)
        images = np.frombuffer(body, np.uint8, offset=8 * count).reshape(count, image_bytes)
        state = (header["applied"], header.get("admission", b""))
        return Record(header["table"], header["bucket"], header["layout"], keys, images, *state, is_gone)

    def _take(self, num_bytes: int, offset: int) -> bytes:
        data = self._file.read(num_bytes) if self._file.tell() + num_bytes <= self._num_bytes else b""
        if len(data) != num_bytes:
            raise self._truncated(offset)
        return data

    def _truncated(self, offset: int) -> CheckpointError:
        return CheckpointError(
            f"{self._path} ends at byte {self._num_bytes}, inside what begins at byte {offset}; "
            "the file is truncated, use another checkpoint"
        )
