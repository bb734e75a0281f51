"""A partition's files read from an offset on, while its shard writes them. Thread-unsafe; any number of readers.

    <directory>/partition-<shard>/<first offset in 20 digits>.deltas

What stands unfinished at the end of the last segment is waited for; in any other one it is damage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ps.deltas.batches import Batch, BatchReader, IncompleteError, open_segment
from ps.errors import TrimmedError

_NAME = re.compile(r"(\d{20})\.deltas")
_FOLDER = re.compile(r"partition-(\d+)")


def partition_folder(directory: str | Path, shard: int) -> Path:
    """Where a shard's partition lies."""
    return Path(directory) / f"partition-{shard}"


def find_partitions(directory: str | Path) -> dict[int, Path]:
    """The partitions below a directory, by shard."""
    found = ((_FOLDER.fullmatch(path.name), path) for path in Path(directory).glob("partition-*") if path.is_dir())
    return {int(match[1]): path for match, path in sorted(found, key=lambda pair: pair[1].name) if match}


def segment_path(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.deltas"


def find_segments(folder: Path) -> list[int]:
    """The first offsets of a partition's segments, ascending; none where the folder is missing."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


class PartitionReader:
    """Tails one partition. next_offset: of the first batch that `read` gives next, or of one behind it; 0: all from the
    partition's beginning on. total: records before it, as far as known.
    """

    def __init__(self, folder: str | Path, next_offset: int = 0) -> None:
        self.next_offset, self.total = next_offset, 0
        self._folder = Path(folder)
        self._first: int | None = None  # of the open segment
        self._file: BinaryIO | None = None
        self._path = Path()

    def read(self, max_bytes: int = 16 << 20) -> list[Batch]:
        """The next batches, about so many bytes of them and at least one; none where there is none yet.

        Raises TrimmedError where batches between are gone, DeltaError with file and byte for damage.
        """
        batches, size = [], 0
        for batch, start, end in self._batches():
            batches.append(batch)
            size += end - start
            if size >= max_bytes:
                break
        return batches

    def read_bytes(self, max_bytes: int = 16 << 20) -> bytes:
        """As `read`, as they stand in the files, which is as ps.deltas.batches.read_batches takes them."""
        pieces, size = [], 0
        for _, start, end in self._batches():
            assert self._file is not None
            pieces.append(os.pread(self._file.fileno(), end - start, start))
            size += end - start
            if size >= max_bytes:
                break
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._first = None

    def _batches(self) -> Iterator[tuple[Batch, int, int]]:
        """Each with the bytes of the open file that it takes."""
        while self._file is not None or self._open_first():
            assert self._file is not None
            is_last = not self._later()  # looked at first: what is then not there will not come
            while (found := self._next(is_last)) is not None:
                batch, start = found
                self.total = batch.total + batch.records
                if batch.offset >= self.next_offset:
                    self.next_offset = batch.offset + 1
                    yield batch, start, self._file.tell()
            if is_last:
                return
            self._open(self._later()[0])

    def _next(self, is_last: bool) -> tuple[Batch, int] | None:
        """The next batch of the open segment and where it begins; None at the end."""
        file = self._file
        assert file is not None
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if start >= size:
            return None
        try:
            return BatchReader(file, str(self._path), num_bytes=size).read_batch(), start
        except IncompleteError:
            file.seek(start)
            if is_last:
                return None
            raise

    def _later(self) -> list[int]:
        return [first for first in find_segments(self._folder) if self._first is None or first > self._first]

    def _open_first(self) -> bool:
        """Open the segment that has the next offset, or the first one behind it. False where there is none yet."""
        firsts = find_segments(self._folder)
        if not firsts:
            return False
        before = [first for first in firsts if first <= max(1, self.next_offset)]
        self._open(before[-1] if before else firsts[0])
        return True

    def _open(self, first: int) -> None:
        """Raises TrimmedError where batches are missing before the segment."""
        path = segment_path(self._folder, first)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise self._trimmed() from None
        try:
            _, start = open_segment(file, str(path), os.fstat(file.fileno()).st_size)
            if start["after"] >= max(1, self.next_offset):
                raise self._trimmed()
        except BaseException:
            file.close()
            raise
        self.close()
        self._file, self._first, self._path = file, first, path

    def _trimmed(self) -> TrimmedError:
        oldest = (find_segments(self._folder) or [0])[0]
        return TrimmedError(
            f"{self._folder}: batches from offset {self.next_offset} on were removed, the oldest there is {oldest}; "
            "take a newer bundle"
        )
