"""All rows of a shard, written bucket by bucket while training goes on; older journal is then not needed.

    snapshot-EEEEEEEE-NNNNNNNNNNNN.weir   as a shard's file of a checkpoint (ps/checkpoint.py)
    SNAPSHOT.json                         {version, file, bytes, segment, positions, crc32}; written last, by rename

A bucket is written in one piece of work between two updates. positions[bucket] is the number of the next update at that
time: what the journal has of lower numbers is in the snapshot already. segment: the oldest one that is needed.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from ps import checkpoint
from ps.errors import JournalError
from ps.holding import Holding
from ps.journal.segments import SegmentName, remove_before
from ps.places import sync_folder
from ps.record import VERSION, encode_record

POINTER = "SNAPSHOT.json"
_NAME = re.compile(r"snapshot-\d{8}-\d{12}\.weir")
_MAX_PIECES = 16  # that wait for the disk; each is at most 4096 rows
_PAUSE_SECONDS = 0.001
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Pointer:
    """What SNAPSHOT.json says. positions: [num_buckets]."""

    file: str
    num_bytes: int
    segment: SegmentName
    positions: list[int]


class SnapshotWriter:
    """A snapshot that is being made: `write_bucket` for each owned bucket on the shard's thread, then `finish`.

    A thread of its own writes. Where the disk fails the snapshot is given up; the journal then simply stays longer.
    """

    def __init__(
        self,
        folder: Path,
        holding: Holding,
        segment: SegmentName,
        has_begun: threading.Event,
        *,
        done: Callable[[int], None],
    ) -> None:
        """has_begun: set once the segment is there; the snapshot does not count before. done: told of the snapshot's
        bytes once it counts, 0 where it was given up; on the thread that writes.
        """
        self.failed = ""
        self._folder, self._holding, self._segment, self._told = folder, holding, segment, done
        self._has_begun = has_begun
        self._positions = [0] * holding.spec.num_buckets
        self._num_records, self._rows = 0, dict[str, int]()
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._given_up = False
        self._pieces.put(
            checkpoint.start_frame(
                shard=holding.shard, spec=holding.spec, layouts=holding.layouts(), expired=holding.expired_ids()
            )
        )
        self._thread = threading.Thread(target=self._run, name="weir-snapshot", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether the disk is behind; waits a moment if so."""
        if self._pieces.qsize() < _MAX_PIECES:
            return False
        time.sleep(_PAUSE_SECONDS)
        return True

    def write_bucket(self, bucket: int, position: int) -> Any:
        """A generator that writes a bucket's rows; no update may run before its end. position: number of the next
        update.
        """
        self._positions[bucket] = position
        for record in self._holding.records_of(bucket):
            while self.is_full and not self.failed:
                yield
            self._pieces.put(encode_record(record))
            self._num_records += 1
            self._rows[record.table] = self._rows.get(record.table, 0) + len(record.keys)
            yield

    def finish(self) -> None:
        """All buckets are there."""
        self._pieces.put(checkpoint.end_frame(num_records=self._num_records, rows=self._rows))
        self._pieces.put(None)

    def give_up(self) -> None:
        """No snapshot. Waits for the thread."""
        self._given_up = True
        self._pieces.put(None)
        self._thread.join()

    def _run(self) -> None:
        name = f"snapshot-{self._segment.epoch:08d}-{self._segment.first:012d}.weir"
        temporary, num_bytes = self._folder / (name + ".tmp"), 0
        try:
            with temporary.open("wb") as file:
                while (piece := self._pieces.get()) is not None:
                    file.write(piece)
                    num_bytes += len(piece)
                file.flush()
                os.fsync(file.fileno())
            while not self._given_up and not self._has_begun.wait(_LOOK_SECONDS):
                pass
            if self._given_up:
                temporary.unlink()
                num_bytes = 0
            else:
                temporary.rename(self._folder / name)
                write_pointer(self._folder, Pointer(name, num_bytes, self._segment, self._positions))
                remove_before(self._folder, self._segment)
                remove_snapshots(self._folder, kept=name)
        except OSError as error:
            self.failed, num_bytes = f"{temporary}: {error.strerror}", 0
            with suppress(OSError):
                temporary.unlink()
        self._told(num_bytes)


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """From now on this snapshot counts."""
    segment = [pointer.segment.epoch, pointer.segment.first]
    body = {"version": VERSION, "file": pointer.file, "bytes": pointer.num_bytes, "segment": segment}
    body["positions"] = pointer.positions
    temporary = folder / (POINTER + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps({**body, "crc32": _crc(body)}))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / POINTER)
    sync_folder(folder)


def read_pointer(folder: Path) -> Pointer | None:
    """None where there was no snapshot yet. Raises JournalError."""
    path = folder / POINTER
    try:
        body = json.loads(path.read_text())
        crc = body.pop("crc32")
        if crc != _crc(body):
            raise ValueError("its checksum differs")
        if body["version"] > VERSION:
            raise ValueError(f"version {body['version']} is newer than {VERSION}; use a newer weir-ps")
        if not _NAME.fullmatch(body["file"]):
            raise ValueError(f"{body['file'][:80]!r} is no name of a snapshot")
        numbers = [body["bytes"], *body["segment"], *body["positions"]]
        if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers):
            raise ValueError("a number is none, or out of range")
        epoch, first = body["segment"]
        return Pointer(body["file"], body["bytes"], SegmentName(epoch, first), list(body["positions"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JournalError(f"{path} cannot be read: {error}; restore a checkpoint") from error


def remove_snapshots(folder: Path, *, kept: str) -> None:
    """Delete other snapshots, and what killed processes left of them."""
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name.removesuffix(".tmp")) and path.name != kept:
            path.unlink(missing_ok=True)


def _crc(body: dict[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
