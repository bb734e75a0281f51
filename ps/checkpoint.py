"""Checkpoints: one file of rows for each shard, and a manifest that is written last. Nothing is pickled.

    DIR/MANIFEST.json                     what belongs together; a checkpoint without it is incomplete
    DIR/rows-SSSS-of-NNNN-RRRRRRRR.weir   a shard's rows; S shard, N shards, R random: a newer save never overwrites an
    older one's

    file  := magic start record* end      records as ps/record.py has them
    magic := "WEIRROWS"
    start := frame {version, kind "start", shard, num_buckets, seed, layouts {table: text}, expired {table: [client
    id]}} end   := frame {version, kind "end", records, rows {table: rows}}

DIR is a path or a URI (ps/places.py). What no manifest names is not part of a checkpoint, and the next save removes it.
Restoring works on any number of shards: each reads all files and keeps the buckets that it owns.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgpack
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ps.errors import CheckpointError, RequestError
from ps.keys import bucket_of, slot_of
from ps.places import Place, open_place, reason
from ps.record import VERSION, FrameReader, Record, encode_frame
from ps.spec import ClusterSpec
from ps.storage.table import Table
from ps.types import Floats

MAGIC = b"WEIRROWS"
MANIFEST = "MANIFEST.json"
_PART_NAME = re.compile(r"rows-\d{4,}-of-\d{4,}-[0-9a-f]{8}\.weir(\.tmp)?")


@dataclass(frozen=True)
class Manifest:
    """A complete checkpoint. parts: as write_part made them. extra: the caller's own, such as the training step."""

    directory: str
    place: Place
    spec: ClusterSpec
    parts: tuple[Mapping[str, Any], ...]
    extra: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each table."""
        return {name: sum(part["rows"].get(name, 0) for part in self.parts) for name in self.spec.tables}

    def open(self, part: Mapping[str, Any], wanted: Wanted | None = None) -> AbstractContextManager[Part]:
        """`open_part` of one of its files."""
        shown = f"{self.directory}/{part['file']}"
        return open_part(self.place, part["file"], shown=shown, wanted=wanted or _all)


def start_frame(
    *, shard: int, spec: ClusterSpec, layouts: Mapping[str, str], expired: Mapping[str, Sequence[int]]
) -> bytes:
    """The beginning of a file."""
    header = {"version": VERSION, "kind": "start", "shard": shard, "num_buckets": spec.num_buckets, "seed": spec.seed}
    return MAGIC + encode_frame({**header, "layouts": dict(layouts), "expired": dict(expired)})


def end_frame(*, num_records: int, rows: Mapping[str, int]) -> bytes:
    """The end of a file."""
    return encode_frame({"version": VERSION, "kind": "end", "records": num_records, "rows": dict(rows)})


def write_part(directory: str | Path, shard: int, num_shards: int, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write one shard's file from its pieces, start to end; its name, bytes and crc32. Raises CheckpointError with
    the reason.
    """
    name = f"rows-{shard:04d}-of-{num_shards:04d}-{os.urandom(4).hex()}.weir"
    num_bytes = crc = 0
    try:
        with open_place(directory).create(name) as file:
            for piece in pieces:
                file.write(piece)
                num_bytes += len(piece)
                crc = zlib.crc32(piece, crc)
    except OSError as error:
        raise CheckpointError(
            f"shard {shard} cannot write {directory}/{name}: {reason(error)}; free space or choose another folder"
        ) from error
    return {"file": name, "bytes": num_bytes, "crc32": crc, "shard": shard, "num_shards": num_shards}


def write_manifest(
    directory: str | Path, spec: ClusterSpec, parts: Sequence[bytes], extra: Mapping[str, Any] | None = None
) -> Manifest:
    """Complete a checkpoint, and remove the files of an earlier one in the same folder. parts: SaveReply.manifest of
    all shards.

    Raises CheckpointError when parts are missing.
    """
    place = open_place(directory)
    manifest = Manifest(str(directory), place, spec, tuple(msgpack.unpackb(part) for part in parts), dict(extra or {}))
    _check_complete(manifest)
    body = {
        "format": "weir checkpoint",
        "version": VERSION,
        "cluster_spec": spec.model_dump(mode="json"),
        "parts": list(manifest.parts),
        "rows": manifest.rows,
        "extra": manifest.extra,
    }
    text = json.dumps({**body, "crc32": _json_crc(body)}, indent=1)
    kept = {part["file"] for part in manifest.parts}
    try:
        place.replace(MANIFEST, text.encode())
        for name in place.names():
            if _PART_NAME.fullmatch(name) and name not in kept:
                place.remove(name)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}/{MANIFEST}: {reason(error)}") from error
    return manifest


def read_manifest(directory: str | Path) -> Manifest:
    """Raises CheckpointError when there is no complete checkpoint, or a file is missing or has another length."""
    place, path = open_place(directory), f"{directory}/{MANIFEST}"
    try:
        with place.open(MANIFEST) as file:
            body = json.loads(file.read())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: {directory} holds no complete checkpoint; use the one before it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # no text, no JSON, a number without end, nested too deep
        raise CheckpointError(f"{path} cannot be read: {error}; use another checkpoint") from error
    if not isinstance(body, dict) or not isinstance(body.get("version"), int):
        raise CheckpointError(f"{path} is no manifest of a checkpoint")
    if body["version"] > VERSION:
        raise CheckpointError(f"{path}: format version {body['version']} is newer than {VERSION}; use a newer weir-ps")
    crc = body.pop("crc32", None)
    if crc != _json_crc(body):
        raise CheckpointError(f"{path} was changed after it was written: its checksum differs; use another checkpoint")
    try:
        spec = ClusterSpec.model_validate(body.get("cluster_spec"))
    except (ValidationError, RequestError) as error:
        raise CheckpointError(f"{path} has a cluster spec that this weir-ps cannot read: {error}") from error
    manifest = Manifest(str(directory), place, spec, *_read_parts(path, body))
    _check_complete(manifest)
    for part in manifest.parts:
        try:
            found = place.size(part["file"])
        except OSError as error:
            raise CheckpointError(f"{directory}/{part['file']} cannot be looked at: {reason(error)}") from error
        if found != part["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"{directory}/{part['file']} {state}, the manifest says {part['bytes']} bytes; use another checkpoint"
            )
    return manifest


class _Part(BaseModel):
    """What a manifest says of a file. A name leads to no other folder."""

    file: str = Field(pattern=_PART_NAME.pattern + "$")
    bytes: int = Field(ge=0, strict=True)
    crc32: int = Field(ge=0, lt=1 << 32, strict=True)
    shard: int = Field(ge=0, strict=True)
    num_shards: int = Field(ge=1, strict=True)
    num_owned_buckets: int = Field(ge=0, strict=True)
    routing_epoch: int = Field(0, ge=0, strict=True)
    rows: dict[str, Annotated[int, Field(ge=0, strict=True)]]


class _Start(BaseModel):
    """What the first frame of a file says."""

    layouts: dict[str, str]
    expired: dict[str, list[Annotated[int, Field(ge=0, lt=1 << 64, strict=True)]]] = {}


class _Parts(BaseModel):
    parts: list[_Part]
    extra: dict[str, Any]


def _read_parts(path: str, body: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    """`parts` and `extra` of a manifest, as they stand there once they are found to be right."""
    try:
        _Parts.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {place}: {first['msg']}; use another checkpoint") from error
    return tuple(body["parts"]), body["extra"]


@dataclass(frozen=True)
class Part:
    """One file, opened. start: its first frame."""

    shown: str
    start: Mapping[str, Any]
    records: Iterator[Record]


Wanted: TypeAlias = Callable[[str, int], bool]  # (table, bucket) -> whether its records are read


def _all(table: str, bucket: int) -> bool:
    return True


@contextmanager
def open_part(place: Place, name: str, *, shown: str, wanted: Wanted = _all) -> Iterator[Part]:
    """A file of rows for reading; its `records` are those of the wanted (table, bucket). shown: its name in errors.

    A record that comes has been checked, and the end of the file is checked after the last. Raises CheckpointError.
    """
    try:
        file, num_bytes = place.open(name), place.size(name) or 0
    except OSError as error:
        raise CheckpointError(f"{shown} cannot be read: {reason(error)}; use another checkpoint") from error
    with file:
        reader = FrameReader(file, shown, num_bytes=num_bytes)
        if file.read(len(MAGIC)) != MAGIC:
            raise reader.damaged(0, "it does not begin as a file of rows")
        start = reader.read_frame()
        if start.header.get("kind") != "start":
            raise reader.damaged(start.offset, "it does not begin with a start frame")
        try:
            begun = _Start.model_validate(start.header)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise reader.damaged(start.offset, f"its start has a wrong {first['loc'][0]}: {first['msg']}") from error
        if not begun.expired.keys() <= begun.layouts.keys():
            raise reader.damaged(start.offset, "its start names expired clients of unknown tables")
        yield Part(shown, start.header, _records(file, reader, wanted))


def _records(file: Any, reader: FrameReader, wanted: Callable[[str, int], bool]) -> Iterator[Record]:
    num_records, rows = 0, dict[str, int]()
    while True:
        frame = reader.read_frame()
        if frame.header.get("kind") == "end":
            if frame.header.get("records") != num_records or frame.header.get("rows") != rows:
                raise reader.damaged(frame.offset, f"the end does not count the {num_records} records before it")
            if file.read(1):
                raise reader.damaged(frame.offset, "bytes follow the end")
            return
        if frame.header.get("kind") != "rows":
            raise reader.damaged(frame.offset, f"a frame of unknown kind {frame.header.get('kind')!r}")
        record = reader.read_record(frame, wanted)
        num_records += 1
        table = frame.header["table"]
        rows[table] = rows.get(table, 0) + frame.header["count"]
        if record is not None:
            yield record


@dataclass(frozen=True)
class Summary:
    """What a verified checkpoint holds, by table. slots: rows of each slot. num_clients: whose updates are
    remembered.
    """

    manifest: Manifest
    num_bytes: int
    rows: Mapping[str, int]
    slots: Mapping[str, Mapping[int, int]]
    num_clients: Mapping[str, int]


def verify(directory: str | Path, visit: Callable[[Record], None] = lambda record: None) -> Summary:
    """Read every byte of a checkpoint; `visit` gets each record. Raises CheckpointError naming file and byte."""
    manifest = read_manifest(directory)
    rows = dict.fromkeys(manifest.spec.tables, 0)
    slots: dict[str, Counter[int]] = {name: Counter() for name in manifest.spec.tables}
    clients: dict[str, set[int]] = {name: set() for name in manifest.spec.tables}
    for part in manifest.parts:
        with manifest.open(part) as opened:
            for record in opened.records:
                visit(record)
                numbers, counts = np.unique(slot_of(record.keys), return_counts=True)
                slots[record.table].update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
                rows[record.table] += len(record.keys)
                clients[record.table].update(struct.unpack_from("<Q", record.applied, at)[0] for at in _entries(record))
    if rows != manifest.rows:
        raise CheckpointError(
            f"{directory} holds rows {rows}, its manifest says {manifest.rows}; use another checkpoint"
        )
    num_bytes = sum(part["bytes"] for part in manifest.parts)
    return Summary(manifest, num_bytes, rows, slots, {name: len(known) for name, known in clients.items()})


def _entries(record: Record) -> range:
    return range(0, len(record.applied), 24)


@dataclass(frozen=True)
class FoundRow:
    """One row of a checkpoint. shard: which one wrote it. values: float32 [dim] of each segment. image: with its
    state.
    """

    bucket: int
    shard: int
    values: Mapping[str, Floats]
    image: bytes


def find_row(directory: str | Path, table: str, key: int) -> FoundRow | None:
    """The row of a key, or None. Reads the records of the key's bucket only. Raises CheckpointError."""
    manifest = read_manifest(directory)
    spec = manifest.spec
    if table not in spec.tables:
        raise CheckpointError(f"{directory} has no table {table!r}; it has: {', '.join(spec.tables)}")
    keys = np.array([key], np.uint64)
    bucket = int(bucket_of(keys, spec.num_buckets)[0])
    for part in manifest.parts:
        with manifest.open(part, lambda *at: at == (table, bucket)) as opened:
            for record in opened.records:
                places = np.flatnonzero(record.keys == keys[0])
                if len(places):
                    image = record.images[places]
                    holder = Table(table, spec.tables[table], seed=spec.seed, num_buckets=spec.num_buckets)
                    holder.write_images(keys, image)
                    row = holder.pull(keys)[0]
                    values = {name: row[columns] for name, columns in spec.tables[table].columns().items()}
                    return FoundRow(bucket, part["shard"], values, image.tobytes())
    return None


def _check_complete(manifest: Manifest) -> None:
    numbers = sorted(part["shard"] for part in manifest.parts)
    expected = list(range(manifest.parts[0]["num_shards"])) if manifest.parts else [0]
    if numbers != expected:
        raise CheckpointError(
            f"checkpoint {manifest.directory} has files of shards {numbers}, not of {expected}; save it again"
        )
    epochs = sorted({part.get("routing_epoch", 0) for part in manifest.parts})
    if len(epochs) > 1:
        raise CheckpointError(
            f"checkpoint {manifest.directory} has files of routing epochs {epochs}: buckets moved while it began; "
            "save it again"
        )
    buckets = sum(part["num_owned_buckets"] for part in manifest.parts)
    if buckets != manifest.spec.num_buckets:
        raise CheckpointError(
            f"checkpoint {manifest.directory} covers {buckets} of {manifest.spec.num_buckets} buckets; save it again"
        )


def _json_crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
