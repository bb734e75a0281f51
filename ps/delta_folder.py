"""Partitions as files of a directory: a source for ps/following.py where replicas and shards share a disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from pathlib import Path

from ps.deltas.batches import open_segment
from ps.deltas.reading import PartitionReader, find_partitions, find_segments, partition_folder, segment_path
from ps.errors import DeltaError, UnavailableError
from ps.following import Delivery

_POLL_SECONDS = 0.01
_PIECE_BYTES = 4 << 20


class DeltaFolder:
    """`directory`: cluster.deltas.directory."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def partitions(self) -> Collection[int]:
        try:
            found = find_partitions(self._directory)
        except OSError as error:
            raise UnavailableError(f"{self._directory} cannot be read: {error.strerror}") from error
        if not found:
            raise UnavailableError(f"{self._directory} has no partitions; it should be cluster.deltas.directory")
        return found.keys()

    def open(self, partition: int, next_offset: int) -> FolderLine:
        return FolderLine(partition_folder(self._directory, partition), next_offset)

    def close(self) -> None:
        """Nothing is held."""


class FolderLine:
    """One partition's files. `read` by one thread, `close` by any."""

    def __init__(self, folder: Path, next_offset: int) -> None:
        self._folder, self._reader = folder, PartitionReader(folder, next_offset)
        self._closed, self._reading, self._was_at_end = threading.Event(), threading.Lock(), False

    def read(self) -> Delivery:
        if self._was_at_end:
            self._closed.wait(_POLL_SECONDS)
        with self._reading:
            if self._closed.is_set():
                raise UnavailableError("it was closed")
            try:
                return self._look()
            except OSError as error:
                raise UnavailableError(f"{self._folder} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        self._closed.set()
        with self._reading:
            self._reader.close()

    def _look(self) -> Delivery:
        at, batches = time.time(), self._reader.read(_PIECE_BYTES)
        self._was_at_end = not batches
        # Of what is ahead, as much as the newest segment's start tells without reading on.
        total = max(self._reader.total, self._begun_at()) if batches else self._reader.total
        return Delivery(batches, at, not batches, total or None)

    def _begun_at(self) -> int:
        """Records before the newest segment."""
        firsts = find_segments(self._folder)
        if not firsts:
            return 0
        path = segment_path(self._folder, firsts[-1])
        try:
            with path.open("rb") as file:
                start = open_segment(file, str(path), os.fstat(file.fileno()).st_size)[1]
        except (OSError, DeltaError):  # it goes at this moment, or is not all there: whoever reads on will say
            return 0
        return int(start["total"])
