"""In which order a shard's jobs run, slice by slice. Plain and single-threaded; the clock is an argument.

Jobs start in order of arrival. One that takes longer than a slice is suspended and continued in turns with new ones:

    read     may start while other jobs are suspended, so it overtakes a long update
    update   starts when no update is suspended: updates never overlap one another
    alone    starts when nothing is suspended, and nothing starts before its end
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["read", "update", "alone"]


@dataclass(eq=False)
class Job:
    """running: does the work, yields where it may be interrupted, returns the result. finished: gets result or
    error.
    """

    mode: Mode
    running: Generator[None, None, Any]
    finished: Callable[[Any, Exception | None], None]
    number: int = 0  # order of arrival


class Schedule:
    """The jobs of one shard."""

    def __init__(self, clock: Callable[[], float], slice_seconds: float) -> None:
        self._clock = clock
        self._slice_seconds = slice_seconds
        self._reads: deque[Job] = deque()
        self._others: deque[Job] = deque()
        self._suspended: deque[Job] = deque()
        self._arrived = 0
        self._continue_next = False

    @property
    def num_jobs(self) -> int:
        return len(self._reads) + len(self._others) + len(self._suspended)

    def add(self, job: Job) -> None:
        """Take a job in, behind all others."""
        self._arrived += 1
        job.number = self._arrived
        (self._reads if job.mode == "read" else self._others).append(job)

    def run_slice(self) -> bool:
        """Run one job for a slice, or to its end. False when there is no job."""
        job = self._next()
        if job is None:
            return False
        started = self._clock()
        while True:
            try:
                next(job.running)
            except StopIteration as stop:
                job.finished(stop.value, None)
                return True
            except Exception as error:  # whatever a job raises belongs to those who wait for it, not to this thread
                job.finished(None, error)
                return True
            if self._clock() - started >= self._slice_seconds:
                self._suspended.append(job)
                return True

    def _next(self) -> Job | None:
        """In turns: the next suspended job, the next new one that may start."""
        queue = self._startable()
        if queue is None or (self._continue_next and self._suspended):
            self._continue_next = False
            return self._suspended.popleft() if self._suspended else None
        self._continue_next = True
        return queue.popleft()

    def _startable(self) -> deque[Job] | None:
        """The queue whose first job may start now."""
        modes = {job.mode for job in self._suspended}
        if "alone" in modes:
            return None
        first = min(
            (queue for queue in (self._reads, self._others) if queue), key=lambda queue: queue[0].number, default=None
        )
        if first is None or first[0].mode == "read":
            return first
        if first[0].mode == "alone":
            return None if modes else first
        if "update" not in modes:
            return first
        # A read overtakes updates that wait for a suspended one, but not a job that wants to be alone.
        blocked = any(job.mode == "alone" for job in self._others)
        return self._reads if self._reads and not blocked else None
