"""Partitions as files of a directory: a source for ps/following.py where replicas and shards share a disk.

Rows are complete as of when their shard was last seen to live (ps/deltas/alive.py): at the moment of a look, where a
later look finds another sign, and all batches before it have been read. No clocks are compared. A partition beyond
those that the newest routing has is of a shard that is gone; it is read all the same, and takes no sign.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from ps.deltas.alive import Beat, read_beat
from ps.deltas.batches import open_segment
from ps.deltas.reading import PartitionReader, find_partitions, find_segments, partition_folder, segment_path
from ps.errors import DeltaError, UnavailableError
from ps.following import Delivery

_POLL_SECONDS = 0.01
_LOOK_SECONDS = 0.1  # for signs of life
_PIECE_BYTES = 4 << 20


class DeltaFolder:
    """`directory`: cluster.deltas.directory."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._num_shards: int | None = None  # of the newest routing

    def partitions(self, wanted: Collection[int] = ()) -> Collection[int]:
        """Those that there are; unless only some are wanted, those too that the newest routing says there should be."""
        try:
            found = find_partitions(self._directory)
        except OSError as error:
            raise UnavailableError(f"{self._directory} cannot be read: {error.strerror}") from error
        if not found:
            raise UnavailableError(f"{self._directory} has no partitions; it should be cluster.deltas.directory")
        beats = [beat for folder in found.values() if (beat := read_beat(folder)) is not None]
        newest = max(beats, key=lambda beat: beat.epoch, default=None)
        self._num_shards = None if newest is None else newest.shards
        return found.keys() if wanted else found.keys() | range(self._num_shards or 0)

    def open(self, partition: int, next_offset: int) -> FolderLine:
        return FolderLine(
            partition_folder(self._directory, partition), next_offset, lambda: self._is_of_the_past(partition)
        )

    def close(self) -> None:
        """Nothing is held."""

    def _is_of_the_past(self, partition: int) -> bool:
        return self._num_shards is not None and partition >= self._num_shards


class FolderLine:
    """One partition's files. `read` by one thread, `close` by any."""

    def __init__(self, folder: Path, next_offset: int, is_of_the_past: Callable[[], bool]) -> None:
        """is_of_the_past: whether its shard is gone, and others have its buckets."""
        self._folder, self._reader = folder, PartitionReader(folder, next_offset)
        self._is_of_the_past = is_of_the_past
        self._closed, self._reading, self._was_at_end = threading.Event(), threading.Lock(), False
        self._beat: Beat | None = None  # the newest one
        self._looked_at = 0.0  # for a beat, unix seconds
        self._look_due = 0.0  # monotonic
        self._complete: tuple[float, int] | None = None  # as of when, where the batch of this offset is read

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
        self._look_for_life()
        at, batches = time.time(), self._reader.read(_PIECE_BYTES)
        self._was_at_end = not batches
        # Of what is ahead, as much as the newest segment's start tells without reading on.
        total = max(self._reader.total, self._begun_at()) if batches else self._reader.total
        if not batches and self._is_of_the_past():
            return Delivery(batches, at, True, total or None)
        if self._complete is not None and max(1, self._reader.next_offset) > self._complete[1]:
            as_of, self._complete = self._complete[0], None
            return Delivery(batches, as_of, True, total or None)
        return Delivery(batches, at, False, total or None)

    def _look_for_life(self) -> None:
        """Before the batches are read: what is written before a sign is there then."""
        if time.monotonic() < self._look_due:
            return
        before, looked_at = self._beat, self._looked_at
        self._looked_at, self._beat = time.time(), read_beat(self._folder) or before
        self._look_due = time.monotonic() + _LOOK_SECONDS
        if self._beat is not None and before is not None and self._beat != before:
            self._complete = (looked_at, self._beat.last)

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
