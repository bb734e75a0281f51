"""The threads on which a client's rounds leave: at once but not at the caller, or after a pause."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any


class Sender:
    """Sends in the order of calls: large rounds on a thread of its own, for writing them takes milliseconds, small
    ones at the caller unless others wait.
    """

    def __init__(self) -> None:
        self._executor = futures.ThreadPoolExecutor(1, thread_name_prefix="weir-send")
        self._waiting = 0
        self._lock = threading.Lock()

    def run(self, function: Callable[[], None], *, is_large: bool) -> None:
        """Call `function`, which must not raise, now or soon."""
        with self._lock:
            at_caller = not is_large and not self._waiting
            if not at_caller:
                self._waiting += 1
                self._executor.submit(self._run, function)
        if at_caller:
            function()

    def close(self) -> None:
        """Run what waits, and end the thread."""
        self._executor.shutdown()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            with self._lock:
                self._waiting -= 1


class Later:
    """Runs functions after a pause, on one thread that starts with the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, pause_seconds: float, function: Callable[[], Any]) -> bool:
        """Run `function` after a pause. False, and it never runs, after close."""
        with self._changed:
            if self._closed:
                return False
            heapq.heappush(self._due, (time.monotonic() + pause_seconds, next(self._number), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="weir-retry", daemon=True)
                self._thread.start()
            self._changed.notify()
            return True

    def close(self) -> None:
        """Run at once what waits, so that it ends too, and stop the thread."""
        with self._changed:
            self._closed = True
            waiting, self._due = self._due, []
            self._changed.notify()
        for _, _, function in waiting:
            function()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                function = heapq.heappop(self._due)[2]
            function()
