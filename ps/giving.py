"""A shard gives buckets to another one, while updates go on: the I/O around ps/moving.py, on the caller's thread."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from ps.errors import WeirError
from ps.holding import Holding
from ps.moving import Leaving, Sink, Work
from ps.psfunc import BucketNumbers
from ps.schedule import Mode
from ps.wire import weir_pb2 as pb

T = TypeVar("T")
Send: TypeAlias = Callable[[pb.TakeRequest], Future[Any]]  # to the shard that takes
_PART_BYTES = 1 << 20  # of frames in one message
_MAX_FRAMES = 16  # that wait to be sent; each has at most 16,384 rows
_PAUSE_SECONDS = 0.001
_FEW_KEYS = 20_000  # that changed: so many may be sent while the buckets wait
_MAX_ROUNDS = 8
_SECONDS = 60.0  # to wait for one part


class Runs(Protocol):
    """Runs work on a shard's thread: ps.work.WorkThread does."""

    def run(self, mode: Mode, work: Callable[[Holding], Work]) -> Future[Any]: ...


def give(shard: Runs, buckets: BucketNumbers, send: Send, epoch: int) -> pb.GiveReply:
    """Copy buckets, then catch up with what changed until that is little, then hand over. Whatever fails, the buckets
    are not lost: a routing has to say again whose they are.
    """
    began = time.monotonic()
    leaving: Leaving = shard.run("update", lambda holding: _returning(Leaving(holding, buckets))).result()
    sending = _Sending(send, epoch)
    try:
        sending.put(pb.TakeRequest(buckets=buckets.astype("<i4").tobytes(), routing_epoch=epoch))
        sending.frames_of(*[partial(_copy, shard, leaving, bucket) for bucket in buckets.tolist()])
        for _ in range(_MAX_ROUNDS):
            if leaving.num_changed <= _FEW_KEYS:
                break
            sending.frames_of(lambda sink: shard.run("update", lambda _: leaving.catch_up(sink)))
        held = time.monotonic()
        windows = sending.frames_of(lambda sink: shard.run("update", lambda _: leaving.leave(sink)))
        sending.put(pb.TakeRequest(windows=windows, routing_epoch=epoch))
        sending.finish()
    finally:
        shard.run("update", lambda _: _closing(leaving)).result()
    now = time.monotonic()
    return pb.GiveReply(
        num_rows=leaving.num_rows, num_bytes=sending.num_bytes, seconds=now - began, held_seconds=now - held
    )


class _Sending:
    """Parts on their way, one at a time: two could come in the other order."""

    def __init__(self, send: Send, epoch: int) -> None:
        self.num_bytes = 0
        self._send, self._epoch = send, epoch
        self._on_its_way: Future[Any] | None = None

    def frames_of(self, *starts: Callable[[Sink], Future[T]]) -> T:
        """Send the frames that pieces of work give to their sink; each piece is started when the one before is done.
        The last one's result.
        """
        frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        failed = False
        last: Future[T] = Future()

        def sink(frame: bytes) -> bool:
            if failed:
                return True  # nobody waits for them any more
            if frames.qsize() >= _MAX_FRAMES:
                time.sleep(_PAUSE_SECONDS)  # the network is slower than the rows come
                return False
            frames.put(frame)
            return True

        def begin(number: int) -> None:
            try:
                starts[number](sink).add_done_callback(partial(follow, number))
            except WeirError as error:  # the shard was stopped
                last.set_exception(error)

        def follow(number: int, done: Future[T]) -> None:
            if (error := done.exception()) is not None:
                last.set_exception(error)
            elif number + 1 < len(starts) and not failed:
                begin(number + 1)
            else:
                last.set_result(done.result())

        last.add_done_callback(lambda _: frames.put(None))
        begin(0)
        try:
            for part in _parts(frames):
                self.put(pb.TakeRequest(frames=part, routing_epoch=self._epoch))
        except BaseException:
            failed = True
            raise
        return last.result()

    def put(self, request: pb.TakeRequest) -> None:
        """Send a part. Raises what an earlier one met."""
        self.num_bytes += len(request.frames)
        self.finish()
        self._on_its_way = self._send(request)

    def finish(self) -> None:
        """Wait for the part that is on its way."""
        if self._on_its_way is not None:
            self._on_its_way.result(_SECONDS)


def _parts(frames: queue.SimpleQueue[bytes | None]) -> Iterator[bytes]:
    """Frames joined to parts of a megabyte."""
    gathered: list[bytes] = []
    size = 0
    while (frame := frames.get()) is not None:
        gathered.append(frame)
        size += len(frame)
        if size >= _PART_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def _copy(shard: Runs, leaving: Leaving, bucket: int, sink: Sink) -> Future[Any]:
    return shard.run("update", lambda _: leaving.copy(bucket, sink))


def _closing(leaving: Leaving) -> Work:
    leaving.close()
    yield


def _returning(value: T) -> Work:
    yield
    return value


def read_buckets(data: bytes) -> BucketNumbers:
    """int64 [n] of a message's int32."""
    return np.frombuffer(data[: len(data) // 4 * 4], "<i4").astype(np.int64)
