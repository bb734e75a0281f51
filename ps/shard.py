"""The shard: a state machine without I/O. Events come in, `run_slice` does the next piece of work, answers go out as
futures.

    receive   a checked message of calls        assign    a place in the routing
    save      all rows as frames, to a sink     restore   all rows anew, from records

With a journal (ps/journal/), what an update changed is given to it before the update ends, and whoever waits for the
update is answered when the journal has it.

Single-threaded: ps/work.py owns the thread. The order of work is that of ps/schedule.py; messages that only read are
its reads, assign and restore want to be alone. A save marks as an update does, so the file is one cut; then it goes on
beside updates.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from ps.cut import ALL_ROWS, Mark, Saves, Sink
from ps.deltas.batches import Marker
from ps.deltas.outlet import Outlet
from ps.errors import JournalError, RequestError, WeirError, WrongEpochError
from ps.execution import execute, execute_group, is_new
from ps.holding import Holding
from ps.journal.filling import Filling
from ps.journal.journal import Journal, logged
from ps.journal.recovery import Recovered
from ps.journal.snapshot import SnapshotWriter
from ps.loading import Incoming, replace_rows
from ps.request import CheckedRequest
from ps.routing import Routing
from ps.schedule import Job, Mode, Schedule
from ps.spec import ClusterSpec
from ps.synchronous import Groups, Place
from ps.wire import weir_pb2 as pb

T = TypeVar("T")
SLICE_SECONDS = 0.005
MAX_CLIENTS = 4096
MAX_IDLE_SECONDS = 7 * 86_400.0
_EXPIRE_EVERY_SECONDS = 60.0
_log = logging.getLogger("weir.shard")

OpenJournal: TypeAlias = Callable[[Holding], Journal]
Observer: TypeAlias = Callable[[str, float], None]  # kind "pull", "apply" or "other", seconds from arrival to answer


@dataclass(eq=False)
class _Waiting:
    """A message of a synchronous group and those who wait for its answer."""

    request: CheckedRequest
    answers: list[Future[pb.Reply]]
    arrived: float


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
        recovered: Recovered | None = None,
        open_journal: OpenJournal | None = None,
        takes_over: bool = False,
    ) -> None:
        """recovered: what a journal says of the shard that died here. open_journal: makes one for the first rows.
        takes_over: end a process that still has the shard's partition of deltas.
        """
        self.holding: Holding | None = None
        self.journal: Journal | None = None
        self.open_journal = open_journal
        self.num_failed = 0  # messages answered with an error
        self.late_seconds: dict[int, float] = {}  # by rank: how long others of its group waited for it, the last one
        self._clock = clock
        self._observe = observe
        self._schedule = Schedule(clock, slice_seconds)
        self.outlet = Outlet(self.run_job, clock=clock, takes_over=takes_over, leads=self._leads)
        self._groups: Groups[_Waiting] = Groups()
        self._group_steps: deque[tuple[int, int]] = deque(maxlen=64)  # (generation, step) applied last
        if recovered is not None:
            self.adopt(recovered)
        self._saves = Saves(self._add, self._answer, lambda: self.outlet.next_offset)
        self._running: dict[Place, _Waiting] = {}  # messages of group steps that are being applied
        self._max_clients, self._max_idle_seconds = max_clients, max_idle_seconds
        self._expired_at = clock()

    def adopt(self, recovered: Recovered) -> None:
        """Go on with what another process had. Not after the first assign."""
        self.holding, self.journal = recovered.holding, recovered.journal
        self._group_steps.extend(self.journal.group_steps)
        self._groups.generation = max((generation for generation, _ in self._group_steps), default=0)
        self.outlet.use(self.holding, self.holding.spec.deltas)

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
        self.outlet.poll()
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
            self._answer_update([answer], reply, error) if request.is_update else self._answer([answer], reply, error)
            if request.is_update:  # while a read ends, an update may be half in the journal
                self._after_update(holding)

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
        arrival = self._groups.add(place, _Waiting(request, [answer], self._clock()))
        for waiting, error in arrival.dropped:
            self._fail(waiting.answers, error)
        if arrival.complete is not None:
            first = min(waiting.arrived for waiting in arrival.complete)
            self.late_seconds[place.rank] = self.late_seconds.get(place.rank, 0.0) + self._clock() - first
            self._run_group(holding, place, arrival.complete)

    def _run_group(self, holding: Holding, place: Place, ranks: list[_Waiting]) -> None:
        arrived, requests = self._clock(), [rank.request for rank in ranks]
        places = [replace(place, rank=number) for number in range(place.world)]
        self._running.update(zip(places, ranks, strict=True))

        def work() -> Generator[None, None, list[pb.Reply]]:
            replies = yield from execute_group(holding, requests, now=arrived)
            self._group_steps.append((place.generation, place.step))
            if self.journal is not None:
                self.journal.grouped(place.generation, place.step)
            return replies

        def finished(replies: Any, error: Exception | None) -> None:
            for each in places:
                del self._running[each]
            self._observe("apply", self._clock() - arrived)
            for number, rank in enumerate(ranks):
                self._answer_update(rank.answers, None if error else replies[number], error)
            self._after_update(holding)

        self._add("update", work(), finished)

    # Control.

    def assign(self, spec: ClusterSpec, routing: Routing, shard: int, answer: Future[pb.AssignReply]) -> None:
        """Take a place. The first call brings the tables; later ones move routing forward. `answer` comes when all is
        compiled.
        """

        def work() -> Generator[None, None, pb.AssignReply]:
            if self.holding is not None and self.holding.spec.rows_only() != spec.rows_only():
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
            if self.journal is not None:
                self.journal.respec(spec)
            elif self.open_journal is not None and spec.durability.keeps_journal:
                self.journal = self.open_journal(holding)
            elif spec.durability.keeps_journal:
                raise RequestError("the spec asks for a journal, and this shard was started without a folder for one")
            self.holding = holding
            self.outlet.use(holding, spec.deltas)
            return pb.AssignReply()

        self._add("alone", work(), lambda result, error: self._answer_update([answer], result, error))

    def save(
        self, sink: Sink, answer: Future[dict[str, Any]], marked: Future[None] | None = None, asked: Mark = ALL_ROWS
    ) -> None:
        """Give all rows, as they are when this begins, to the sink as the pieces of a file (ps/checkpoint.py). marked:
        told then. `answer`: what the manifest says of the file.
        """
        self._saves.begin(self._placed, sink, answer, marked, asked)

    def restore(self, incoming: Incoming, answer: Future[int | None]) -> None:
        """Drop every row, then load the records of owned buckets. `answer`: how many rows, or None where nothing was
        done, for there are rows, and records that were not checked could cost them.
        """

        def work() -> Generator[None, None, int | None]:
            holding = self._placed()
            if holding.num_rows and not incoming.is_checked:
                return None
            holding.least_epoch = holding.routing.epoch
            for waiting in self._groups.clear():
                self._fail(waiting.answers, WrongEpochError("a restore began while other ranks were missing"))
            self._group_steps.clear()
            self._saves.cancel("a restore began before all was saved")
            num_rows = yield from replace_rows(holding, incoming, self._clock)
            if self.journal is not None:
                yield from self._journal_all(holding, self.journal)
            return num_rows

        self._add("alone", work(), lambda result, error: self._answer_update([answer], result, error))

    def mark(self, marker: Marker, epoch: int, answer: Future[int]) -> None:
        """Publish a version's marker behind all that has changed so far, in this routing epoch. `answer`: the offset of
        its batch.
        """
        try:
            self._placed()
            self.outlet.mark(marker, epoch, answer)
        except WeirError as error:
            self._fail([answer], error)

    def run(self, mode: Mode, work: Callable[[Holding], Generator[None, None, T]], answer: Future[T]) -> None:
        """Run work on what the shard holds. `answer`: its result, once the journal has what it changed."""

        def placed() -> Generator[None, None, T]:
            return (yield from work(self._placed()))

        self._add(mode, placed(), lambda result, error: self._answer_update([answer], result, error))

    # Inside.

    def _leads(self) -> bool:
        """Whether no other process can have this shard's place. On any thread."""
        return self.journal is None or self.journal.leads

    def _placed(self) -> Holding:
        if self.holding is None:
            raise WrongEpochError(
                "this shard has no place in a cluster yet; it must be assigned, and restored if it had rows"
            )
        return self.holding

    def _after_update(self, holding: Holding) -> None:
        """Begin what updates make necessary, between the requests: to evict, where a table nears its memory limit, and
        to write all rows, where the journal has become long.
        """
        journal = self.journal
        if journal is not None and journal.wants_snapshot:
            self.write_all(journal, journal.begin_snapshot(), deque(holding.held.tolist()))
        for evictor in holding.evictions.values():
            running = evictor.make_room(holding.owned)
            if running is not None:
                self._add("yielding", running, lambda result, error: self._answer([], result, error))

    def write_all(self, journal: Journal, snapshot: SnapshotWriter | Filling, buckets: deque[int]) -> None:
        """Write these buckets to a snapshot or standby; updates run between them."""

        def work() -> Generator[None, None, None]:
            if buckets and not snapshot.is_full:
                yield from snapshot.write_bucket(buckets.popleft(), journal.next_number)

        def finished(_: Any, error: Exception | None) -> None:
            if error is not None or snapshot.failed:
                _log.error("a snapshot or filling was given up: %s", snapshot.failed or error)
                snapshot.give_up()
            elif buckets:
                self.write_all(journal, snapshot, buckets)
            else:
                snapshot.finish()

        self.run_job("update", work(), finished)

    def run_job(
        self, mode: Mode, running: Generator[None, None, Any], finished: Callable[[Any, Exception | None], None]
    ) -> None:
        """Run what changes nothing that the journal would have to write."""
        self._schedule.add(Job(mode, running, finished))

    def _journal_all(self, holding: Holding, journal: Journal) -> Generator[None, None, None]:
        """Write all rows instead of what changed, and wait for the disk."""
        journal.changes.forget()
        outcome: list[bool] = []
        snapshot = journal.begin_snapshot(outcome.append)
        for bucket in holding.owned.tolist():
            yield from snapshot.write_bucket(bucket, journal.next_number)
        snapshot.finish()
        while not outcome:
            time.sleep(0.001)
            yield
        if not outcome[0]:
            raise JournalError(
                f"the restored rows could not be written: {snapshot.failed}; free space and restore again"
            )
        if journal.stream is not None:
            self.write_all(journal, journal.begin_filling(journal.stream), deque(holding.held.tolist()))

    def _add(
        self, mode: Mode, running: Generator[None, None, Any], finished: Callable[[Any, Exception | None], None]
    ) -> None:
        if self.journal is not None and mode != "read":
            running = logged(running, self.journal, each_slice=mode == "yielding")
        self._schedule.add(Job(mode, running, finished))

    def _answer_update(self, answers: Iterable[Future[Any]], result: Any, error: Exception | None) -> None:
        """`_answer`, once the journal has all that happened so far: also what was applied before and is sent again."""
        if self.journal is None:
            self._answer(answers, result, error)
        else:
            journal = self.journal
            journal.after(lambda: self._answer(answers, result, error or journal.refusal))

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
        applied, journal = self.holding.applied, self.journal

        def work() -> Generator[None, None, None]:
            most, longest = self._max_clients, self._max_idle_seconds
            gone = {
                name: each.expire(now=now, max_clients=most, max_idle_seconds=longest) for name, each in applied.items()
            }
            if journal is not None and any(gone.values()):
                journal.changes.note("expired", gone)
            yield

        self._add("update", work(), lambda result, error: self._answer([], result, error))
