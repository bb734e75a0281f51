"""The versions of one model in a directory of this machine, and the pointer to the one that serves.

    MODELS/CURRENT.json         the pointer: {format, version, pinned, serial, changed, history, crc32}
    MODELS/LOCK                 held by flock while names below change
    MODELS/versions/NAME/       a version, whole or not there: it comes by rename
        version.json            {format, name, number, bundle, markers, step, data_time, created, files, crc32}
        ...                     a bundle (workers/serving/bundle.py), or the tower that goes with the rows of one
    MODELS/versions/.new-*/     being written, held by flock by who writes it

A version whose `bundle` is its own name is a bundle: rows and tower. Any other is dense: a tower, and markers, the
offsets in the stream of changes up to which the rows of that bundle belong to it.

The pointer is replaced last, by rename after fsync, so who reads it at any instant finds a whole one, and it names a
whole version. Reading takes no lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError
from zlib_ng.zlib_ng import crc32

from ps.errors import RequestError
from ps.places import LocalPlace, reason, sync_folder
from ps.strict import Spec

FORMAT = 1
POINTER = "CURRENT.json"
VERSION_FILE = "version.json"
MAX_HISTORY = 64
LOCK_SECONDS = 30.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_NEW = ".new-"
_GONE = ".gone-"

Offsets = dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]  # by partition


class VersionError(RequestError):
    """A model directory, a version or a pointer that is not there, or damaged; or a version that does not fit."""


@dataclass(frozen=True)
class Version:
    """number: grows with every version that comes. bundle: the version that has the rows. markers: by partition, the
    offset of the last batch that belongs to it; None for a bundle, whose rows are its own. created: Unix seconds.
    files: crc32 by path, of those that are not a bundle's.
    """

    name: str
    number: int
    bundle: str
    markers: dict[int, int] | None
    step: int
    data_time: float
    created: float
    files: dict[str, int]

    @property
    def is_dense(self) -> bool:
        return self.bundle != self.name


@dataclass(frozen=True)
class Pointer:
    """Which version serves. pinned: since a rollback; rows stay as they were at that version, and what a trainer
    publishes waits, until somebody publishes by hand. serial: grows with every change. history: the versions before it,
    the newest last.
    """

    version: str
    pinned: bool = False
    serial: int = 1
    changed: float = 0.0
    history: tuple[str, ...] = ()


class _VersionFile(Spec):
    format: int
    name: str
    number: int = Field(ge=1, strict=True)
    bundle: str
    markers: Offsets | None
    step: int = Field(ge=0, strict=True)
    data_time: float
    created: float
    files: dict[str, Annotated[int, Field(ge=0, lt=1 << 32)]]


class _PointerFile(Spec):
    format: int
    version: str
    pinned: bool
    serial: int = Field(ge=1, strict=True)
    changed: float
    history: tuple[str, ...]


def check_name(name: str) -> str:
    """The name of a version. Raises VersionError for one that is none: it could lead to another folder."""
    if not _NAME.fullmatch(name):
        raise VersionError(
            f"{name[:120]!r} is no name of a version: letters, digits and _ . + - only, 128 at most, the"
            " first none of . + -"
        )
    return name


class Models:
    """One model directory. Any number of processes may use it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(os.path.abspath(directory))
        self._versions = self.directory / "versions"

    def current(self) -> Pointer | None:
        """None where nothing was published yet. Raises VersionError for a pointer that cannot be read."""
        path = self.directory / POINTER
        if not path.exists():
            return None
        found = _read(path, _PointerFile, "publish a version again")
        return Pointer(check_name(found.version), found.pinned, found.serial, found.changed, found.history)

    def version(self, name: str) -> Version:
        """Raises VersionError where there is none of that name, or it is damaged."""
        path = self.path(name) / VERSION_FILE
        if not path.is_file():
            known = ", ".join(version.name for version in self.versions()[-5:])
            raise VersionError(f"{self.directory} has no version {name!r}; it has {known or 'none'}")
        found = _read(path, _VersionFile, "remove its folder, or publish it again under another name")
        if found.name != name:
            raise VersionError(
                f"{path} is of version {found.name[:120]!r}; somebody renamed its folder: rename it back"
            )
        check_name(found.bundle)
        if (found.markers is None) != (found.bundle == name):
            raise VersionError(f"{path}: markers and a bundle of another name go together; publish it again")
        return Version(**{each: getattr(found, each) for each in Version.__dataclass_fields__})

    def versions(self) -> list[Version]:
        """All that are whole, the oldest first. A damaged one is left out: `version` says what is wrong with it."""
        found = []
        for name in self._names():
            with suppress(VersionError):
                found.append(self.version(name))
        return sorted(found, key=lambda version: version.number)

    def path(self, name: str) -> Path:
        """The folder of a version."""
        return self._versions / check_name(name)

    def bundle_path(self, version: Version) -> Path:
        """The folder of the bundle whose rows a version has."""
        return self.path(version.bundle)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to write a version in, which `add` takes; removed at the end if it is still there."""
        folder = self._versions / f"{_NEW}{os.getpid()}-{os.urandom(4).hex()}"
        with self.locked():  # else `sweep` could find it before it is held
            folder.mkdir()
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def add(
        self,
        staged: Path,
        name: str,
        *,
        step: int,
        data_time: float,
        bundle: str = "",
        markers: Mapping[int, int] | None,
    ) -> Version:
        """Make a version of a folder of `staging` whose files are complete. bundle: the version with its rows; default:
        itself. The pointer stays. Raises VersionError for a name that is taken.
        """
        check_name(name)
        bundle = check_name(bundle or name)
        files = {} if bundle == name else _sums_of(staged)
        _sync_tree(staged)
        with self.locked():
            if bundle != name and self.version(bundle).is_dense:
                raise VersionError(f"version {bundle!r} is no bundle; name the bundle that it stands on")
            if self.path(name).exists():
                raise VersionError(f"{self.directory} has a version {name!r} already; choose another name")
            number = 1 + max((version.number for version in self.versions()), default=0)
            offsets = None if markers is None else dict(markers)
            version = Version(name, number, bundle, offsets, step, data_time, time.time(), files)
            _write(staged, VERSION_FILE, asdict(version))
            staged.rename(self.path(name))
            sync_folder(self._versions)
        return version

    def publish(self, name: str, *, by_trainer: bool = False) -> Pointer:
        """Have a version serve. by_trainer: leaves a pinned pointer alone, for somebody rolled back on purpose."""
        with self.locked():
            self.version(name)
            before = self.current()
            if before is not None and (by_trainer if before.pinned else before.version == name):
                return before
            history = () if before is None else (*(each for each in before.history if each != name), before.version)
            return self._point(before, Pointer(name, history=tuple(each for each in history if each != name)))

    def rollback(self, name: str | None = None) -> Pointer:
        """Have an earlier version serve, its rows as they were then. name: default is the one that served before.

        Raises VersionError where there is none.
        """
        with self.locked():
            before = self.current()
            if before is None:
                raise VersionError(f"{self.directory} has no version that serves; publish one first")
            kept = {version.name for version in self.versions()}
            history = [each for each in before.history if each in kept and each != before.version]
            if name is None and not history:
                raise VersionError(
                    f"{self.directory}: no version served before {before.version!r}; name one: weir model list"
                )
            target = name or history[-1]
            self.version(target)
            older = tuple(history[: history.index(target)] if target in history else history)
            return self._point(before, Pointer(target, pinned=True, history=older))

    def _point(self, before: Pointer | None, after: Pointer) -> Pointer:
        serial = 1 if before is None else before.serial + 1
        after = replace(after, serial=serial, changed=time.time(), history=after.history[-MAX_HISTORY:])
        _write(self.directory, POINTER, asdict(after))
        return after

    def remove(self, name: str) -> None:
        """Within `locked`. Its name goes first, so that a half-removed version is never taken for a whole one."""
        gone = self._versions / f"{_GONE}{os.urandom(4).hex()}"
        self.path(name).rename(gone)
        sync_folder(self._versions)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Within `locked`: remove what writers left that died."""
        for path in self._versions.glob(".*"):
            if path.name.startswith(_GONE) or (path.name.startswith(_NEW) and not _is_held(path)):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that change the directory. Raises VersionError after LOCK_SECONDS."""
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VersionError(
                f"{self.directory} cannot be used as a model directory: {reason(error)}; choose another"
            ) from error
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise VersionError(f"another process has held {self.directory}/LOCK for {LOCK_SECONDS:g} s; end it")
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _names(self) -> list[str]:
        try:
            return [each.name for each in os.scandir(self._versions) if _NAME.fullmatch(each.name)]
        except FileNotFoundError:
            return []


def check_files(folder: Path, version: Version) -> None:
    """Raises VersionError where a file of a dense version is missing or not as it was written."""
    for name, crc in version.files.items():
        path = folder / name
        try:
            found = crc_of(path)
        except OSError as error:
            raise VersionError(f"{path} cannot be read: {reason(error)}; publish another version") from error
        if found != crc:
            raise VersionError(
                f"{path} was changed after it was written: its checksum differs; publish another version"
            )


def crc_of(path: Path) -> int:
    """zlib's crc32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            crc = crc32(piece, crc)
    return crc


def _sums_of(folder: Path) -> dict[str, int]:
    return {path.name: crc_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _write(folder: Path, name: str, values: dict[str, Any]) -> None:
    body = json.loads(json.dumps({"format": FORMAT, **values}))
    LocalPlace(folder).replace(name, json.dumps({**body, "crc32": _json_crc(body)}, indent=1).encode())


_File = TypeVar("_File", _VersionFile, _PointerFile)


def _read(path: Path, kind: type[_File], remedy: str) -> _File:
    try:
        body = json.loads(path.read_bytes())
        if not isinstance(body, dict):
            raise ValueError("no mapping")
        crc = body.pop("crc32", None)
        if isinstance(body.get("format"), int) and body["format"] > FORMAT:
            raise VersionError(f"{path}: format {body['format']} is newer than {FORMAT}; use a newer weir-ps")
        if crc != _json_crc(body):
            raise VersionError(f"{path} was changed after it was written: its checksum differs; {remedy}")
        return kind.model_validate(body)
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, VersionError):
            raise
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise VersionError(f"{path} cannot be read: {said[:200]}; {remedy}") from error


def _json_crc(body: Any) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)
