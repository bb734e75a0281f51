"""A lock: readers together, or the one writer alone. Neither starves: a writer that waits lets no new reader in, and
one that leaves first lets in all readers that waited meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Together:
    """A block in which somebody reads. It is entered for every request, so it is no generator."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns.begin_reading()

    def __exit__(self, *_: object) -> None:
        self._turns.end_reading()


class Turns:
    """Not reentrant. One writer at a time asks: whoever has several puts a lock of their own around."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._num_reading = self._num_waiting = 0
        self._num_let_in = 0  # of those that wait: they go before the next writer
        self._is_writing = self._writer_waits = False
        self._together = _Together(self)

    def together(self) -> _Together:
        """Beside other readers, for a `with`."""
        return self._together

    def begin_reading(self) -> None:
        with self._lock:
            if self._is_writing or self._writer_waits:
                self._num_waiting += 1
                self._changed.wait_for(self._may_read)
                self._num_waiting -= 1
                self._num_let_in = max(0, self._num_let_in - 1)
            self._num_reading += 1

    def end_reading(self) -> None:
        with self._lock:
            self._num_reading -= 1
            if self._writer_waits and not self._num_reading:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Beside nobody."""
        with self._lock:
            self._writer_waits = True
            self._changed.wait_for(lambda: not self._num_reading and not self._num_let_in)
            self._writer_waits, self._is_writing = False, True
        try:
            yield
        finally:
            with self._lock:
                self._is_writing, self._num_let_in = False, self._num_waiting
                self._changed.notify_all()

    def _may_read(self) -> bool:
        return not self._is_writing and (self._num_let_in > 0 or not self._writer_waits)
