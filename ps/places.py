"""Where a checkpoint lies: a folder of this machine, or one of any filesystem that pyarrow knows (s3://, gs://, hdfs://,
fsspec+...). A place is flat: names of files, no folders inside.

A file that is being written is complete when nothing was raised. `replace` is all or nothing: a rename after fsync on
local disks, pyarrow's move elsewhere, which object stores do as a copy of a whole object.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from ps.errors import CheckpointError

_BUFFER_BYTES = 1 << 20  # of reads, which may be requests over a network
_BEGIN_BYTES = 8 << 20  # written: the disk begins with them
_AHEAD_BYTES = 4 << 20  # that the disk is asked for before they are read,
_BODY_BYTES = 64 << 10  # once so many are read at once: who reads headers only, passes over the rest
_SUFFIX = ".tmp"


class Place(Protocol):
    """What a checkpoint needs of one. All raise OSError."""

    def create(self, name: str) -> Any:
        """A context manager of a binary file to write; it must not exist. An error inside removes it again."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file, in place of one of that name if there is one, after all that was created before."""
        ...

    def open(self, name: str) -> BinaryIO:
        """For reading, with `seek`."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        ...

    def names(self) -> list[str]: ...

    def remove(self, name: str) -> None: ...

    def folders(self) -> list[str]:
        """Names of the places inside this one; none where it is not there."""
        ...

    def remove_all(self) -> None:
        """This place, its files and the places inside; no matter whether it is there."""
        ...


def _advise(descriptor: int, start: int, length: int, advice: str) -> None:
    """What is only faster where the system has it (macOS has not), and no matter where it fails."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, length, getattr(os, advice))


class _Writing(io.BufferedWriter):
    """A new file. The disk begins with what was written while more is made, so that fsync finds little left."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self._written = self._begun = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._written += count
        if self._written - self._begun >= _BEGIN_BYTES:
            # Linux begins to write a range that is not needed, and keeps it until it is written.
            _advise(self.fileno(), self._begun, self._written - self._begun, "POSIX_FADV_DONTNEED")
            self._begun = self._written
        return count


class _Reading(io.BufferedReader):
    """A file. The disk reads ahead of whoever reads it at length."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self._asked = 0  # up to where

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= _BODY_BYTES:
            end = self.tell() + size
            if self._asked < end + _AHEAD_BYTES // 2:
                start, self._asked = max(end, self._asked), end + _AHEAD_BYTES
                _advise(self.fileno(), start, self._asked - start, "POSIX_FADV_WILLNEED")
        return super().read(size)


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / name
        try:
            with _Writing(path) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._folder)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise

    def replace(self, name: str, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / (name + _SUFFIX)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._folder)  # files of others in it, too
        temporary.rename(self._folder / name)
        sync_folder(self._folder)
        sync_folder(self._folder.parent)

    def open(self, name: str) -> BinaryIO:
        return _Reading(self._folder / name)

    def size(self, name: str) -> int | None:
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def folders(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    def remove_all(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)


class ArrowPlace:
    """A folder of a pyarrow.fs.FileSystem."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._fs, self._path = filesystem, path.rstrip("/")

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        self._fs.create_dir(self._path, recursive=True)
        try:
            with self._fs.open_output_stream(self._at(name)) as file:
                yield file
        except BaseException:
            with suppress(OSError):
                self.remove(name)
            raise

    def replace(self, name: str, data: bytes) -> None:
        self._fs.create_dir(self._path, recursive=True)
        with self._fs.open_output_stream(self._at(name + _SUFFIX)) as file:
            file.write(data)
        self._fs.move(self._at(name + _SUFFIX), self._at(name))

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(self._fs.open_input_file(self._at(name)), _BUFFER_BYTES))

    def size(self, name: str) -> int | None:
        found = self._fs.get_file_info(self._at(name))
        return int(found.size) if found.is_file else None

    def names(self) -> list[str]:
        return [each.base_name for each in self._listed() if each.is_file]

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            self._fs.delete_file(self._at(name))

    def folders(self) -> list[str]:
        return [each.base_name for each in self._listed() if not each.is_file]

    def remove_all(self) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_dir(self._path)

    def _listed(self) -> Any:
        from pyarrow.fs import FileSelector

        return self._fs.get_file_info(FileSelector(self._path, allow_not_found=True))

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


def absolute(directory: str | os.PathLike[str]) -> str:
    """A path of this machine from the root, or the URI that was given: other processes have working folders of their
    own.
    """
    text = os.fspath(directory)
    return text if is_uri(text) else os.path.abspath(text)


def inside(directory: str | os.PathLike[str], name: str) -> str:
    """A folder or a file of a folder; in a URI before its query."""
    text = os.fspath(directory)
    path, mark, query = text.partition("?") if is_uri(text) else (text, "", "")
    return f"{path}{'' if path.endswith('/') else '/'}{name}{mark}{query}"


def relative(directory: str, start: str) -> str:
    """The way from the folder `start` to `directory`, both as `absolute` has them, from "." or ".." on. Raises
    CheckpointError where there is none.
    """
    (root, path, query), (root_of_start, path_of_start, query_of_start) = _split(directory), _split(start)
    if (root, query) != (root_of_start, query_of_start):
        raise CheckpointError(f"{directory} and {start} lie in different filesystems; save both in one")
    way = posixpath.relpath(path, path_of_start)
    return way if way.startswith("..") else f"./{way}"


def joined(start: str, way: str) -> str:
    """The folder that `relative` says the way to."""
    root, path, query = _split(start)
    return root + posixpath.normpath(posixpath.join(path, way)) + query


def _split(text: str) -> tuple[str, str, str]:
    """Filesystem, path and query; only a path for a folder of this machine."""
    if not is_uri(text):
        return "", os.path.abspath(text), ""
    parts = urlsplit(text)
    if parts.scheme == "file":
        return "", unquote(parts.path), ""
    return f"{parts.scheme}://{parts.netloc}", parts.path or "/", f"?{parts.query}" if parts.query else ""


def is_uri(text: str) -> bool:
    return "://" in text


def open_place(directory: str | os.PathLike[str]) -> Place:
    """The place of a path, or of a URI. Raises CheckpointError for one that pyarrow does not know, or without it."""
    text = os.fspath(directory)
    if not is_uri(text):
        return LocalPlace(Path(text))
    if text.startswith("file://"):
        return LocalPlace(Path(unquote(urlsplit(text).path)))
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise CheckpointError(f"{text}: needs pyarrow; pip install 'weir-ps[train]'") from error
    try:
        filesystem, path = FileSystem.from_uri(text)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{text} cannot be opened: {error}; give a path or a URI that pyarrow reads") from error
    return ArrowPlace(filesystem, path)


def reason(error: OSError) -> str:
    """What it says, as a part of one line."""
    return " ".join((error.strerror or str(error)).split()).rstrip(" .:")


def sync_folder(folder: Path) -> None:
    """Make new names in the folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
