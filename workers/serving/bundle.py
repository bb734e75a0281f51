"""A bundle: all that answers requests, in one folder. Written once, never changed; bundle.json is written last.

    DIR/bundle.json      the manifest (workers/serving/manifest.py), with its own checksum
    DIR/rows/            rows of the serving layout, values only: a checkpoint (ps/checkpoint.py)
    DIR/tower.onnx       inputs rows_<segment> float32 [n, num_fields, dim], "dense" float32 [n, num_dense] where there
                         are any; output "logits" float32 [n, num_tasks]
    DIR/tower.pt2        the same of torch.export, for other programs: nothing here reads it
    DIR/examples.json    {split, columns {name: [value] * n}, logits [[task] * n], scores {label: [n]}}: requests as
                         training read them, and what it answered
    DIR/parquet/         the rows once more, where asked for: one file a table

Reading checks every file but the rows against the manifest, and rows by their sizes: their records have checksums of
their own, which whoever loads them sees. `verify` reads all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from zlib_ng.zlib_ng import crc32

from ps.checkpoint import MANIFEST as ROWS_MANIFEST
from ps.errors import BundleError
from ps.places import LocalPlace, reason
from ps.spec import ClusterSpec
from workers.config.fields import FeatureField
from workers.serving.manifest import EXAMPLES_FILE, FORMAT, ROWS_FOLDER, TOWER_FILE, FileEntry, Manifest

MANIFEST_FILE = "bundle.json"
_NEEDED = (TOWER_FILE, EXAMPLES_FILE, f"{ROWS_FOLDER}/{ROWS_MANIFEST}")
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle that is whole. Made by `read_bundle`."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def fields(self) -> Mapping[str, FeatureField]:
        """What turns columns of a request into keys and dense values; in order, all names resolved."""
        return self.manifest.fields

    @property
    def serving_spec(self) -> ClusterSpec:
        """Of the images in rows/, and in the delta stream that continues them."""
        return self.manifest.serving

    @property
    def training_spec(self) -> ClusterSpec:
        """What keys without a row read as: see ps/serving_rows.py unserved_table."""
        return self.manifest.spec

    @property
    def offsets(self) -> Mapping[int, int] | None:
        """By partition, the next offset of the delta stream."""
        given = self.manifest.offsets
        return None if given is None else {int(partition): offset for partition, offset in given.items()}

    @property
    def rows_directory(self) -> Path:
        return self.directory / ROWS_FOLDER

    @property
    def tower_path(self) -> Path:
        return self.directory / TOWER_FILE

    def examples(self) -> dict[str, Any]:
        """examples.json. Raises BundleError."""
        path = self.directory / EXAMPLES_FILE
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read: {error}; export again") from error
        if not isinstance(found, dict):
            raise BundleError(f"{path} holds no examples; export again")
        return found

    def verify(self) -> None:
        """Read every file and compare its checksum. Raises BundleError naming the first that differs."""
        _check_files(self.directory, self.manifest.files, reads_rows=True)


def read_bundle(directory: str | Path) -> Bundle:
    """The bundle in a folder, checked. Raises BundleError naming the file and what to do."""
    folder = Path(directory)
    path = folder / MANIFEST_FILE
    manifest = _parsed(path, _read(path))
    missing = [name for name in _NEEDED if name not in manifest.files]
    if missing:
        raise BundleError(f"{path}: files lacks {missing[0]}; export again")
    _check_files(folder, manifest.files, reads_rows=False)
    return Bundle(folder, manifest)


def is_bundle(directory: str | Path) -> bool:
    """Whether a folder claims to be one."""
    return (Path(directory) / MANIFEST_FILE).is_file()


def write_manifest(directory: str | Path, manifest: Manifest) -> Bundle:
    """Complete a bundle whose other files are written and named in manifest.files. Raises BundleError."""
    body = manifest.model_dump(mode="json")
    text = json.dumps({**body, "crc32": _json_crc(body)}, indent=1)
    try:
        LocalPlace(Path(directory)).replace(MANIFEST_FILE, text.encode())
    except OSError as error:
        raise BundleError(f"cannot write {directory}/{MANIFEST_FILE}: {reason(error)}") from error
    return Bundle(Path(directory), manifest)


def described_files(directory: str | Path) -> dict[str, FileEntry]:
    """Sizes and checksums of all files of a folder, as a manifest has them."""
    folder = Path(directory)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): _described(path) for path in paths}


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist: {path.parent} is no bundle; `weir export` makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export again") from error
    if not isinstance(body, dict) or not isinstance(body.get("format"), int):
        raise BundleError(f"{path} is no manifest of a bundle")
    if body["format"] > FORMAT:
        raise BundleError(f"{path}: format {body['format']} is newer than {FORMAT}; use a newer weir-ps")
    if body.pop("crc32", None) != _json_crc(body):
        raise BundleError(f"{path} was changed after it was written: its checksum differs; export again")
    return body


def _parsed(path: Path, body: dict[str, Any]) -> Manifest:
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}; export again") from error


def _check_files(folder: Path, files: Mapping[str, FileEntry], *, reads_rows: bool) -> None:
    for name, said in files.items():
        path = folder / name
        try:
            found = path.stat().st_size if path.is_file() else None
            if found != said.bytes:
                state = "is missing" if found is None else f"has {found} bytes"
                raise BundleError(f"{path} {state}, the manifest says {said.bytes} bytes; export again")
            is_rows = name.startswith(f"{ROWS_FOLDER}/") and not name.endswith(ROWS_MANIFEST)
            if (reads_rows or not is_rows) and _described(path).crc32 != said.crc32:
                raise BundleError(f"{path} was changed after it was written: its checksum differs; export again")
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {reason(error)}; export again") from error


def _described(path: Path) -> FileEntry:
    num_bytes = crc = 0
    with path.open("rb") as file:
        for piece in _pieces(file):
            num_bytes, crc = num_bytes + len(piece), crc32(piece, crc)
    return FileEntry(bytes=num_bytes, crc32=crc)


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_READ_BYTES):
        yield piece


def _json_crc(body: Mapping[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
