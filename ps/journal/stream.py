"""A primary's line to its standby: the frames of its journal in order, message after message, on a thread of its own.

What goes over the line are frames (frames.py), behind one another:

    start     as a segment's, with `expired` {table: [client]}: the standby drops what it had, and begins to be filled
    record    rows of a bucket, as a snapshot has them (ps/record.py)
    bucket    {bucket, number}: the bucket is whole; it has all updates below that number
    filled    every bucket is whole
    joined    from now on no update is acknowledged without this standby, so it may take the primary's place
    rows, commit   as in the journal, from `start` on

A stream is not joined at first: updates are acknowledged by the primary's journal alone. When the standby has answered
`filled`, the primary begins to wait for its answers, and only then says `joined`. So whatever was acknowledged alone
precedes `joined`, and a standby that read it has every acknowledged update.

A joined standby's answers are the primary's lease as well: without one for `seconds` it serves nothing, for another
process may have its place; a standby takes over that long after its last answer (standby.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

from ps.errors import WeirError, WrongEpochError
from ps.record import VERSION, Buffer, encode_frame

_RETRY_SECONDS = 0.1
_BEATS = 5  # messages in `seconds` at least
_MAX_MESSAGE_BYTES = 16 << 20  # of several frames; one frame may be larger
_log = logging.getLogger("weir.journal")

# Takes term, number of the message (from 1) and frames to the standby; the future resolves when it has them.
Deliver: TypeAlias = Callable[[int, int, bytes], Future[Any]]


class Stream:
    """`send`, `restart` and `wait` on the writer's thread; the rest is thread-safe. term: the epoch of the pair."""

    def __init__(self, term: int, deliver: Deliver, *, seconds: float, standby: str, max_backlog_bytes: int) -> None:
        """seconds: without an answer, after which updates are refused and reads no longer served. standby: its address,
        for messages.
        """
        self.term, self.standby = term, standby
        self.refusal: WrongEpochError | None = None  # the standby has taken the primary's place
        self.backlog_bytes = 0  # that wait for the standby
        self._deliver, self._seconds, self._max_backlog_bytes = deliver, seconds, max_backlog_bytes
        self._changed = threading.Condition()
        self._queue: deque[tuple[bytes, int]] = deque()  # frames, and of "filled" the number of the filling
        self._sent = self._answered = 0  # entries of the queue
        self._filling = 0
        self._is_joined = self._is_over = self._is_closed = False
        self._heard_at = time.monotonic()  # when the newest message was sent that is answered
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="weir-stream", daemon=True)
        self._thread.start()

    @property
    def is_joined(self) -> bool:
        """Whether updates wait for the standby."""
        return self._is_joined and not self._is_over

    @property
    def is_over(self) -> bool:
        """Whether nothing is sent any more."""
        return self._is_over or self._is_closed or self.refusal is not None

    @property
    def silent_seconds(self) -> float:
        """Since the standby was heard of."""
        return max(0.0, time.monotonic() - self._heard_at)

    @property
    def has_lease(self) -> bool:
        """Whether no other process can have taken the primary's place."""
        return not self.is_joined or (self.refusal is None and self.silent_seconds < self._seconds)

    @property
    def trouble(self) -> str:
        """Why updates are not acknowledged at present, or empty."""
        if self.is_over or self.silent_seconds < self._seconds or not (self._is_joined or self._is_behind):
            return ""
        said = f": {self._problem}" if self._problem else ""
        return f"the standby at {self.standby} has not answered for {self.silent_seconds:.0f} s{said}"

    @property
    def _is_behind(self) -> bool:
        return self.backlog_bytes > self._max_backlog_bytes

    def send(self, pieces: list[Buffer]) -> int:
        """Send frames that end where the pieces do. Returns what to wait for before they are acknowledged; 0: nothing.

        Waits itself while the standby is far behind.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or not self._is_behind)
            self._put(b"".join(pieces))
            return self._sent if self.is_joined else 0

    def wait(self, ticket: int) -> bool:
        """Until the standby has it, or is no longer waited for. False: it must not be acknowledged."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered >= ticket or self.is_over)
            return (self._answered >= ticket or self._is_over) and self.refusal is None

    def restart(self, start: bytes) -> bool:
        """Begin to fill the standby, anew where it was joined. As `wait`."""
        with self._changed:
            self._filling += 1
            self._put(start)
            ticket = self._sent if self.is_joined else 0
        # Before the standby has dropped what it had, it could take over without what is acknowledged from now on.
        if not self.wait(ticket):
            return False
        with self._changed:
            self._is_joined = False
        return True

    def fill(self, pieces: list[Buffer], *, is_last: bool = False) -> None:
        """Send a piece of the filling. is_last: it is the frame `filled`."""
        with self._changed:
            self._put(b"".join(pieces), self._filling if is_last else 0)

    def release(self) -> None:
        """The standby was removed from the pair: wait for it no longer, send no more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Send no more; what waits is not acknowledged."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _put(self, frames: bytes, filling: int = 0) -> None:
        if self._is_over:
            return
        self._queue.append((frames, filling))
        self._sent += 1
        self.backlog_bytes += len(frames)
        self._changed.notify_all()

    def _run(self) -> None:
        number = 0
        while True:
            frames, count, filling = self._next()
            number += 1
            if not self._until_answered(number, frames):
                return
            with self._changed:
                self._answered += count
                self.backlog_bytes -= len(frames)
                if filling and filling == self._filling:
                    self._is_joined = True
                    self._put(encode_frame({"version": VERSION, "kind": "joined"}))
                self._changed.notify_all()

    def _next(self) -> tuple[bytes, int, int]:
        """(frames, entries, filling) of the next message; an empty one in time where there is nothing to send."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.is_over, timeout=self._seconds / _BEATS)
            taken: list[bytes] = []
            size = filling = 0
            while self._queue and not filling and (not taken or size + len(self._queue[0][0]) <= _MAX_MESSAGE_BYTES):
                frames, filling = self._queue.popleft()
                taken.append(frames)
                size += len(frames)
            return b"".join(taken), len(taken), filling

    def _until_answered(self, number: int, frames: bytes) -> bool:
        """Send a message until it is answered; the standby knows one that comes twice. False when all is over."""
        while not self.is_over:
            sent_at = time.monotonic()
            try:
                self._deliver(self.term, number, frames).result()
                self._heard_at, self._problem = sent_at, ""
                return True
            except WrongEpochError as error:
                with self._changed:
                    self.refusal = error
                    self._changed.notify_all()
                _log.error("this shard was replaced by its standby at %s: %s", self.standby, error)
                return False
            except WeirError as error:
                if not self._problem:
                    _log.warning("the standby at %s does not answer: %s", self.standby, error)
                self._problem = str(error)
            with self._changed:
                self._changed.wait_for(lambda: self.is_over, timeout=_RETRY_SECONDS)
        return False
