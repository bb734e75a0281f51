"""Requests on their way through the model: a bounded queue, and some threads that score what waits, several at once.

A request is turned into keys by whoever brings it, so that a malformed one costs the others nothing. It keeps the model
that it met then: all of its answer is of that version, though another one may take over meanwhile. What waits too long
is dropped before it costs anything; what does not fit into the queue is refused at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ps.errors import OverloadedError, WeirError
from ps.types import Floats
from workers.serving.errors import DrainingError, LateError, UnknownVersionError, UnscorableError
from workers.serving.features import Sample
from workers.serving.model import Model
from workers.serving.request import Request

_log = logging.getLogger("weir.serving")
Observe = Callable[[str, float], None]  # a stage (decode, wait, rows, tower) and its seconds


class Prediction(NamedTuple):
    """scores: float32 [num_candidates, num_tasks], in the order of `tasks`. *_seconds: of the stages of its way."""

    request: Request
    scores: Floats
    tasks: tuple[str, ...]
    version: str
    data_age_seconds: float | None
    num_unknown_keys: int
    decode_seconds: float
    wait_seconds: float
    rows_seconds: float
    tower_seconds: float

    def by_task(self) -> dict[str, Floats]:
        """By task, float32 [num_candidates]."""
        return dict(zip(self.tasks, np.ascontiguousarray(self.scores.T), strict=True))


@dataclass(slots=True)
class _Waiting:
    request: Request
    sample: Sample
    model: Model
    decode_seconds: float
    deadline: float  # of time.perf_counter
    arrived: float = field(default_factory=time.perf_counter)
    answer: Future[Prediction] = field(default_factory=Future)


class Predictor:
    """Thread-safe. capacity, candidate_capacity: requests and their candidates that may wait. batch_candidates: of the
    requests that are scored in one run; a larger request has a run of its own. runs: how many there are at once.
    """

    def __init__(
        self,
        model: Model,
        *,
        capacity: int,
        candidate_capacity: int,
        batch_candidates: int,
        runs: int = 1,
        observe: Observe = lambda stage, seconds: None,
    ) -> None:
        self._model = model
        self._capacity, self._candidate_capacity = capacity, candidate_capacity
        self._batch_candidates, self._observe = batch_candidates, observe
        self.num_shed = self.num_late = self.num_runs = 0
        # Why what answers is not what should: another version, or newer rows. Empty where it is.
        self.trouble: Callable[[], str] = lambda: ""
        self._queue: deque[_Waiting] = deque()
        self._num_candidates = 0  # that wait
        self._num_taken = 0  # requests that are not answered yet
        self._free_runs = runs
        self._is_ready, self._is_draining, self._is_closed = True, False, False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"weir-scoring-{number}", daemon=True) for number in range(runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def model(self) -> Model:
        """The current one."""
        return self._model

    @property
    def queue(self) -> tuple[int, int]:
        """How many requests and candidates wait."""
        return len(self._queue), self._num_candidates

    @property
    def is_ready(self) -> bool:
        """What readiness says; requests are taken until `drain` all the same."""
        return self._is_ready

    def stop_being_ready(self) -> None:
        """Tell balancers to send the next requests elsewhere."""
        self._is_ready = False

    def replace(self, model: Model) -> Model:
        """Answer what comes from now on with this one; returns the one before, which answers what came before."""
        with self._changed:
            before, self._model = self._model, model
        return before

    def predict(
        self, request: Request, started: float, timeout_seconds: float = math.inf, *, may_wait: bool = False
    ) -> Future[Prediction]:
        """Take a request in. started: time.perf_counter when it came. may_wait: where nothing waits and a run is free,
        score it on this thread, which saves two changes of threads. Raises MalformedError, LateError, OverloadedError
        and DrainingError; so may the future.
        """
        model = self._model
        if request.version and request.version != model.version:
            raise UnknownVersionError("version", f"{request.version!r} is not served here; {model.version!r} is")
        sample = model.features.read(request)
        now = time.perf_counter()
        waiting = _Waiting(request, sample, model, now - started, started + timeout_seconds, now)
        with self._changed:
            if self._is_draining:
                raise DrainingError("this server is about to end; ask another one")
            num_waiting, candidates = len(self._queue), self._num_candidates
            # A request beyond the capacity alone is let in where nothing waits.
            too_many = num_waiting and candidates + sample.num_candidates > self._candidate_capacity
            if num_waiting >= self._capacity or too_many:
                self.num_shed += 1
                raise OverloadedError(f"{num_waiting} requests of {candidates} candidates wait already; back off")
            self._num_taken += 1
            is_alone = may_wait and not num_waiting and self._free_runs > 0
            if is_alone:
                self._free_runs -= 1
            else:
                self._queue.append(waiting)
                self._num_candidates += sample.num_candidates
                self._changed.notify()
        if is_alone:
            self._answer([waiting])
        return waiting.answer

    def drain(self, timeout_seconds: float) -> bool:
        """Take no more requests, and wait until all that were taken are answered. False: some are not, after so
        long.
        """
        with self._changed:
            self._is_ready, self._is_draining = False, True
            return self._changed.wait_for(lambda: self._num_taken == 0, timeout_seconds)

    def close(self) -> None:
        """Refuse what still waits, and end the thread."""
        with self._changed:
            self._is_ready, self._is_draining, self._is_closed = False, True, True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Waiting]:
        """The requests of the next run, once there are some and a run is free: those that fit into it, of one model.
        Empty: there will be none.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._queue and self._free_runs > 0) or self._is_closed)
            if self._is_closed:
                while self._queue:
                    self._queue.popleft().answer.set_exception(DrainingError("this server has ended; ask another one"))
                return []
            self._free_runs -= 1
            batch = [self._queue.popleft()]
            total = batch[0].sample.num_candidates
            while self._queue and self._queue[0].model is batch[0].model:
                total += self._queue[0].sample.num_candidates
                if total > self._batch_candidates:
                    break
                batch.append(self._queue.popleft())
            self._num_candidates -= sum(each.sample.num_candidates for each in batch)
            return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """In a run that the caller has taken; it is free again then."""
        try:
            now = time.perf_counter()
            late = [each for each in batch if each.deadline <= now]
            with self._changed:
                self.num_late += len(late)
            for each in late:
                each.answer.set_exception(LateError(f"the time was over after {now - each.arrived:.3f} s in the queue"))
            in_time = [each for each in batch if each.deadline > now] if late else batch
            if in_time:
                self._score(in_time, now)
        finally:
            with self._changed:
                self._free_runs += 1
                self._num_taken -= len(batch)
                if self._is_draining:
                    self._changed.notify_all()
                elif self._queue:
                    self._changed.notify()

    def _score(self, batch: list[_Waiting], began: float) -> None:
        model = batch[0].model
        try:
            found, took = model.score([each.sample for each in batch])
            age = model.age_seconds()
        except Exception as error:
            if not isinstance(error, WeirError):
                _log.error("a run failed unexpectedly", exc_info=error)
            for each in batch:
                each.answer.set_exception(error)
            return
        with self._changed:
            self.num_runs += 1
        self._observe("rows", took.rows)
        self._observe("tower", took.tower)
        for each, scored in zip(batch, found, strict=True):
            wait = began - each.arrived
            self._observe("decode", each.decode_seconds)
            self._observe("wait", wait)
            if not np.isfinite(scored.scores).all():
                each.answer.set_exception(UnscorableError("scores are not finite; are dense values beyond all reason?"))
                continue
            each.answer.set_result(
                Prediction(
                    each.request,
                    scored.scores,
                    model.tasks,
                    model.version,
                    age,
                    scored.num_unknown_keys,
                    each.decode_seconds,
                    wait,
                    took.rows,
                    took.tower,
                )
            )
