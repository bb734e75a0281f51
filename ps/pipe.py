"""Pieces of a file, from the thread of work to a thread that writes them: ps.cut.Sink. At most `capacity` pieces wait;
where there are more, whoever makes them stops, costs nothing, and is called when there is room.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from ps.errors import CheckpointError
from ps.record import Buffer


class Pipe:
    """Thread-safe. post: runs what it is given on the thread of work."""

    def __init__(self, capacity: int, post: Callable[[Callable[[], None]], None]) -> None:
        self._capacity, self._post = capacity, post
        self._pieces: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._waiting: Callable[[], None] | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def __call__(self, piece: Buffer) -> bool:
        """Take a piece. False: enough for now. Raises CheckpointError when nobody writes any more."""
        if self._is_stopped:
            raise CheckpointError("the file could not be written")
        self._pieces.put(piece)
        return self._pieces.qsize() < self._capacity

    def when_room(self, go_on: Callable[[], None]) -> None:
        """Run this on the thread of work once half of the pieces that wait are written."""
        with self._lock:
            self._waiting = go_on
        self._wake()

    def end(self) -> None:
        """No more pieces come."""
        self._pieces.put(None)

    def stop(self) -> None:
        """Nobody writes any more."""
        self._is_stopped = True
        self._wake()

    def __iter__(self) -> Iterator[Buffer]:
        """The pieces, for the thread that writes."""
        while (piece := self._pieces.get()) is not None:
            self._wake()
            yield piece

    def _wake(self) -> None:
        with self._lock:
            if self._pieces.qsize() > self._capacity // 2 and not self._is_stopped:
                return
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._post(waiting)
