"""Pairs of shard processes on this machine: started, ordered (ps/pairing.py), ended when they freeze, started anew."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from ps.errors import JournalError, UnavailableError, WeirError
from ps.pairing import Issued, Order, Seen, message_of, next_order
from ps.security import SecurityOptions
from ps.shard_process import START_SECONDS, ShardProcess
from ps.transport import Transport
from ps.wire import weir_pb2 as pb

_LOOK_SECONDS = 0.05
_STATUS_SECONDS = 1.0
_RESTART_SECONDS = 5.0  # of one that ends before it listens
_ORDER_SECONDS = 600.0  # a long journal is read meanwhile
_log = logging.getLogger("weir.pairs")


class Pair:
    """A thread that keeps the two processes of a shard in their roles."""

    def __init__(
        self,
        shard: int,
        folders: tuple[Path, Path],
        processes: list[ShardProcess],
        transport: Transport,
        *,
        standby_seconds: float,
        fresh: bool = False,
        security: SecurityOptions | None = None,
        start: Callable[..., ShardProcess] = ShardProcess,
    ) -> None:
        """folders: of their journals. processes: theirs are added, and replaced in place. standby_seconds: without an
        answer, after which a process is ended. fresh: drop what the folders have. start: makes a process.
        """
        self.address = ""  # of the primary
        self.is_whole = False  # whether the standby has all rows
        self.num_take_overs = 0
        self._failed: WeirError | None = None  # why there is no primary
        self._shard, self._folders, self._processes, self._security = shard, folders, processes, security
        self._places = (len(processes), len(processes) + 1)
        self._transport, self._seconds, self._start = transport, standby_seconds, start
        self._issued = Issued()
        self._num_looks = 0
        self._addresses = ["", ""]
        self._start_at = [time.monotonic() + _RESTART_SECONDS] * 2
        self._heard_at: dict[ShardProcess, float] = {}
        self._stopping = threading.Event()
        processes += [start(journal=folder, fresh=fresh, is_paired=True, security=security) for folder in folders]
        self._thread = threading.Thread(target=self._run, name=f"weir-pair-{shard}", daemon=True)
        self._thread.start()

    def wait_until_led(self, seconds: float = START_SECONDS) -> None:
        """Until there is a primary. Raises JournalError where no process has all that was acknowledged,
        UnavailableError when it takes too long.
        """
        self._wait(lambda: bool(self.address), "primary", seconds)

    def wait_until_whole(self, seconds: float = START_SECONDS) -> None:
        """Until the standby has all rows, by what both say from now on. Raises as `wait_until_led`."""
        seen = self._num_looks
        self._wait(lambda: self.is_whole and self._num_looks >= seen + 2, "standby with all rows", seconds)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._failed is not None:
                raise self._failed
            if time.monotonic() > deadline:
                raise UnavailableError(f"shard {self._shard} has no {what} after {seconds:g} s; look at its log")
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Give no orders from now on."""
        self._stopping.set()
        self._thread.join(_STATUS_SECONDS * 2)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._step()
            except JournalError as error:
                if not isinstance(self._failed, JournalError):
                    _log.error("shard %d cannot be started: %s", self._shard, error)
                self._failed = error
            except WeirError as error:
                _log.warning("shard %d: %s", self._shard, error)

    def _step(self) -> None:
        seen = self._look()
        order = next_order(seen, self._issued)
        leading = [each for each in seen if each is not None and each.role == "primary"]
        if len(leading) == 1:
            self.address, self._failed = leading[0].address, None
        self.is_whole = order is None and any(each is not None and each.role == "standby" for each in seen)
        self._num_looks += 1
        if order is not None and not self._stopping.is_set():
            self._give(order, seen)

    def _look(self) -> list[Seen | None]:
        asked: list[Future[pb.StatusReply] | None] = []
        for which, place in enumerate(self._places):
            process = self._processes[place]
            self._addresses[which] = process.known_address or self._addresses[which]
            if not process.is_running:
                self._start_anew(which)
            is_up = process.is_running and process.known_address
            if process.is_running and not is_up and time.monotonic() > self._start_at[which] + START_SECONDS:
                process.kill()  # it froze before it listened
            status = pb.StatusRequest()
            asked.append(self._transport.send(is_up, "Status", status, _STATUS_SECONDS) if is_up else None)
        return [self._seen(place, answer) for place, answer in zip(self._places, asked, strict=True)]

    def _start_anew(self, which: int) -> None:
        """At the same port, by which clients know it."""
        ended, now = self._processes[self._places[which]], time.monotonic()
        if not ended.is_up:  # it never listened
            if not self.address and self._failed is None:
                self._failed = UnavailableError(f"a process of shard {self._shard} did not start; its output is above")
            if now < self._start_at[which]:
                return
        self._start_at[which] = now + _RESTART_SECONDS
        place, port = self._places[which], int(self._addresses[which].rpartition(":")[2] or 0)
        self._heard_at.pop(self._processes[place], None)
        self._processes[place].stop()
        self._processes[place] = self._start(
            port=port, journal=self._folders[which], takes_over=True, is_paired=True, security=self._security
        )

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
            self._issued = Issued(order.term, order.place)
        # Whoever served before is gone: a silent process is waited for, or ended.
        message = message_of(order, predecessor_is_dead=True)
        try:
            answer = self._transport.send(process.known_address, "Pair", message, _ORDER_SECONDS)
            while not wait([answer], _LOOK_SECONDS).done:
                if self._stopping.is_set():
                    return
                self._look()  # one that freezes meanwhile is ended, and the answer is an error
            answer.result()
        except JournalError as error:
            _log.error("shard %d: %s", self._shard, error)  # it says that it is damaged when it is asked next
            return
        if order.role == "primary" and target.role == "standby":
            self.num_take_overs += 1
            self.address = target.address
            _log.warning("shard %d: its standby took over at %s", self._shard, self.address)
