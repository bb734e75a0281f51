"""One logical operation: a message to every shard concerned, sent again until each has answered. All retries live here.

    not the shard's epoch (WrongEpochError)   ask where the shards are now, split again what was not answered, send
    queue full (OverloadedError)              back off and send, for at most `overloaded_seconds`
    cannot reach shared memory (NotSharedError)   send bytes, from now on
    not reached (UnavailableError)            ask, back off and send, for at most `unavailable_seconds`
    anything else, and no answer in time      final

A message sent again carries the same client and sequence, so whatever a shard has applied already it skips.
Threads: small rounds are sent by the caller, large ones by one thread a client; answers arrive on the transport's
threads; tries after the first run on another thread a client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ps.errors import NotSharedError, OverloadedError, RowsLostError, UnavailableError, WeirError, WrongEpochError
from ps.options import RetryOptions
from ps.routing import Positions, Routing, count
from ps.sending import Later, Sender
from ps.shared_memory import IS_AVAILABLE, Buffer, Pool, is_this_machine
from ps.tally import Tally
from ps.transport import ClosedError, TimedOutError, Transport
from ps.wire import weir_pb2 as pb

T = TypeVar("T")
_LARGE_KEYS = 4096


class Directory(Protocol):
    """Where the shards are. Calls may block for a few seconds."""

    def routing(self) -> Routing:
        """The newest routing. Raises RowsLostError for a shard that came back empty, UnavailableError when nobody
        answers.
        """
        ...

    def propose(self, owners: NDArray[np.int32] | None = None) -> Routing:
        """A routing of a higher epoch over the shards that live now. owners: int32 [num_buckets]; default: same."""
        ...

    def commit(self, routing: Routing) -> None:
        """The proposed routing is assigned: it is the one from now on."""
        ...


@dataclass(eq=False)
class Part:
    """What one shard does of a round. positions: by table, of its keys among the round's. buffer: shared with the shard
    while a message is on its way.
    """

    shard: int
    positions: dict[str, Positions] = field(default_factory=dict)
    epoch: int = 0
    tries: int = 0
    failing_since: float | None = None
    buffer: Buffer | None = None


class Work(Protocol):
    """What a round is about. accept is called once a part, one at a time."""

    @property
    def what(self) -> str:
        """For messages: "push of step 7 to table 'user'"."""
        ...

    def split(self, routing: Routing) -> list[Part]: ...

    def split_again(self, part: Part, routing: Routing) -> list[Part] | None:
        """The part under another routing, or None: the round has to start anew (accept has been undone)."""
        ...

    def request(self, part: Part, routing: Routing, pool: Pool | None) -> pb.Request:
        """The message of a part; pool: set `part.buffer` from it to share large arrays with the shard."""
        ...

    def accept(self, part: Part, request: pb.Request, reply: pb.Reply) -> None: ...


class Future(Generic[T]):
    """The outcome of a round. `wait` gives it, again and again, on any thread."""

    def __init__(self, inner: futures.Future[None], finish: Callable[[], T]) -> None:
        self._inner = inner
        self._finish: Callable[[], T] | None = finish
        self._value: T | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self.was_waited_for = False

    def wait(self, timeout_seconds: float | None = None) -> T:
        """Block until every shard has answered; return the result or raise the error. Raises TimeoutError after
        timeout_seconds.
        """
        if not futures.wait([self._inner], timeout_seconds).done:
            raise TimeoutError(f"no answer yet after {timeout_seconds:g} s; the round goes on")
        with self._lock:
            self.was_waited_for = True
            if self._finish is not None:
                finish, self._finish = self._finish, None
                self._error = self._inner.exception()
                if self._error is None:
                    try:
                        self._value = finish()
                    except WeirError as error:
                        self._error = error
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._value  # type: ignore[return-value]

    def block(self) -> None:
        """Wait for the outcome without looking at it."""
        futures.wait([self._inner])

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._inner.done()


class Connection:
    """A client's line to a cluster: transport, newest known routing, and the thread of later tries."""

    def __init__(
        self,
        cluster: str,
        transport: Transport,
        directory: Directory,
        *,
        routing: Routing,
        retry: RetryOptions,
        tally: Tally,
        share_from_bytes: int | None = None,
        recovery_seconds: float = 0.0,
    ) -> None:
        """share_from_bytes: arrays of a message that take so many bytes go to shared memory; None: never.
        recovery_seconds: how long a shard that died may take to come back; 0: it does not.
        """
        self.cluster = cluster
        self.transport = transport
        self.directory = directory
        self.routing = routing
        self.retry = retry
        self.recovery_seconds = recovery_seconds
        self.tally = tally
        self.later = Later()
        self.sender = Sender()
        self._asked_at = float("-inf")
        self._pool = Pool(share_from_bytes) if share_from_bytes is not None and IS_AVAILABLE else None
        self._sharing: dict[str, bool] = {}  # by address

    def start(self, work: Work, finish: Callable[[], T]) -> Future[T]:
        """Send a round."""
        return Future(Round(self, work).start(), finish)

    def newest_routing(self) -> Routing:
        """Asks the directory. Raises what it raises."""
        self.routing = self.directory.routing()
        return self.routing

    def find_shards(self, known_epoch: int) -> None:
        """Ask the directory, unless a newer routing is known or it was asked a moment ago. Raises RowsLostError."""
        if self.routing.epoch > known_epoch or time.monotonic() < self._asked_at + self.retry.first_backoff_seconds:
            return
        try:
            found = self.directory.routing()
        except UnavailableError:
            return  # shards go on without their coordinator; the try that follows says what is missing
        finally:
            self._asked_at = time.monotonic()
        moved = found.epoch == self.routing.epoch and found.addresses != self.routing.addresses
        if found.epoch > self.routing.epoch or moved:
            self.routing = found

    def pool_for(self, address: str) -> Pool | None:
        """Memory that the shard at this address can reach, or None."""
        if self._pool is None or not self.transport.crosses_processes:
            return None
        if address not in self._sharing:
            self._sharing[address] = is_this_machine(address)
        return self._pool if self._sharing[address] else None

    def stop_sharing(self, address: str) -> None:
        """The shard there has no way to this process's memory."""
        self._sharing[address] = False

    def take_back(self, part: Part, *, reusable: bool) -> None:
        """The part's message is answered, or given up: then the shard may still read and write the buffer."""
        buffer, part.buffer = part.buffer, None
        if buffer is not None and self._pool is not None:
            self._pool.give_back(buffer, reusable=reusable)

    def close(self) -> None:
        """Rounds on their way fail with UnavailableError."""
        self.transport.close()
        self.sender.close()
        self.later.close()
        if self._pool is not None:
            self._pool.close()


class Round:
    """The parts of one operation on their way."""

    def __init__(self, connection: Connection, work: Work) -> None:
        self._connection = connection
        self._work = work
        self._outcome: futures.Future[None] = futures.Future()
        self._open: set[Part] = set()
        self._lock = threading.RLock()

    def start(self) -> futures.Future[None]:
        routing = self._connection.routing
        parts = self._work.split(routing)
        self._open.update(parts)
        if not parts:
            self._outcome.set_result(None)
        num_keys = sum(count(positions) for part in parts for positions in part.positions.values())
        self._connection.sender.run(lambda: self._send_all(parts, routing), is_large=num_keys >= _LARGE_KEYS)
        return self._outcome

    def _send_all(self, parts: list[Part], routing: Routing) -> None:
        try:
            for part in parts:
                self._send(part, routing)
        except Exception as failure:  # may run on another thread: the waiter must hear of it
            self._fail(failure)

    def _send(self, part: Part, routing: Routing) -> None:
        part.epoch, part.tries = routing.epoch, part.tries + 1
        connection, address = self._connection, routing.addresses[part.shard]
        request = self._work.request(part, routing, connection.pool_for(address))
        connection.tally.add(bytes_sent=request.ByteSize(), bytes_shared=_shared_bytes(request))
        answer = connection.transport.send(address, "Execute", request, connection.retry.timeout_seconds)
        answer.add_done_callback(lambda done: self._answered(part, request, done))

    def _answered(self, part: Part, request: pb.Request, done: futures.Future[pb.Reply]) -> None:
        error = done.exception()
        if error is not None:
            # Without an answer the shard may come to the message yet.
            self._connection.take_back(part, reusable=not isinstance(error, UnavailableError))
            self._try_later(part, error)
            return
        try:
            self._accept(part, request, done.result())
        finally:
            self._connection.take_back(part, reusable=True)

    def _accept(self, part: Part, request: pb.Request, reply: pb.Reply) -> None:
        with self._lock:
            if part not in self._open:
                return  # of a round that has started anew or failed meanwhile
            self._connection.tally.add(bytes_received=reply.ByteSize())
            try:
                self._work.accept(part, request, reply)
            except (
                Exception
            ) as failure:  # a reply that does not fit its request must reach the waiter, whatever it raises
                self._fail(failure)
                return
            self._open.discard(part)
            if not self._open:
                self._outcome.set_result(None)

    def _try_later(self, part: Part, error: BaseException) -> None:
        retry, now = self._connection.retry, time.monotonic()
        if part.failing_since is None:
            part.failing_since = now
        unavailable_seconds = max(retry.unavailable_seconds, self._connection.recovery_seconds)
        patience = retry.overloaded_seconds if isinstance(error, OverloadedError) else unavailable_seconds
        retriable = isinstance(error, OverloadedError | WrongEpochError | UnavailableError | NotSharedError)
        if not retriable or isinstance(error, TimedOutError | ClosedError) or now - part.failing_since >= patience:
            self._fail(self._explained(part, error))
            return
        self._connection.tally.add(retries=1)
        pause = min(retry.max_backoff_seconds, retry.first_backoff_seconds * 2 ** min(part.tries - 1, 16))
        if isinstance(error, NotSharedError):
            pause = 0.0
        if not self._connection.later.run(pause, lambda: self._try_again(part, error)):
            self._fail(self._explained(part, ClosedError("the client was closed")))

    def _try_again(self, part: Part, error: BaseException) -> None:
        try:
            routing = self._connection.routing
            if isinstance(error, NotSharedError):
                self._connection.stop_sharing(routing.addresses[part.shard])
            elif not isinstance(error, OverloadedError):
                self._connection.find_shards(part.epoch)
                routing = self._connection.routing
            if routing.epoch == part.epoch:
                self._send(part, routing)
                return
            with self._lock:
                if part not in self._open:
                    return
                parts = self._work.split_again(part, routing)
                if parts is None:
                    self._open.clear()
                    parts = self._work.split(routing)
                for each in parts:
                    each.tries, each.failing_since = part.tries, part.failing_since
                # In one step: between them the round would look finished to an answer that arrives.
                self._open.discard(part)
                self._open.update(parts)
            for each in parts:
                self._send(each, routing)
        except Exception as failure:  # runs on its own thread: the waiter must hear of it
            self._fail(failure)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._open.clear()
            if not self._outcome.done():
                self._outcome.set_exception(error)

    def _explained(self, part: Part, error: BaseException) -> BaseException:
        """The error with its place and remedy."""
        routing, cluster = self._connection.routing, self._connection.cluster
        shard = f"shard {part.shard} of cluster {cluster!r}"
        if part.shard < routing.num_shards:
            shard += f" at {routing.addresses[part.shard]}"
        place = f"{self._work.what}: {shard}"
        if isinstance(error, TimedOutError):
            return UnavailableError(
                f"{place} is frozen or overloaded: {error}; look at its process, or raise timeout_seconds"
            )
        if isinstance(error, ClosedError):
            return UnavailableError(f"{place}: {error} before it answered")
        if isinstance(error, UnavailableError):
            remedy = "its rows are gone if its process died: start the cluster again and restore a checkpoint"
            if self._connection.recovery_seconds:
                remedy = "it should have come back with what its journal has: look at its log"
            return UnavailableError(f"{place} cannot be reached after {part.tries} tries ({error}); {remedy}")
        if isinstance(error, OverloadedError):
            return OverloadedError(
                f"{place} stayed overloaded for {part.tries} tries ({error}); add shards or slow down"
            )
        if isinstance(error, WrongEpochError):
            return WrongEpochError(f"{place} refused the routing of epoch {part.epoch} {part.tries} times ({error})")
        if isinstance(error, WeirError) and not isinstance(error, RowsLostError):
            return type(error)(f"{place}: {error}")
        return error


def _shared_bytes(request: pb.Request) -> int:
    return sum(
        call.shared_keys.length + call.shared_payload.length + call.shared_reply.length for call in request.calls
    )
