"""The thread that writes a shard's journal: all that waits in one go, then those who waited for it are told.

When the disk is full or fails, what was begun is cut off and tried again until it succeeds: nothing is told, and
`trouble` says why. A failed fsync is not tried again, for what the disk then has is unknown: the journal is broken, and
nothing is ever told again.

With a stream (stream.py) the same bytes go to a standby too, which may have to answer before anybody is told.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ps.durability import Durability
from ps.errors import JournalError, WrongEpochError
from ps.journal.frames import encode_start, with_checksum
from ps.journal.segments import Acknowledged, SegmentName
from ps.journal.stream import Stream
from ps.places import sync_folder
from ps.record import Buffer

_RETRY_SECONDS = 0.25
_MAX_PIECES = 512  # of one writev; the system allows 1024
_MAX_GROUP_BYTES = 32 << 20
_log = logging.getLogger("weir.journal")


@dataclass(eq=False)
class _Item:
    """Pieces to write; or, without, a new segment to begin (first: number of its first update), or what else is to
    be done in turn.
    """

    pieces: list[Buffer] = field(default_factory=list)
    num_bytes: int = 0
    ends_update: bool = False
    is_checked: bool = False  # pieces with their checksum
    told: Callable[[], None] | None = None
    first: int | None = None
    start: dict[str, Any] | None = None
    in_turn: Callable[[], bool] | None = None


class Writer:
    """One journal, open for writing."""

    def __init__(
        self,
        folder: Path,
        options: Durability,
        acknowledged: Acknowledged,
        *,
        name: SegmentName,
        start: dict[str, Any],
        after: tuple[str, int] | None,
    ) -> None:
        """Begin the segment `name`, behind the file and byte `after`. start: spec, routing and shard, for its header.
        Raises JournalError.
        """
        self.backlog_bytes = 0  # that wait for the disk
        self.num_bytes = 0  # written so far
        self.stream: Stream | None = None
        self._trouble = ""
        self._folder, self._options, self._acknowledged = folder, options, acknowledged
        self._start = start
        self._file = -1
        self._offset = self._end = 0  # of the file: written, and the last end of an update
        self._synced_at, self._is_dirty = time.monotonic(), False
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._pending = 0  # items that are not done; changed under the lock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        try:
            self._begin(name, after)
        except OSError as error:
            raise JournalError(f"{folder / str(name)} cannot be written: {error.strerror}; free space there") from error
        self._thread = threading.Thread(target=self._run, name="weir-journal", daemon=True)
        self._thread.start()

    @property
    def segment(self) -> SegmentName:
        """The one that is written to."""
        return self._name

    def append(self, pieces: Sequence[Buffer], *, ends_update: bool) -> None:
        """Write a frame's pieces, in order of the calls. ends_update: it is a commit, which has no body."""
        num_bytes = sum(len(piece) for piece in pieces)
        self._put(_Item(list(pieces), num_bytes, ends_update))

    def append_checked(self, frames: Sequence[Buffer]) -> None:
        """Write whole updates as they stand in another journal."""
        num_bytes = sum(len(frame) for frame in frames)
        self._put(_Item(list(frames), num_bytes, ends_update=True, is_checked=True))

    def fill(self, start: bytes, stream: Stream) -> None:
        """Begin to fill a standby, and send it what is written from then on."""

        def begin() -> bool:
            self.stream = stream
            if self._stopping.is_set():
                stream.close()
            return stream.restart(start) or stream.is_over

        self._put(_Item(in_turn=begin))

    def fill_with(self, pieces: list[Buffer], *, is_last: bool = False) -> None:
        """A piece of the filling that was begun last, as Stream.fill has it."""

        def send() -> bool:
            if self.stream is not None:
                self.stream.fill(pieces, is_last=is_last)
            return True

        self._put(_Item(num_bytes=sum(len(piece) for piece in pieces), in_turn=send))

    def after(self, told: Callable[[], None]) -> None:
        """Call back, on any thread, once all that was appended so far is written, and synced where every update is."""
        with self._lock:
            waits = self._pending > 0
            if waits:
                self._pending += 1
                self._items.put(_Item(told=told))
        if not waits:
            told()

    def begin_segment(self, first: int, start: dict[str, Any] | None = None) -> None:
        """Go on in a new file, whose first update has this number. start: as of the constructor, from now on."""
        self._put(_Item(first=first, start=start))

    @property
    def trouble(self) -> str:
        """Why nothing is written, or acknowledged, at present."""
        return self._trouble or ("" if self.stream is None else self.stream.trouble)

    @property
    def refusal(self) -> WrongEpochError | None:
        """Where the standby has taken this shard's place: nothing is written or acknowledged any more."""
        return None if self.stream is None else self.stream.refusal

    def use(self, options: Durability) -> None:
        """Other options, from the next group on."""
        self._options = options

    def close(self) -> None:
        """Write what waits, if the disk takes it now, and end the thread."""
        self._stopping.set()
        if self.stream is not None:
            self.stream.close()
        self._items.put(None)
        self._thread.join()
        os.close(self._file)

    def _put(self, item: _Item) -> None:
        with self._lock:
            self._pending += 1
            self.backlog_bytes += item.num_bytes
            self._items.put(item)

    def _run(self) -> None:
        ending = False
        while not ending:
            group = [self._next()]
            size = 0
            while size < _MAX_GROUP_BYTES:
                with suppress(queue.Empty):
                    group.append(self._items.get_nowait())
                    size += group[-1].num_bytes if group[-1] is not None else 0
                    continue
                break
            ending = None in group
            items = [item for item in group if item is not None]
            if not self._write_all(items):
                return

    def _next(self) -> _Item | None:
        """What came next; or an empty item, when it is time to sync."""
        if not isinstance(self._options.fsync, float) or not self._is_dirty:
            return self._items.get()
        try:
            return self._items.get(timeout=max(0.0, self._synced_at + self._options.fsync - time.monotonic()))
        except queue.Empty:
            with self._lock:
                self._pending += 1
            return _Item()

    def _write_all(self, items: list[_Item]) -> bool:
        """Whether it succeeded; false when the journal is to close first, or is broken."""
        begun: list[_Item] = []
        for item in items:
            if item.first is None and item.in_turn is None:
                begun.append(item)
                continue
            if not self._write_group(begun):
                return False
            if item.first is not None and self._options.fsync != "never" and not self._sync():
                return False
            if not (item.in_turn() if item.in_turn else self._until_done(partial(self._go_on, item))):
                return False
            self._done([item])
            begun = []
        return self._write_group(begun)

    def _write_group(self, items: list[_Item]) -> bool:
        if not items or self.refusal is not None:
            self._done(items)  # refused: those who wait hear of it
            return True
        framed = [
            item.pieces if item.ends_update or item.is_checked or not item.pieces else with_checksum(item.pieces)
            for item in items
        ]
        pieces = [piece for each in framed for piece in each]
        ticket = self.stream.send(pieces) if self.stream is not None and pieces else 0
        if pieces and not self._until_done(partial(self._write, pieces)):
            return False
        if self._options.fsync == "always" and pieces and not self._sync():
            return False
        whole = next((place for place in reversed(range(len(items))) if items[place].ends_update), None)
        if whole is not None:  # a group may end inside an update
            self._end = self._offset - sum(len(piece) for each in framed[whole + 1 :] for piece in each)
            if not self._until_done(partial(self._acknowledged.write, self._name, self._end)):
                return False
        if ticket and self.stream is not None and not self.stream.wait(ticket) and self.refusal is None:
            return False
        self._done(items)
        if not self._is_dirty:
            self._synced_at = time.monotonic()  # the time begins with the first write
        self._is_dirty = self._is_dirty or bool(pieces)
        due = isinstance(self._options.fsync, float) and time.monotonic() - self._synced_at >= self._options.fsync
        if due and self._is_dirty:
            return self._sync()
        return True

    def _done(self, items: list[_Item]) -> None:
        with self._lock:
            self._pending -= len(items)
            self.backlog_bytes -= sum(item.num_bytes for item in items)
        for item in items:
            if item.told is not None:
                item.told()

    def _until_done(self, work: Callable[[], None]) -> bool:
        """Try until the disk takes it. False when the journal is to close first."""
        while True:
            try:
                work()
                self._trouble = ""
                return True
            except OSError as error:
                if not self._trouble:
                    _log.error("the journal in %s cannot be written: %s", self._folder, error.strerror)
                self._trouble = f"the journal in {self._folder} cannot be written: {error.strerror}; free space there"
            if self._stopping.wait(_RETRY_SECONDS):
                return False

    def _write(self, pieces: list[Buffer]) -> None:
        start = self._offset
        try:
            for at in range(0, len(pieces), _MAX_PIECES):
                rest = [memoryview(piece) for piece in pieces[at : at + _MAX_PIECES] if len(piece)]
                while rest:
                    done = os.writev(self._file, rest)
                    self._offset += done
                    while rest and done >= len(rest[0]):
                        done -= len(rest.pop(0))
                    if rest and done:
                        rest[0] = rest[0][done:]
        except OSError:
            self._offset = start
            with suppress(OSError):
                os.ftruncate(self._file, start)
                os.lseek(self._file, start, os.SEEK_SET)
            raise
        self.num_bytes += self._offset - start

    def _sync(self) -> bool:
        try:
            os.fdatasync(self._file)
            self._synced_at, self._is_dirty = time.monotonic(), False
            return True
        except OSError as error:
            self._trouble = (
                f"the disk of {self._folder} failed to sync ({error.strerror}); replace it, start the shard anew"
            )
            _log.critical("%s", self._trouble)
            return False

    def _go_on(self, item: _Item) -> None:
        assert item.first is not None
        if item.start is not None:
            self._start = item.start
        name = SegmentName(self._name.epoch, item.first)
        if name == self._name:
            return  # nothing was written to it yet
        old = self._file
        self._begin(name, (str(self._name), self._end))
        os.close(old)

    def _begin(self, name: SegmentName, after: tuple[str, int] | None) -> None:
        place = {"epoch": name.epoch, "first": name.first, "after": after}
        path, start = self._folder / str(name), encode_start({**self._start, **place})
        temporary = self._folder / "journal.tmp"  # one name: what a crash leaves is overwritten
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, start) != len(start):
                raise OSError(28, "No space left on device")
            if self._options.fsync != "never":
                os.fsync(file)
            os.rename(temporary, path)
            if self._options.fsync != "never":
                sync_folder(self._folder)
        except OSError:
            os.close(file)
            raise
        self._file, self._name, self._offset, self._end = file, name, len(start), len(start)
        self._acknowledged.write(name, self._end)
