"""A shard's one thread of work, and the entry that every transport calls: decode and check at the caller, then one
queue.

Thread-safe. The shard itself is touched by the thread of work only; `status` and metrics read its counters from
outside.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeAlias, TypeVar

import msgpack
import numpy as np
from pydantic import ValidationError

from ps import checkpoint
from ps.cut import Mark
from ps.deltas.batches import Marker
from ps.errors import CheckpointError, OverloadedError, RequestError, UnavailableError, WrongEpochError
from ps.giving import give, read_buckets
from ps.holding import Holding
from ps.loading import Incoming
from ps.mapping import decode_mapping
from ps.memory_limits import Threshold, check_limits, shards_beside, thresholds_here
from ps.moving import take
from ps.pipe import Pipe
from ps.places import is_uri
from ps.psfunc import BucketNumbers
from ps.record import Buffer
from ps.request import check_request
from ps.restoring import Restoration
from ps.routing import Routing
from ps.schedule import Mode
from ps.security import Limits
from ps.shard import Shard
from ps.shared_memory import Mappings
from ps.spec import ClusterSpec
from ps.wire import weir_pb2 as pb

DEFAULT_CAPACITY = 256
_MAX_BUFFERED_PIECES = 64  # of a file being saved; four are a record of at most 4096 rows
T = TypeVar("T")
SendPart: TypeAlias = Callable[[str, pb.TakeRequest], Future[Any]]
_log = logging.getLogger("weir.work")


class WorkThread:
    """Starts the thread of a shard. capacity: messages that may wait before OverloadedError. thresholds: below which
    the tables' memory limits must lie.

    send: how parts of buckets reach the shard at an address. Those that wait for other ranks of a synchronous group do
    not count.
    """

    def __init__(
        self,
        shard: Shard,
        capacity: int = DEFAULT_CAPACITY,
        thresholds: Callable[[], Sequence[Threshold]] = thresholds_here,
        limits: Limits | None = None,
        send: SendPart | None = None,
    ) -> None:
        self.shard = shard
        self.capacity = capacity
        self.num_overloaded = 0
        self.standby = ""  # address of the other process of a pair
        self._thresholds = thresholds
        self._limits = limits or Limits()
        self._send = send
        self._mappings = Mappings()
        self._started = time.monotonic()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._begun: tuple[int, Future[pb.SaveReply]] | None = None  # number of the latest save that was begun
        self._saving = threading.Lock()  # two files at once would share one temporary name
        self._open: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="weir-work", daemon=True)
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """Messages that were taken in and are not done, those waiting for other ranks aside."""
        return self._inbox.qsize() + self.shard.num_jobs

    def execute(self, request: pb.Request) -> Future[pb.Reply]:
        """Check a message and enqueue it. Raises RequestError for a mistake in it, OverloadedError when the queue is
        full.
        """
        holding = self.shard.holding
        if holding is None:
            raise WrongEpochError(
                "this shard has no place in a cluster yet; it must be assigned, and restored if it had rows"
            )
        self._check_leads()
        journal = self.shard.journal
        checked = check_request(request, holding.spec, self._mappings, self._limits)
        if checked.is_update and journal is not None and (trouble := journal.trouble):
            self.num_overloaded += 1
            raise OverloadedError(f"shard {holding.shard} takes no updates: {trouble}")
        if self.queue_depth >= self.capacity:
            self.num_overloaded += 1
            raise OverloadedError(
                f"shard {holding.shard} has {self.capacity} messages waiting; back off and send again"
            )
        return self._submit(lambda answer: self.shard.receive(checked, answer))

    def assign(self, request: pb.AssignRequest) -> Future[pb.AssignReply]:
        """Take a place. Raises RequestError for a spec or routing that cannot be read, and for memory limits that this
        node does not allow.
        """
        try:
            spec = ClusterSpec.model_validate_json(request.cluster_spec)
        except ValidationError as error:
            raise RequestError(f"the cluster spec cannot be read: {error}") from error
        if len(request.routing.owners) % 4:
            raise RequestError(
                f"routing owners take {len(request.routing.owners)} bytes, which is no whole number of int32"
            )
        routing = Routing.from_message(request.routing)
        if self.shard.holding is None and request.shard < routing.num_shards:
            beside = shards_beside(routing.addresses, request.shard, self.standby)
            check_limits(spec, beside, self._thresholds())
        return self._submit(lambda answer: self.shard.assign(spec, routing, request.shard, answer))

    def save(
        self, directory: str, cut: int = 0, *, begin: bool = False, since: int = 0, tracks: bool = False
    ) -> pb.SaveReply:
        """Write a file of all rows, as they are at one instant, under `directory`, on the caller's thread. Raises
        CheckpointError.

        begin: return once the instant is marked, and write on a thread of its own; the same call without `begin` then
        waits for the end. cut: number of the save, which tells both together. One that is never fetched is forgotten
        when the next one begins. since, tracks: as ps.cut.Mark has them.
        """
        folder, asked = _rooted(directory), Mark(cut, since, tracks)
        if not cut:
            return self._save(folder, Future(), asked)
        if not begin:
            number, pending = self._begun or (0, None)
            if number != cut or pending is None:
                raise CheckpointError("this shard was started anew since the save began, or began another; save again")
            return pending.result()
        marked: Future[None] = Future()
        saved: Future[pb.SaveReply] = Future()

        def work() -> None:
            try:
                saved.set_result(self._save(folder, marked, asked))
            except BaseException as error:
                saved.set_exception(error)

        threading.Thread(target=work, name="weir-save", daemon=True).start()
        either: list[Future[Any]] = [marked, saved]
        wait(either, return_when=FIRST_COMPLETED)
        if not marked.done():
            return saved.result()  # raises: it failed before the mark
        self._begun = (cut, saved)
        return pb.SaveReply()

    def _save(self, folder: str, marked: Future[None], asked: Mark) -> pb.SaveReply:
        with self._saving:
            holding = self._placed()
            pipe = Pipe(_MAX_BUFFERED_PIECES, self._inbox.put)

            def arriving() -> Iterator[Buffer]:
                yield from pipe
                done.result()

            done: Future[dict[str, Any]] = self._submit(lambda answer: self.shard.save(pipe, answer, marked, asked))
            done.add_done_callback(lambda _: pipe.end())
            try:
                part = checkpoint.write_part(folder, holding.shard, holding.routing.num_shards, arriving())
            finally:
                pipe.stop()
            return pb.SaveReply(manifest=msgpack.packb({**part, **done.result()}))

    def restore(self, directory: str, mapping: bytes = b"", event_time: int = 0) -> pb.RestoreReply:
        """Load the files under `directory`. Damaged ones, and those that do not fit, change nothing: where there are
        rows, all is read and checked on the caller's thread before. mapping: encode_mapping of ps/mapping.py.
        event_time: as Converter has it.
        """
        holding = self._placed()
        manifest = checkpoint.read_manifest(_rooted(directory))
        found = Restoration(manifest, holding.spec, decode_mapping(mapping), event_time=event_time)
        owns, first = np.isin(np.arange(holding.spec.num_buckets), holding.owned), holding.shard

        def load(*, is_checked: bool) -> int | None:
            if is_checked:
                for _ in found.records(owns, first=first, convert=False):
                    pass  # reading checks every byte of what will be loaded
            incoming = Incoming(found.records(owns, first=first), found.expired, found.num_rows(owns), is_checked)
            loaded: Future[int | None] = self._submit(lambda answer: self.shard.restore(incoming, answer))
            return loaded.result()

        num_rows = None if holding.num_rows else load(is_checked=False)
        if num_rows is None:  # there are rows, or came meanwhile
            num_rows = load(is_checked=True)
        return pb.RestoreReply(num_rows=num_rows)

    def submit(self, event: Callable[[Future[T]], None]) -> Future[T]:
        """Run what resolves the future on the thread of work. Raises UnavailableError once it was closed."""
        return self._submit(event)

    def run(self, mode: Mode, work: Callable[[Holding], Generator[None, None, T]]) -> Future[T]:
        """Enqueue work on what the shard holds."""
        return self._submit(lambda answer: self.shard.run(mode, work, answer))

    def give(self, request: pb.GiveRequest) -> pb.GiveReply:
        """Give buckets to another shard, on the caller's thread. Raises what either shard meets."""
        holding, buckets = self._placed(), self._checked_buckets(request.buckets)
        if self._send is None:
            raise RequestError("this shard was started without a way to others")
        if request.routing_epoch != holding.routing.epoch:
            raise WrongEpochError(f"routing epoch {request.routing_epoch}, this shard is at {holding.routing.epoch}")
        send, address = self._send, request.address
        return give(self, buckets, lambda part: send(address, part), request.routing_epoch)

    def take(self, request: pb.TakeRequest) -> Future[pb.TakeReply]:
        """Take a part of what another shard gives."""
        buckets, epoch = self._checked_buckets(request.buckets), request.routing_epoch

        def work(holding: Holding) -> Generator[None, None, pb.TakeReply]:
            if epoch != holding.routing.epoch:
                raise WrongEpochError(f"a part of routing epoch {epoch}, this shard is at {holding.routing.epoch}")
            yield from take(holding, buckets, request.frames, request.windows, now=time.monotonic())
            return pb.TakeReply()

        return self.run("update", work)

    def mark(self, request: pb.MarkRequest) -> Future[pb.MarkReply]:
        """Put a version's marker behind all that has changed so far. Raises RequestError where nothing is published,
        WrongEpochError where the routing is another one, or moves meanwhile.
        """
        self._check_leads()
        marker, reply = Marker(request.version, request.step, request.data_time), Future[pb.MarkReply]()
        marker.check()
        marked: Future[int] = self._submit(lambda answer: self.shard.mark(marker, request.routing_epoch, answer))
        marked.add_done_callback(lambda done: _reply(reply, done))
        return reply

    def deltas(self, request: pb.DeltasRequest, goes_on: Callable[[], bool]) -> Iterator[pb.DeltasReply]:
        """The shard's delta stream, on the caller's thread. goes_on: whether it is still wanted. Raises what
        ps.deltas.serving.replies_of raises, and WrongEpochError where another process may have this shard's place.
        """
        partition = request.partition if request.HasField("partition") else None
        for reply in self.shard.outlet.replies(request.next_offset, goes_on, partition=partition):
            self._check_leads()
            yield reply

    def _check_leads(self) -> None:
        if self.shard.journal is not None:
            self.shard.journal.check_leads()

    def _checked_buckets(self, data: bytes) -> BucketNumbers:
        buckets = read_buckets(data)
        if len(buckets) and not (int(buckets.min()) >= 0 and int(buckets.max()) < self._placed().spec.num_buckets):
            raise RequestError(f"buckets {buckets.tolist()[:8]}: there are {self._placed().spec.num_buckets}")
        return np.unique(buckets)

    def status(self, *, wants_buckets: bool = False, wants_partitions: bool = False) -> pb.StatusReply:
        """What a shard is and holds, at once. wants_buckets: rows by bucket, too; wants_partitions: and those of shards
        that are gone.
        """
        holding, reply = self.shard.holding, pb.StatusReply()
        reply.queue_depth = self.queue_depth
        reply.uptime_seconds = time.monotonic() - self._started
        reply.pid = os.getpid()
        if holding is not None:
            reply.cluster_spec = holding.spec.model_dump_json().encode()
            reply.routing.CopyFrom(holding.routing.to_message())
            reply.shard = holding.shard
            tables = {
                name: {
                    "rows": table.num_rows,
                    "memory_bytes": table.memory_bytes,
                    "bytes_per_row": table.bytes_per_row,
                    "evicted": table.evicted,
                    "refused": table.refused + table.turned_away,
                }
                for name, table in holding.tables.items()
            }
            reply.tables = msgpack.packb(tables)
            if wants_buckets:
                rows = sum(table.rows_per_bucket for table in holding.tables.values())
                reply.bucket_rows = np.asarray(rows, "<i8").tobytes()
            if wants_partitions:
                reply.past_partitions.extend(self.shard.outlet.past_partitions())
        return reply

    def close(self) -> None:
        """End the thread after its current slice. Whatever still waits gets UnavailableError."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()
        self.shard.outlet.close()
        if self.shard.journal is not None:
            self.shard.journal.close()
        with self._lock:
            waiting, self._open = list(self._open), set()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(UnavailableError("the shard was stopped"))

    def _placed(self) -> Holding:
        if self.shard.holding is None:
            raise WrongEpochError("this shard has no place in a cluster yet; it must be assigned first")
        return self.shard.holding

    def _submit(self, event: Callable[[Future[T]], None]) -> Future[T]:
        answer: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise UnavailableError("the shard was stopped")
            self._open.add(answer)
            self._inbox.put(lambda: event(answer))
        answer.add_done_callback(self._forget)
        return answer

    def _forget(self, answer: Future[Any]) -> None:
        with self._lock:
            self._open.discard(answer)

    def _run(self) -> None:
        """The thread: take in all that has come, then one slice of work; sleep only when there is none."""
        idle = True
        while True:
            try:
                event = self._inbox.get(idle, self.shard.outlet.idle_seconds if idle else None)
                while True:
                    if event is None:
                        return
                    event()
                    event = self._inbox.get_nowait()
            except queue.Empty:
                pass
            idle = not self.shard.run_slice()


def _reply(answer: Future[pb.MarkReply], done: Future[int]) -> None:
    if (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(pb.MarkReply(offset=done.result()))


def _rooted(directory: str) -> str:
    """A shard's working folder is not the client's."""
    if "\0" in directory:
        raise RequestError(f"checkpoint folder {directory!r} has a zero byte in its name")
    if not is_uri(directory) and not os.path.isabs(directory):
        raise RequestError(
            f"checkpoint folder {directory!r} is relative; give the path that all shards see, from the root"
        )
    return directory
