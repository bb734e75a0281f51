"""The updates of one client that are on their way: their numbers, the bound on how many, and the errors nobody has
seen yet.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ps.messages import Identity
from ps.rounds import Connection, Future, Work

W = TypeVar("W", bound=Work)
T = TypeVar("T")

MAX_UNSETTLED = 64  # a shard can tell whether it has applied any of a client's last 64 updates, and refuses older ones


class Unsettled:
    """Thread-safe. An update leaves when its outcome was collected."""

    def __init__(self, connection: Connection) -> None:
        self.client = secrets.randbits(64) | 1  # never 0
        self._connection = connection
        self._numbers = itertools.count(1)
        self._entries: deque[tuple[int, Future[Any]]] = deque()
        self._lock = threading.RLock()

    def start(
        self, step: int, make: Callable[[Identity], W], finish: Callable[[W], T], *, event_time: int = 0
    ) -> Future[T]:
        """Number an update, wait until the window has room for it, and send it."""
        with self._lock:
            number = next(self._numbers)
            while self._entries and self._entries[0][0] <= number - MAX_UNSETTLED:
                self._entries[0][1].block()
                self.collect()
            work = make(Identity(self.client, number, step, event_time))
            future = self._connection.start(work, lambda: finish(work))
            self._entries.append((number, future))
            return future

    def collect(self) -> None:
        """Let go of updates that are done. Raises the error of the first failed one that nobody has waited for."""
        with self._lock:
            for entry in [entry for entry in self._entries if entry[1].done()]:
                self._entries.remove(entry)
                if not entry[1].was_waited_for:
                    entry[1].wait()

    def block(self, at_most: int = 0) -> None:
        """Wait, oldest first, until at most so many have no outcome. Raises nothing."""
        with self._lock:
            pending = [future for _, future in self._entries if not future.done()]
        for future in pending[: max(0, len(pending) - at_most)]:
            future.block()

    def forget(self) -> None:
        """Wait for all and let them go, whatever came of them."""
        self.block()
        with self._lock:
            self._entries.clear()
