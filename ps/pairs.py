"""Pairs of shard processes on this machine: started, ordered (ps/pairing.py), ended when they freeze, started anew."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from ps.errors import JournalError, WeirError
from ps.pairing import Order, Seen, message_of, next_order
from ps.transport import Transport
from ps.wire import weir_pb2 as pb

_LOOK_SECONDS = 0.05
_STATUS_SECONDS = 1.0
_ORDER_SECONDS = 600.0  # a long journal is read meanwhile
_log = logging.getLogger("weir.pairs")


class Process(Protocol):
    """As ps.placement.ShardProcess."""

    @property
    def is_running(self) -> bool: ...

    @property
    def known_address(self) -> str:
        """Empty before it listens."""
        ...

    def kill(self) -> None: ...


P = TypeVar("P", bound=Process)


class Pair(Generic[P]):
    """A thread that keeps the two processes of a shard in their roles."""

    def __init__(
        self,
        shard: int,
        processes: list[P],
        places: tuple[int, int],
        start: Callable[[int], P],
        transport: Transport,
        *,
        standby_seconds: float,
    ) -> None:
        """processes: replaced in place, at `places`. start: a new process for one of these, with the same port and
        folder. standby_seconds: without an answer, after which a process is ended.
        """
        self.address = ""  # of the primary
        self.is_whole = False  # whether the standby has all rows
        self.num_take_overs = 0
        self.failed: JournalError | None = None
        self._shard, self._processes, self._places, self._start = shard, processes, places, start
        self._transport, self._seconds = transport, standby_seconds
        self._issued = 0
        self._heard_at: dict[P, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"weir-pair-{shard}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give no orders from now on."""
        self._stopping.set()
        self._thread.join(_STATUS_SECONDS * 2)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._step()
            except JournalError as error:
                if self.failed is None:
                    _log.error("shard %d cannot be started: %s", self._shard, error)
                self.failed = error
            except WeirError as error:
                _log.warning("shard %d: %s", self._shard, error)

    def _step(self) -> None:
        seen = self._look()
        order = next_order(seen, self._issued)
        leading = [each for each in seen if each is not None and each.role == "primary"]
        if len(leading) == 1:
            self.address = leading[0].address
        self.is_whole = order is None and any(each is not None and each.role == "standby" for each in seen)
        if order is not None and not self._stopping.is_set():
            self._give(order, seen)

    def _look(self) -> list[Seen | None]:
        asked: list[Future[pb.StatusReply] | None] = []
        for place in self._places:
            process = self._processes[place]
            if not process.is_running:
                self._heard_at.pop(process, None)
                if not self._stopping.is_set():
                    self._processes[place] = self._start(place)
                asked.append(None)
            elif process.known_address:
                status = pb.StatusRequest()
                asked.append(self._transport.send(process.known_address, "Status", status, _STATUS_SECONDS))
            else:
                asked.append(None)
        return [self._seen(place, answer) for place, answer in zip(self._places, asked, strict=True)]

    def _seen(self, place: int, answer: Future[pb.StatusReply] | None) -> Seen | None:
        if answer is None:
            return None
        process, now = self._processes[place], time.monotonic()
        if answer.exception() is None:
            self._heard_at[process] = now
            return Seen.of(answer.result().pair, process.known_address)
        if not process.is_running:
            return None
        if now - self._heard_at.setdefault(process, now) > self._seconds:
            _log.error("shard %d: a process is silent for %.0f s and is ended", self._shard, self._seconds)
            process.kill()
        return Seen("silent")

    def _give(self, order: Order, seen: Sequence[Seen | None]) -> None:
        process, target = self._processes[self._places[order.place]], seen[order.place]
        if order.role == "end":
            process.kill()
            return
        assert target is not None
        if order.role == "primary":
            self._issued = order.term
        # Whoever served before is gone: a silent process is waited for, or ended.
        message = message_of(order, predecessor_is_dead=True)
        try:
            self._transport.send(process.known_address, "Pair", message, _ORDER_SECONDS).result()
        except JournalError as error:
            _log.error("shard %d: %s", self._shard, error)  # it says that it is damaged when it is asked next
            return
        if order.role == "primary" and target.role == "standby":
            self.num_take_overs += 1
            self.address = target.address
            _log.warning("shard %d: its standby took over at %s", self._shard, self.address)
