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
from dataclasses import dataclass
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
class _Taken:
    request: Request
    sample: Sample
    model: Model
    decode_seconds: float
    deadline: float  # of time.perf_counter
    arrived: float
    answer: Future[Prediction] | None = None  # of one that waits in the queue


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
        self._queue: deque[_Taken] = deque()
        self._num_candidates = 0  # that wait
        self._num_taken = 0  # requests that are not answered yet
        self._free_runs = runs
        self._is_ready, self._is_draining, self._is_closed = True, False, False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._score_queue, name=f"weir-scoring-{number}", daemon=True)
            for number in range(runs)
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

    def predict(self, request: Request, started: float, timeout_seconds: float = math.inf) -> Prediction:
        """Answer a request. started: time.perf_counter when it came. Where nothing waits and a run is free, it is
        scored on this thread, which saves two changes of threads. Raises MalformedError, LateError, OverloadedError and
        DrainingError.
        """
        taken = self._read(request, started, timeout_seconds)
        with self._lock:
            self._admit(taken)
            is_alone = not self._queue and self._free_runs > 0
            if is_alone:
                self._free_runs -= 1
            else:
                answer = self._enqueue(taken)
        if not is_alone:
            return answer.result()
        (found,) = self._run([taken])
        if isinstance(found, Exception):
            raise found
        return found

    def submit(self, request: Request, started: float, timeout_seconds: float = math.inf) -> Future[Prediction]:
        """As `predict`, but another thread scores it. What `predict` raises, this does, or the future."""
        taken = self._read(request, started, timeout_seconds)
        with self._lock:
            self._admit(taken)
            return self._enqueue(taken)

    def _read(self, request: Request, started: float, timeout_seconds: float) -> _Taken:
        model = self._model
        if request.version and request.version != model.version:
            raise UnknownVersionError("version", f"{request.version!r} is not served here; {model.version!r} is")
        sample = model.features.read(request)
        now = time.perf_counter()
        return _Taken(request, sample, model, now - started, started + timeout_seconds, now)

    def _admit(self, taken: _Taken) -> None:
        """Locked."""
        if self._is_draining:
            raise DrainingError("this server is about to end; ask another one")
        num_waiting, candidates = len(self._queue), self._num_candidates
        # A request beyond the capacity alone is let in where nothing waits.
        too_many = num_waiting and candidates + taken.sample.num_candidates > self._candidate_capacity
        if num_waiting >= self._capacity or too_many:
            self.num_shed += 1
            raise OverloadedError(f"{num_waiting} requests of {candidates} candidates wait already; back off")
        self._num_taken += 1

    def _enqueue(self, taken: _Taken) -> Future[Prediction]:
        """Locked."""
        taken.answer = answer = Future[Prediction]()
        self._queue.append(taken)
        self._num_candidates += taken.sample.num_candidates
        self._changed.notify()
        return answer

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

    def _score_queue(self) -> None:
        while batch := self._next():
            for taken, found in zip(batch, self._run(batch), strict=True):
                assert taken.answer is not None
                if isinstance(found, Exception):
                    taken.answer.set_exception(found)
                else:
                    taken.answer.set_result(found)

    def _next(self) -> list[_Taken]:
        """The requests of the next run, once there are some and a run is free: those that fit into it, of one model.
        Empty: there will be none.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._queue and self._free_runs > 0) or self._is_closed)
            if self._is_closed:
                while self._queue:
                    answer = self._queue.popleft().answer
                    assert answer is not None
                    answer.set_exception(DrainingError("this server has ended; ask another one"))
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

    def _run(self, batch: list[_Taken]) -> list[Prediction | Exception]:
        """The answer to each, in a run that the caller has taken; it is free again then."""
        try:
            now = time.perf_counter()
            late = [taken for taken in batch if taken.deadline <= now]
            if not late:
                return self._score(batch, now)
            with self._lock:
                self.num_late += len(late)
            in_time = [taken for taken in batch if taken.deadline > now]
            found = iter(self._score(in_time, now) if in_time else ())
            return [_late(now - taken.arrived) if taken.deadline <= now else next(found) for taken in batch]
        finally:
            with self._lock:
                self._free_runs += 1
                self._num_taken -= len(batch)
                if self._is_draining:
                    self._changed.notify_all()
                elif self._queue:
                    self._changed.notify()

    def _score(self, batch: list[_Taken], began: float) -> list[Prediction | Exception]:
        model = batch[0].model
        try:
            found, took = model.score([taken.sample for taken in batch])
            age = model.age_seconds()
        except Exception as error:
            if not isinstance(error, WeirError):
                _log.error("a run failed unexpectedly", exc_info=error)
            return [error] * len(batch)
        with self._lock:
            self.num_runs += 1
        self._observe("rows", took.rows)
        self._observe("tower", took.tower)
        answers: list[Prediction | Exception] = []
        for taken, scored in zip(batch, found, strict=True):
            wait = began - taken.arrived
            self._observe("decode", taken.decode_seconds)
            self._observe("wait", wait)
            if not np.isfinite(scored.scores).all():
                answers.append(UnscorableError("scores are not finite; are dense values beyond all reason?"))
                continue
            answers.append(
                Prediction(
                    taken.request,
                    scored.scores,
                    model.tasks,
                    model.version,
                    age,
                    scored.num_unknown_keys,
                    taken.decode_seconds,
                    wait,
                    took.rows,
                    took.tower,
                )
            )
        return answers


def _late(seconds: float) -> LateError:
    return LateError(f"the time was over after {seconds:.3f} s in the queue")
