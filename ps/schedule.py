"""In which order a shard's jobs run, slice by slice. Plain and single-threaded; the clock is an argument.

Jobs start in order of arrival. One that takes longer than a slice is suspended and continued in turns with new ones:

    read     may start while other jobs are suspended, so it overtakes a long update
    update   starts when no update is suspended: updates never overlap one another
    yielding starts as an update does, but lets updates run between its slices; it goes on when none is suspended
    alone    starts when nothing is suspended, and nothing starts before its end
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["read", "update", "yielding", "alone"]


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
        self._new_reads: deque[Job] = deque()
        self._new_others: deque[Job] = deque()  # updates, and those that want to be alone
        self._suspended: deque[Job] = deque()  # at most one: an update, or a job that is alone
        self._suspended_reads: deque[Job] = deque()
        self._suspended_yielding: deque[Job] = deque()
        self._num_alone = 0  # new ones
        self._arrived = 0
        self._turn = 0

    @property
    def num_jobs(self) -> int:
        suspended = (self._suspended, self._suspended_reads, self._suspended_yielding)
        return sum(map(len, (self._new_reads, self._new_others, *suspended)))

    def add(self, job: Job) -> None:
        """Take a job in, behind all others."""
        self._arrived += 1
        job.number = self._arrived
        self._num_alone += job.mode == "alone"
        (self._new_reads if job.mode == "read" else self._new_others).append(job)

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
                queues = {"read": self._suspended_reads, "yielding": self._suspended_yielding}
                queues.get(job.mode, self._suspended).append(job)
                return True

    def _next(self) -> Job | None:
        """In turns, so that none starves: a new job, the suspended update, a suspended read, a yielding job."""
        yielding = None if self._suspended else self._suspended_yielding
        for _ in range(4):
            queue = (self._startable(), self._suspended, self._suspended_reads, yielding)[self._turn]
            self._turn = (self._turn + 1) % 4
            if queue:
                job = queue.popleft()
                self._num_alone -= queue is self._new_others and job.mode == "alone"
                return job
        return None

    def _startable(self) -> deque[Job] | None:
        """The queue whose first job may start now."""
        read, other = (queue[0] if queue else None for queue in (self._new_reads, self._new_others))
        running = self._suspended[0].mode if self._suspended else None
        if running == "alone":
            return None
        if other is not None and (read is None or other.number < read.number):
            if other.mode == "alone":
                return None if running or self._suspended_reads or self._suspended_yielding else self._new_others
            if running is None:
                return self._new_others
            if self._num_alone:
                return None  # a read behind a job that waits to be alone does not slip past it
        return self._new_reads
