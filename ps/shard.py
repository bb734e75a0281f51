"""The shard: a state machine without I/O. Events come in, `run_slice` does the next piece of work, answers go out as
futures.

    receive   a checked message of calls        assign    a place in the routing
    save      all rows as frames, to a sink     restore   all rows anew, from records

Single-threaded: ps/work.py owns the thread. The order of work is that of ps/schedule.py; messages that only read are
its reads, assign and restore want to be alone. A save counts as an update: reads go on, updates wait, so the file is
one cut.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ps import checkpoint
from ps.errors import RequestError, WeirError, WrongEpochError
from ps.execution import execute, execute_group, is_new
from ps.holding import Holding
from ps.record import Record, encode_record
from ps.request import CheckedRequest
from ps.routing import Routing
from ps.schedule import Job, Mode, Schedule
from ps.spec import ClusterSpec
from ps.synchronous import Groups, Place
from ps.wire import weir_pb2 as pb

SLICE_SECONDS = 0.005
MAX_CLIENTS = 4096
MAX_IDLE_SECONDS = 7 * 86_400.0
_EXPIRE_EVERY_SECONDS = 60.0
_log = logging.getLogger("weir.shard")

Sink: TypeAlias = Callable[[bytes], bool]  # takes a piece of a file; False: full, offer it again later
Observer: TypeAlias = Callable[[str, float], None]  # kind "pull", "apply" or "other", seconds from arrival to answer


@dataclass(eq=False)
class _Waiting:
    """A message of a synchronous group and those who wait for its answer."""

    request: CheckedRequest
    answers: list[Future[pb.Reply]]


class Shard:
    """clock: seconds, monotonic. observe: told of every message answered."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        slice_seconds: float = SLICE_SECONDS,
        max_clients: int = MAX_CLIENTS,
        max_idle_seconds: float = MAX_IDLE_SECONDS,
        observe: Observer = lambda kind, seconds: None,
    ) -> None:
        self.holding: Holding | None = None
        self.num_failed = 0  # messages answered with an error
        self._clock = clock
        self._observe = observe
        self._schedule = Schedule(clock, slice_seconds)
        self._groups: Groups[_Waiting] = Groups()
        self._group_steps: deque[tuple[int, int]] = deque(maxlen=64)  # (generation, step) applied last
        self._running: dict[Place, _Waiting] = {}  # messages of group steps that are being applied
        self._max_clients, self._max_idle_seconds = max_clients, max_idle_seconds
        self._expired_at = clock()

    @property
    def num_jobs(self) -> int:
        """Jobs to do, those waiting for other ranks of a group aside."""
        return self._schedule.num_jobs

    @property
    def num_waiting_for_ranks(self) -> int:
        return self._groups.num_waiting

    def run_slice(self) -> bool:
        """Do the next piece of work, for about a slice. False when there is none."""
        self._expire_clients()
        return self._schedule.run_slice()

    # Messages of calls.

    def receive(self, request: CheckedRequest, answer: Future[pb.Reply]) -> None:
        """Take a message in. `answer` gets the reply, or an error of ps/errors.py."""
        try:
            holding = self._placed()
            # A message sent again while the first runs needs no care: updates do not overlap, so it finds all applied.
            if request.place is None or self._was_applied(holding, request, request.place):
                self._run_alone(holding, request, answer)
            else:
                self._wait_for_ranks(holding, request, request.place, answer)
        except WeirError as error:
            self._fail([answer], error)

    def _run_alone(self, holding: Holding, request: CheckedRequest, answer: Future[pb.Reply]) -> None:
        arrived = self._clock()
        names = {call.psfunc.name for call in request.calls}
        kind = "apply" if request.is_update else "pull" if names == {"pull"} else "other"
        yields = all(call.psfunc.lets_updates_between for call in request.calls)
        mode: Mode = "read" if not request.is_update else "yielding" if yields else "update"

        def finished(reply: Any, error: Exception | None) -> None:
            self._observe(kind, self._clock() - arrived)
            self._answer([answer], reply, error)
            self._make_room(holding)

        self._add(mode, execute(holding, request, now=arrived), finished)

    def _was_applied(self, holding: Holding, request: CheckedRequest, place: Place) -> bool:
        """Whether a group message repeats one whose step was applied. One without keys has no bucket that would
        remember.
        """
        if any(call.keyed is None or len(call.keyed.keys) for call in request.calls):
            return not is_new(holding, request)
        return (place.generation, place.step) in self._group_steps

    def _wait_for_ranks(
        self, holding: Holding, request: CheckedRequest, place: Place, answer: Future[pb.Reply]
    ) -> None:
        holding.check_routing(request)
        present = self._groups.waiting(place) or self._running.get(place)
        if present is not None and present.request.client == request.client:
            present.answers.append(answer)  # sent again: both get the one answer
            return
        arrival = self._groups.add(place, _Waiting(request, [answer]))
        for waiting, error in arrival.dropped:
            self._fail(waiting.answers, error)
        if arrival.complete is not None:
            self._run_group(holding, place, arrival.complete)

    def _run_group(self, holding: Holding, place: Place, ranks: list[_Waiting]) -> None:
        arrived, requests = self._clock(), [rank.request for rank in ranks]
        places = [replace(place, rank=number) for number in range(place.world)]
        self._running.update(zip(places, ranks, strict=True))

        def finished(replies: Any, error: Exception | None) -> None:
            for each in places:
                del self._running[each]
            if error is None:
                self._group_steps.append((place.generation, place.step))
            self._observe("apply", self._clock() - arrived)
            self._make_room(holding)
            for number, rank in enumerate(ranks):
                self._answer(rank.answers, None if error else replies[number], error)

        self._add("update", execute_group(holding, requests, now=arrived), finished)

    # Control.

    def assign(self, spec: ClusterSpec, routing: Routing, shard: int, answer: Future[pb.AssignReply]) -> None:
        """Take a place. The first call brings the tables; later ones move routing forward. `answer` comes when all is
        compiled.
        """

        def work() -> Generator[None, None, pb.AssignReply]:
            if self.holding is not None and self.holding.spec != spec:
                raise RequestError("this shard belongs to a cluster with another spec; stop it and start a new one")
            holding = self.holding
            if holding is None:
                holding = Holding(spec)
                yield from holding.warm_up()
            if routing.epoch != holding.routing.epoch:
                error = WrongEpochError(f"routing moved to epoch {routing.epoch} while other ranks were missing")
                for waiting in self._groups.clear():
                    self._fail(waiting.answers, error)
            holding.move(routing, shard)
            self.holding = holding
            return pb.AssignReply()

        self._add("alone", work(), lambda result, error: self._answer([answer], result, error))

    def save(self, sink: Sink, answer: Future[dict[str, Any]]) -> None:
        """Give all rows to the sink as the frames of a file (ps/checkpoint.py). `answer`: what the manifest says of
        it.
        """

        def work() -> Generator[None, None, dict[str, Any]]:
            holding = self._placed()
            num_records, rows = 0, dict[str, int]()
            yield from _offer(
                sink,
                checkpoint.start_frame(
                    shard=holding.shard, spec=holding.spec, layouts=holding.layouts(), expired=holding.expired_ids()
                ),
            )
            for record in holding.records():
                yield from _offer(sink, encode_record(record))
                num_records += 1
                rows[record.table] = rows.get(record.table, 0) + len(record.keys)
            yield from _offer(sink, checkpoint.end_frame(num_records=num_records, rows=rows))
            return {"rows": rows, "num_owned_buckets": len(holding.owned), "routing_epoch": holding.routing.epoch}

        self._add("update", work(), lambda result, error: self._answer([answer], result, error))

    def restore(self, records: Iterable[Record], expired: dict[str, list[int]], answer: Future[int]) -> None:
        """Drop every row, then load the records of owned buckets. `answer`: how many rows."""

        def work() -> Generator[None, None, int]:
            holding = self._placed()
            for waiting in self._groups.clear():
                self._fail(waiting.answers, WrongEpochError("a restore began while other ranks were missing"))
            self._group_steps.clear()
            holding.clear()
            num_rows = 0
            for record in records:
                num_rows += holding.load(record, now=self._clock())
                yield
            for table, ids in expired.items():
                holding.applied[table].load_expired(ids)
            return num_rows

        self._add("alone", work(), lambda result, error: self._answer([answer], result, error))

    # Inside.

    def _placed(self) -> Holding:
        if self.holding is None:
            raise WrongEpochError(
                "this shard has no place in a cluster yet; it must be assigned, and restored if it had rows"
            )
        return self.holding

    def _make_room(self, holding: Holding) -> None:
        """Begin to evict, between the requests, where a table nears its memory limit."""
        for evictor in holding.evictions.values():
            running = evictor.make_room(holding.owned)
            if running is not None:
                self._add("yielding", running, lambda result, error: self._answer([], result, error))

    def _add(
        self, mode: Mode, running: Generator[None, None, Any], finished: Callable[[Any, Exception | None], None]
    ) -> None:
        self._schedule.add(Job(mode, running, finished))

    def _answer(self, answers: Iterable[Future[Any]], result: Any, error: Exception | None) -> None:
        if error is not None:
            self._fail(answers, error)
            return
        for answer in answers:
            if answer.set_running_or_notify_cancel():
                answer.set_result(result)

    def _fail(self, answers: Iterable[Future[Any]], error: Exception) -> None:
        if not isinstance(error, WeirError):
            _log.error("a job failed unexpectedly", exc_info=error)
        for answer in answers:
            self.num_failed += 1
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)

    def _expire_clients(self) -> None:
        now = self._clock()
        if self.holding is None or now - self._expired_at < _EXPIRE_EVERY_SECONDS:
            return
        self._expired_at = now
        for applied in self.holding.applied.values():
            applied.expire(now=now, max_clients=self._max_clients, max_idle_seconds=self._max_idle_seconds)


def _offer(sink: Sink, piece: bytes) -> Generator[None, None, None]:
    while not sink(piece):
        yield
    yield
