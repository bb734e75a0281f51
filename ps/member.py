"""A process of a pair: primary or standby of a shard. It does what the one authority over the pair orders, in terms
that rise; ps/pairing.py decides, this file is the process's side of it.

    undecided   just started: its folder is locked, and nothing of it is read but its role
    primary     the shard; its updates wait for the standby once that has all rows
    fenced      a primary whose standby took over while it was frozen or cut off: it serves nothing any more
    empty, filling, standby, broken   what ps/journal/standby.py says of itself
    damaged     its journal cannot be read: it may become a standby, and is then filled by the other process
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

from ps.errors import JournalError, RequestError, UnavailableError, WrongEpochError
from ps.holding import Holding
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.recovery import Recovered, put_aside, recover, remove_journal
from ps.journal.role import Kept, read_role, remove_role, write_role
from ps.journal.segments import find_segments
from ps.journal.standby import Standby
from ps.journal.stream import Stream
from ps.security import SecurityOptions
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from ps.work import WorkThread

T = TypeVar("T")
_log = logging.getLogger("weir.pair")


class Member:
    """Thread-safe; orders run one after another."""

    def __init__(
        self,
        work: WorkThread,
        folder: Path,
        *,
        takes_over: bool = False,
        fresh: bool = False,
        security: SecurityOptions | None = None,
    ) -> None:
        """takes_over: end a process that still has the folder. fresh: drop what the folder has. Raises JournalError for
        a folder that another process has.
        """
        self._work, self._folder = work, folder
        self._transport = GrpcTransport(security)
        self._lock = Lock(folder, takes_over=takes_over)
        self._role: Literal["undecided", "primary", "following", "taking over", "damaged"] = "undecided"
        self._problem, self._other, self._has_standby = "", "", False
        self._standby: Standby | None = None
        self._stream: Stream | None = None
        self._ordering = threading.Lock()
        if fresh:
            remove_journal(folder)
            remove_role(folder)
        try:
            self._kept = read_role(folder)
            if not self._kept.role and find_segments(folder):
                self._kept = Kept(0, "primary")  # of a shard that had no standby before
        except JournalError as error:
            self._kept = Kept()
            self._role, self._problem = "damaged", str(error)
        self.term = self._kept.term
        work.shard.open_journal = self._open_journal

    @property
    def role(self) -> str:
        """As the list at the top of this file."""
        if self._role == "following" and self._standby is not None:
            return self._standby.role
        journal = self._work.shard.journal
        if self._role == "primary" and journal is not None and journal.refusal is not None:
            return "fenced"
        return "standby" if self._role == "taking over" else self._role

    def status(self) -> pb.PairStatus:
        """What it is, at once."""
        return pb.PairStatus(
            role=self.role,
            term=self.term,
            other=self._other,
            has_standby=self._has_standby,
            kept=self._kept.role,
            problem=self._problem,
        )

    def order(self, request: pb.PairRequest) -> pb.PairReply:
        """Take a role. Raises RequestError for an order that is too old or does not fit what this process is,
        JournalError for a journal that cannot be read.
        """
        with self._ordering:
            if request.term <= self.term:
                raise RequestError(f"an order of term {request.term}; this process is at {self.term}")
            if request.role == "primary":
                self._lead(request)
            elif request.role == "standby":
                self._follow(request)
            else:
                raise RequestError(f"a pair has no role {request.role!r}")
            _log.warning("%s: %s at term %d", self._folder.name, request.role, request.term)
        return pb.PairReply()

    def replicate(self, request: pb.ReplicateRequest) -> Future[None]:
        """Take a message of the primary. Raises WrongEpochError where this process has taken its place."""
        standby = self._standby
        if self._role in ("primary", "taking over"):
            raise WrongEpochError(
                f"term {request.term} is over: its standby is the primary, at term {max(self.term, request.term + 1)}"
            )
        if standby is None or request.term != standby.term:
            raise UnavailableError(f"this process is no standby of term {request.term}")

        def take(answer: Future[None]) -> None:
            job = standby.receive(request.number, request.frames, answer)
            if job is not None:
                self._work.shard.run_job("update", job, lambda _, error: self._trim(standby))

        return self._work.submit(take)

    def close(self) -> None:
        """Let the folder go. After the thread of work ended."""
        if self._standby is not None:
            self._standby.close()
        self._transport.close()
        self._lock.close()

    # As a primary.

    def _lead(self, request: pb.PairRequest) -> None:
        term = request.term
        if self.role == "standby":
            self._take_over(request)
        elif self._role == "undecided" and self._kept.role != "filling":
            self._recover(term)
        elif self._role != "primary" or self.role == "fenced":
            raise RequestError(f"a process that is {self.role} cannot become the primary")
        else:
            self._keep(Kept(term, "primary"))
        # Only now that the folder says so: from here on updates may be acknowledged without the old standby.
        if self._stream is not None:
            self._stream.release()
        self._stream = None
        self._role, self._other, self._has_standby = "primary", request.other, request.has_standby
        self._work.standby = request.other
        if request.has_standby:
            self._alone(self._connect)

    def _recover(self, term: int) -> None:
        try:
            recovered = recover(self._folder, self._lock, now=time.monotonic())
        except JournalError as error:
            self._role, self._problem = "damaged", str(error)
            raise
        self._keep(Kept(term, "primary"))
        if recovered is not None:
            self._adopt(recovered)

    def _take_over(self, request: pb.PairRequest) -> None:
        standby = self._standby
        assert standby is not None
        self._role = "taking over"  # from here on the old primary is refused
        self._work.shard.outlet.takes_over = True
        if not request.predecessor_is_dead:
            self._outlast_lease(standby)
        self._keep(Kept(request.term, "primary"))
        self._adopt(None)
        self._standby = None

    def _outlast_lease(self, standby: Standby) -> None:
        """Wait until the primary before, wherever it is, serves nothing any more."""
        answered = threading.Event()
        journal = standby.recovered().journal
        self._alone(lambda: journal.after(answered.set))  # behind the messages that were taken in before
        answered.wait(standby.seconds)
        time.sleep(max(0.0, standby.answered_at + standby.seconds - time.monotonic()))

    def _adopt(self, recovered: Recovered | None) -> None:
        """Become the shard, with what was recovered or what the standby has."""

        def adopt() -> None:
            found = recovered or (None if self._standby is None else self._standby.recovered())
            assert found is not None
            self._work.shard.adopt(found)

        self._alone(adopt)

    def _open_journal(self, holding: Holding) -> Journal:
        """The journal of a shard that had none, on the thread of work."""
        journal = Journal(self._folder, self._lock, holding)
        if self._has_standby:
            self._connect_to(holding, journal)
        return journal

    def _connect(self) -> None:
        holding, journal = self._work.shard.holding, self._work.shard.journal
        if holding is not None and journal is not None and self._stream is None:
            self._connect_to(holding, journal)

    def _connect_to(self, holding: Holding, journal: Journal) -> None:
        options, other = holding.spec.durability, self._other

        def deliver(term: int, number: int, frames: bytes) -> Future[Any]:
            message = pb.ReplicateRequest(term=term, number=number, frames=frames)
            return self._transport.send(other, "Replicate", message, options.standby_seconds)

        self._stream = Stream(
            self.term,
            deliver,
            seconds=options.standby_seconds,
            standby=other,
            max_backlog_bytes=options.backlog_bytes,
        )
        self._work.shard.write_all(journal, journal.begin_filling(self._stream), deque(holding.held.tolist()))

    # As a standby.

    def _follow(self, request: pb.PairRequest) -> None:
        if self._role in ("primary", "taking over"):
            raise RequestError(f"a process that is {self.role} does not become a standby: start it anew")
        if self._role == "damaged":
            _log.error("what %s had is put aside in %s", self._folder, put_aside(self._folder))

        def follow() -> None:
            if self._standby is not None:
                self._standby.close()
            self._standby = Standby(self._folder, self._lock, request.term)

        self._alone(follow)
        self.term, self._role, self._other, self._has_standby = request.term, "following", request.other, False
        self._kept, self._problem = Kept(request.term, "filling"), ""

    def _trim(self, standby: Standby) -> None:
        """Write a snapshot where the journal has become long."""
        if self._standby is standby and (snapshot := standby.begin_snapshot()) is not None:
            recovered = standby.recovered()
            self._work.shard.write_all(recovered.journal, snapshot, deque(recovered.holding.held.tolist()))

    # Inside.

    def _keep(self, kept: Kept) -> None:
        write_role(self._folder, kept)
        self._kept, self.term = kept, kept.term

    def _alone(self, do: Callable[[], None]) -> None:
        """Run on the thread of work while nothing else does."""

        def work() -> Generator[None, None, None]:
            do()
            yield

        def event(answer: Future[None]) -> None:
            self._work.shard.run_job(
                "alone",
                work(),
                lambda _, error: answer.set_result(None) if error is None else answer.set_exception(error),
            )

        self._work.submit(event).result()
