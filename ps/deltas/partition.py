"""A shard's partition of the delta stream, open for writing: its files, one process at a time. Not thread-safe.

    LOCK                       as of a journal: who started later ends who still has it, or is refused
    ALIVE                      that the shard lives (alive.py)
    <first offset>.deltas      a segment (batches.py); complete with its start when the name appears

A process begins a segment of its own. What the process before left unfinished at the end of its last one is cut off
first, so that readers find whole batches only; damage before that end is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from ps.delta_options import DeltaOptions
from ps.deltas.alive import Beat, write_beat
from ps.deltas.batches import encode_start, has_end, open_segment
from ps.deltas.reading import find_segments, segment_path
from ps.deltas.retention import kept_from
from ps.errors import DeltaError, JournalError
from ps.journal.lock import Lock
from ps.places import sync_folder
from ps.record import Buffer

_MAX_PIECES = 512  # of one writev; the system allows 1024
_TEMPORARY = "segment.tmp"  # one name: what a crash leaves is overwritten


class Partition:
    """next_offset: of the batch that is appended next; last_offset: of the one before, 0 for none. total: records up to
    it.
    """

    def __init__(
        self,
        folder: Path,
        shard: int,
        options: DeltaOptions,
        layouts: Mapping[str, str],
        *,
        first: int = 1,
        takes_over: bool = False,
    ) -> None:
        """layouts: of the serving rows, by table. first: the least offset that it goes on with. takes_over: end a
        process that still has the folder. Raises DeltaError for a folder that another process has, for one that cannot
        be written, and with file and byte for damage.
        """
        self.options = options
        self._folder, self._shard, self._layouts = folder, shard, dict(layouts)
        self._file, self._size = -1, 0
        try:
            self._lock = Lock(folder, takes_over=takes_over, what="delta stream", option="deltas.directory")
        except JournalError as error:
            raise DeltaError(str(error)) from error
        try:
            self.last_offset, self.total = self._cut()
            self.next_offset = max(first, self.last_offset + 1)
            self._begin(self.last_offset)
        except OSError as error:
            self._lock.close()
            raise DeltaError(f"{folder} cannot be written: {error.strerror}; free space there") from error
        except BaseException:
            self._lock.close()
            raise

    def append(self, pieces: Sequence[Buffer], *, records: int) -> None:
        """Write a batch of offset `next_offset`, whole or not at all. records: rows and keys in it. Raises OSError."""
        start = self._size
        try:
            for at in range(0, len(pieces), _MAX_PIECES):
                self._write([memoryview(piece) for piece in pieces[at : at + _MAX_PIECES] if len(piece)])
        except OSError:
            self._size = start
            with suppress(OSError):
                os.ftruncate(self._file, start)
                os.lseek(self._file, start, os.SEEK_SET)
            raise
        self.last_offset = self.next_offset
        self.next_offset += 1
        self.total += records

    def beat(self, now: float, *, epoch: int, shards: int) -> None:
        """Say that the shard lives and all that it published is written. now: unix seconds; epoch, shards: of its
        routing. Raises OSError.
        """
        write_beat(self._folder, Beat(now, epoch, shards, self.last_offset, self.total))

    def sync(self) -> None:
        """Have the disk keep what was appended. Raises OSError."""
        os.fdatasync(self._file)

    def roll(self, now: float) -> None:
        """Where the segment has become long: begin the next one, and delete old ones beyond retention. now: unix
        seconds. Raises OSError.
        """
        if self._size < self.options.segment_bytes:
            return
        if self.options.fsync != "never":
            self.sync()
        old = self._file
        self._begin(self.next_offset - 1)
        os.close(old)
        self.trim(now)

    def trim(self, now: float, *, kept: int | None = None) -> None:
        """Delete what retention does not want. kept: an offset from which on all stays, beside those that
        retention.keep names.
        """
        floors = [floor for floor in (kept, kept_from(self._folder.parent, self._shard)) if floor is not None]
        firsts, options = find_segments(self._folder), self.options
        found = {first: segment_path(self._folder, first).stat() for first in firsts}
        total = sum(each.st_size for each in found.values())
        for first, after in pairwise(firsts):
            is_old = options.retention_seconds is not None and found[first].st_mtime < now - options.retention_seconds
            is_much = options.retention_bytes is not None and total > options.retention_bytes
            if not (is_old or is_much) or (floors and after > min(floors)):
                return
            segment_path(self._folder, first).unlink()
            total -= found[first].st_size

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._file)
        self._lock.close()

    def _cut(self) -> tuple[int, int]:
        """The last offset and the records up to it. Behind its batch nothing is left."""
        firsts = find_segments(self._folder)
        if not firsts:
            return 0, 0
        path = segment_path(self._folder, firsts[-1])
        with path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            reader, start = open_segment(file, str(path), size)
            last, total, end = start["after"], start["total"], file.tell()
            while end < size:
                try:
                    batch = reader.read_batch()
                except DeltaError:
                    file.seek(end)
                    if has_end(file.read()):  # then it is not what a process left unfinished
                        raise
                    file.truncate(end)
                    break
                last, total, end = batch.offset, batch.total + batch.records, file.tell()
        return last, total

    def _begin(self, after: int) -> None:
        """after: the offset before."""
        path, temporary = segment_path(self._folder, self.next_offset), self._folder / _TEMPORARY
        start = encode_start(self._shard, self.next_offset, after, self.total, self._layouts)
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, start) != len(start):
                raise OSError(28, "No space left on device")
            if self.options.fsync != "never":
                os.fsync(file)
            os.rename(temporary, path)
            if self.options.fsync != "never":
                sync_folder(self._folder)
        except OSError:
            os.close(file)
            raise
        self._file, self._size = file, len(start)

    def _write(self, rest: list[memoryview]) -> None:
        while rest:
            done = os.writev(self._file, rest)
            self._size += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if rest and done:
                rest[0] = rest[0][done:]
