"""Checkpoints: one file of rows for each shard, and a manifest that is written last. Nothing is pickled.

    DIR/MANIFEST.json                     what belongs together; a checkpoint without it is incomplete
    DIR/rows-SSSS-of-NNNN-RRRRRRRR.weir   a shard's rows; S shard, N shards, R random: a newer save never overwrites an
    older one's

    file  := magic start record* end      records as ps/record.py has them
    magic := "WEIRROWS"
    start := frame {version, kind "start", shard, num_buckets, seed, layouts {table: text}, expired {table: [client
    id]}, increments {table: bits}, buckets bits}
    end   := frame {version, kind "end", records, rows {table: rows}}

A checkpoint whose manifest names a base is an increment: of the buckets whose bit is set (bit 0 first) its files hold
what has changed since the base, of the others all. The base is an increment itself, or a full one (ps/chain.py).

DIR is a path or a URI (ps/places.py). What no manifest names is not part of a checkpoint, and the next save removes it.
Restoring works on any number of shards: each reads the files that have records of `buckets` that it owns.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgpack
from pydantic import BaseModel, Field, ValidationError
from zlib_ng.zlib_ng import crc32

from ps.errors import CheckpointError, RequestError
from ps.places import Place, inside, joined, open_place, reason, relative
from ps.record import VERSION, Buffer, FrameReader, Record, encode_frame
from ps.spec import ClusterSpec

MAGIC = b"WEIRROWS"
MANIFEST = "MANIFEST.json"
_PART_NAME = re.compile(r"rows-\d{4,}-of-\d{4,}-[0-9a-f]{8}\.weir(\.tmp)?")


@dataclass(frozen=True)
class Manifest:
    """A complete checkpoint. parts: as write_part made them. extra: the caller's own, such as the training step. id:
    of its save, 0 where none says. base: what it is an increment of.
    """

    directory: str
    place: Place
    spec: ClusterSpec
    parts: tuple[Mapping[str, Any], ...]
    extra: Mapping[str, Any]
    id: int = 0
    base: Manifest | None = None

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each table, those of its base that are as they were too."""
        held = [part.get("held", part["rows"]) for part in self.parts]
        return {name: sum(rows.get(name, 0) for rows in held) for name in self.spec.tables}

    @property
    def delta_offsets(self) -> dict[int, int] | None:
        """By partition, from which offset on the delta stream says what changed since; None where none was published,
        or the checkpoint is older than deltas.
        """
        found = {part["shard"]: part.get("delta_offset") for part in self.parts}
        known = {shard: offset for shard, offset in found.items() if offset is not None}
        return known if known and len(known) == len(found) else None

    @property
    def num_bytes(self) -> int:
        """Of its own files of rows."""
        return sum(part["bytes"] for part in self.parts)

    @property
    def chain(self) -> tuple[Manifest, ...]:
        """All that it stands on: a full checkpoint, the increments since, itself."""
        return (*(self.base.chain if self.base is not None else ()), self)

    def open(self, part: Mapping[str, Any], wanted: Wanted | None = None) -> AbstractContextManager[Part]:
        """`open_part` of one of its files."""
        shown = inside(self.directory, part["file"])
        return open_part(self.place, part["file"], shown=shown, wanted=wanted or _all)

    def remove_others(self) -> None:
        """Files of rows beside its own, which earlier saves into the folder left. Raises OSError."""
        kept = {part["file"] for part in self.parts}
        for name in self.place.names():
            if _PART_NAME.fullmatch(name) and name not in kept:
                self.place.remove(name)


def start_frame(
    *,
    shard: int,
    spec: ClusterSpec,
    layouts: Mapping[str, str],
    expired: Mapping[str, Sequence[int]],
    increments: Mapping[str, bytes] | None = None,
    buckets: bytes = b"",
) -> bytes:
    """The beginning of a file. increments: by table, the bits of the buckets of which it holds what has changed.
    buckets: the bits of those that it has records of; empty: maybe all.
    """
    header = {"version": VERSION, "kind": "start", "shard": shard, "num_buckets": spec.num_buckets, "seed": spec.seed}
    changed = {"increments": dict(increments)} if increments else {}
    covered = {"buckets": buckets} if buckets else {}
    return MAGIC + encode_frame({**header, "layouts": dict(layouts), "expired": dict(expired), **changed, **covered})


def end_frame(*, num_records: int, rows: Mapping[str, int]) -> bytes:
    """The end of a file."""
    return encode_frame({"version": VERSION, "kind": "end", "records": num_records, "rows": dict(rows)})


def write_part(directory: str | Path, shard: int, num_shards: int, pieces: Iterable[Buffer]) -> dict[str, Any]:
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
                crc = crc32(piece, crc)
    except OSError as error:
        raise CheckpointError(
            f"shard {shard} cannot write {inside(directory, name)}: {reason(error)}; free space or choose another "
            "folder"
        ) from error
    return {"file": name, "bytes": num_bytes, "crc32": crc, "shard": shard, "num_shards": num_shards}


def write_manifest(
    directory: str | Path,
    spec: ClusterSpec,
    parts: Sequence[bytes],
    extra: Mapping[str, Any] | None = None,
    *,
    id: int = 0,
    base: Manifest | None = None,
) -> Manifest:
    """Complete a checkpoint, and remove the files of an earlier one in the same folder. parts: SaveReply.manifest of
    all shards. id: of the save. base: since when the parts that are increments hold what has changed.

    Raises CheckpointError when parts are missing, also where shards wrote them to disks that are not seen here.
    """
    place, found = open_place(directory), tuple(msgpack.unpackb(part) for part in parts)
    needed = base if any(part.get("increment") for part in found) else None
    manifest = Manifest(str(directory), place, spec, found, dict(extra or {}), id, needed)
    _check_complete(manifest)
    since = {} if needed is None else {"base": {"path": relative(needed.directory, str(directory)), "id": needed.id}}
    body = {
        "format": "weir checkpoint",
        "version": VERSION,
        "cluster_spec": spec.model_dump(mode="json"),
        "parts": list(manifest.parts),
        "rows": manifest.rows,
        "extra": manifest.extra,
        "id": id,
        **since,
    }
    text = json.dumps({**body, "crc32": _json_crc(body)}, indent=1)
    try:
        unseen = [part for part in manifest.parts if place.size(part["file"]) != part["bytes"]]
        if unseen:
            shown, shard = inside(directory, unseen[0]["file"]), unseen[0]["shard"]
            raise CheckpointError(
                f"{shown} is not as shard {shard} wrote it, or not there: give a folder that all shards and this "
                "process share, or a URI"
            )
        place.replace(MANIFEST, text.encode())
        manifest.remove_others()
    except OSError as error:
        raise CheckpointError(f"cannot write {inside(directory, MANIFEST)}: {reason(error)}") from error
    return manifest


def read_manifest(directory: str | Path, *, above: tuple[str, ...] = ()) -> Manifest:
    """Raises CheckpointError when there is no complete checkpoint, or a file is missing or has another length, of it or
    of a base that it needs. above: the increments that need it.
    """
    place, path = open_place(directory), inside(directory, MANIFEST)
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
    said = _read_body(path, body)
    base = None if said.base is None else _read_base(str(directory), spec, said.base, above)
    manifest = Manifest(str(directory), place, spec, tuple(body["parts"]), body["extra"], said.id, base)
    _check_complete(manifest)
    for part in manifest.parts:
        shown = inside(directory, part["file"])
        try:
            found = place.size(part["file"])
        except OSError as error:
            raise CheckpointError(f"{shown} cannot be looked at: {reason(error)}") from error
        if found != part["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{shown} {state}, the manifest says {part['bytes']} bytes; use another checkpoint")
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
    held: dict[str, Annotated[int, Field(ge=0, strict=True)]] = {}
    increment: bool = Field(False, strict=True)
    delta_offset: int | None = Field(None, ge=0, lt=1 << 63, strict=True)


class _Start(BaseModel):
    """What the first frame of a file says."""

    layouts: dict[str, str]
    expired: dict[str, list[Annotated[int, Field(ge=0, lt=1 << 64, strict=True)]]] = {}
    increments: dict[str, bytes] = {}
    buckets: bytes = b""


class _Base(BaseModel):
    """path: from the folder of the increment."""

    path: str = Field(pattern=r"^\.\.?(/|$)")
    id: int = Field(gt=0, strict=True)


class _Body(BaseModel):
    parts: list[_Part]
    extra: dict[str, Any]
    id: int = Field(0, ge=0, strict=True)
    base: _Base | None = None


def _read_body(path: str, body: Mapping[str, Any]) -> _Body:
    """What a manifest says beside version and spec."""
    try:
        return _Body.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {place}: {first['msg']}; use another checkpoint") from error


def _read_base(directory: str, spec: ClusterSpec, said: _Base, above: tuple[str, ...]) -> Manifest:
    there = joined(directory, said.path)
    if there in (*above, directory):
        raise CheckpointError(f"{directory} is an increment of itself; use another checkpoint")
    try:
        base = read_manifest(there, above=(*above, directory))
    except CheckpointError as error:
        raise CheckpointError(f"{directory} is an increment and needs {there}: {error}") from error
    if base.id != said.id:
        raise CheckpointError(
            f"{directory} is an increment of what was saved in {there} before it was replaced; use another checkpoint"
        )
    if (base.spec.num_buckets, base.spec.seed) != (spec.num_buckets, spec.seed):
        raise CheckpointError(f"{directory} is an increment of {there}, which has other buckets or another seed")
    return base


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
        if not begun.expired.keys() | begun.increments.keys() <= begun.layouts.keys():
            raise reader.damaged(start.offset, "its start names expired clients or increments of unknown tables")
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
        if frame.header.get("kind") not in ("rows", "gone"):
            raise reader.damaged(frame.offset, f"a frame of unknown kind {frame.header.get('kind')!r}")
        record = reader.read_record(frame, wanted)
        num_records += 1
        if frame.header["kind"] == "rows":
            table = frame.header["table"]
            rows[table] = rows.get(table, 0) + frame.header["count"]
        if record is not None:
            yield record


def _check_complete(manifest: Manifest) -> None:
    numbers = sorted(part["shard"] for part in manifest.parts)
    expected = list(range(manifest.parts[0]["num_shards"])) if manifest.parts else [0]
    if numbers != expected:
        raise CheckpointError(
            f"checkpoint {manifest.directory} has files of shards {numbers}, not of {expected}; save it again"
        )
    if manifest.base is None and any(part.get("increment") for part in manifest.parts):
        raise CheckpointError(f"checkpoint {manifest.directory} holds what changed since a base, and names none")
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
    return crc32(json.dumps(body, sort_keys=True).encode())
