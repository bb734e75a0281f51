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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgpack
from pydantic import ValidationError

from ps import checkpoint
from ps.errors import CheckpointError, JournalError, OverloadedError, RequestError, UnavailableError, WrongEpochError
from ps.holding import Holding
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.recovery import recover, remove_journal
from ps.journal.role import read_role, remove_role
from ps.memory_limits import Threshold, check_limits, shards_beside, thresholds_here
from ps.record import Record, layout_digest
from ps.request import check_request
from ps.routing import Routing
from ps.security import Limits
from ps.shard import Observer, Shard
from ps.shared_memory import Mappings
from ps.spec import ClusterSpec
from ps.wire import weir_pb2 as pb

DEFAULT_CAPACITY = 256
_MAX_BUFFERED_PIECES = 16  # of a file being saved; each is at most 4096 rows
_WRITER_PAUSE_SECONDS = 0.001
T = TypeVar("T")
_log = logging.getLogger("weir.work")


class WorkThread:
    """Starts the thread of a shard. capacity: messages that may wait before OverloadedError. thresholds: below which
    the tables' memory limits must lie.

    Those that wait for other ranks of a synchronous group do not count.
    """

    def __init__(
        self,
        shard: Shard,
        capacity: int = DEFAULT_CAPACITY,
        thresholds: Callable[[], Sequence[Threshold]] = thresholds_here,
        limits: Limits | None = None,
    ) -> None:
        self.shard = shard
        self.capacity = capacity
        self.num_overloaded = 0
        self._thresholds = thresholds
        self._limits = limits or Limits()
        self._mappings = Mappings()
        self._started = time.monotonic()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
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
        journal = self.shard.journal
        if journal is not None:
            journal.check_leads()
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
            check_limits(spec, shards_beside(routing.addresses, request.shard), self._thresholds())
        return self._submit(lambda answer: self.shard.assign(spec, routing, request.shard, answer))

    def save(self, directory: str) -> pb.SaveReply:
        """Write a file of all rows under `directory`, on the caller's thread. Raises CheckpointError."""
        with self._saving:
            return self._save(_absolute(directory))

    def _save(self, folder: Path) -> pb.SaveReply:
        holding = self._placed()
        pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        writing = threading.Event()
        writing.set()

        def sink(piece: bytes) -> bool:
            if not writing.is_set():
                raise CheckpointError("the file could not be written")
            if pieces.qsize() >= _MAX_BUFFERED_PIECES:
                time.sleep(_WRITER_PAUSE_SECONDS)  # the disk is slower than the rows come
                return False
            pieces.put(piece)
            return True

        def arriving() -> Iterator[bytes]:
            while (piece := pieces.get()) is not None:
                yield piece
            done.result()

        done: Future[dict[str, Any]] = self._submit(lambda answer: self.shard.save(sink, answer))
        done.add_done_callback(lambda _: pieces.put(None))
        try:
            part = checkpoint.write_part(folder, holding.shard, holding.routing.num_shards, arriving())
        finally:
            writing.clear()
        return pb.SaveReply(manifest=msgpack.packb({**part, **done.result()}))

    def restore(self, directory: str) -> pb.RestoreReply:
        """Check the files under `directory` on the caller's thread, then load them. Damaged ones change nothing."""
        holding = self._placed()
        manifest = checkpoint.read_manifest(_absolute(directory))
        expired = check_fits(manifest, holding)
        for _ in _wanted_records(manifest, holding):
            pass  # reading checks every byte of what will be loaded
        records = _wanted_records(manifest, holding)
        loaded: Future[int] = self._submit(lambda answer: self.shard.restore(records, expired, answer))
        return pb.RestoreReply(num_rows=loaded.result())

    def run(self, event: Callable[[Future[T]], None]) -> Future[T]:
        """Run what resolves the future on the thread of work. Raises UnavailableError once it was closed."""
        return self._submit(event)

    def status(self) -> pb.StatusReply:
        """What a shard is and holds, at once."""
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
        return reply

    def close(self) -> None:
        """End the thread after its current slice. Whatever still waits gets UnavailableError."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()
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
                event = self._inbox.get(block=idle)
                while True:
                    if event is None:
                        return
                    event()
                    event = self._inbox.get_nowait()
            except queue.Empty:
                pass
            idle = not self.shard.run_slice()


def open_shard(
    folder: Path | None,
    *,
    takes_over: bool = False,
    fresh: bool = False,
    observe: Observer = lambda kind, seconds: None,
) -> Shard:
    """A shard; with a folder for its journal the one whose journal that is, with all that it had.

    takes_over: end a process that still has the folder. fresh: drop what the folder has. Raises JournalError.
    """
    if folder is None:
        return Shard(observe=observe)
    if not fresh and (kept := read_role(folder)).role:
        raise JournalError(
            f"the journal in {folder} is one of a pair ({kept.role} of term {kept.term}), and the other one may have "
            "more; start it with durability.mode: replicated"
        )
    lock = Lock(folder, takes_over=takes_over)
    try:
        if fresh:
            remove_journal(folder)
            remove_role(folder)
        recovered = recover(folder, lock, now=time.monotonic())
    except BaseException:
        lock.close()
        raise
    if recovered is not None:
        what = (folder, recovered.num_updates, recovered.seconds)
        _log.warning("recovered from the journal in %s: %d updates replayed in %.1f s", *what)
    return Shard(observe=observe, recovered=recovered, open_journal=lambda holding: Journal(folder, lock, holding))


def _absolute(directory: str) -> Path:
    """A shard's working folder is not the client's."""
    path = Path(directory)
    if not path.is_absolute():
        raise RequestError(
            f"checkpoint folder {directory!r} is relative; give the path that all shards see, from the root"
        )
    return path


def check_fits(manifest: checkpoint.Manifest, holding: Holding) -> dict[str, list[int]]:
    """Raise CheckpointError unless the checkpoint's rows can stand in these tables. Returns the expired clients of
    all files.
    """
    expected = {name: layout_digest(text) for name, text in holding.layouts().items()}
    expired: dict[str, list[int]] = {}
    for part in manifest.parts:
        path = manifest.directory / part["file"]
        with checkpoint.open_part(path) as opened:
            start = opened.start
        for what, here in (("num_buckets", holding.spec.num_buckets), ("seed", holding.spec.seed)):
            if start.get(what) != here:
                raise CheckpointError(
                    f"{path} was written with {what} {start.get(what)}, this cluster has {here}; "
                    f"start the cluster with {what} {start.get(what)}"
                )
        layouts = start["layouts"]
        if set(layouts) != set(expected):
            raise CheckpointError(
                f"{path} holds tables {', '.join(sorted(layouts))}; this cluster has {', '.join(sorted(expected))}; "
                "use the configuration that wrote it"
            )
        for table, text in layouts.items():
            if layout_digest(text) != expected[table]:
                raise CheckpointError(
                    f"{path}: rows of table {table!r} have layout {text}, this cluster has "
                    f"{holding.tables[table].image_layout()}; use the configuration that wrote it"
                )
        for table, ids in start.get("expired", {}).items():
            expired[table] = [*expired.get(table, []), *ids]
    return expired


def _wanted_records(manifest: checkpoint.Manifest, holding: Holding) -> Iterator[Record]:
    def wanted(table: str, bucket: int) -> bool:
        return table in holding.tables and bucket < holding.spec.num_buckets and holding.owns(bucket)

    for part in manifest.parts:
        path = Path(manifest.directory) / part["file"]
        with checkpoint.open_part(path, wanted) as opened:
            yield from opened.records
