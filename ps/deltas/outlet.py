"""What a shard publishes through, where its spec says so. Single-threaded, as the shard is, but for the counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from ps.delta_options import DeltaOptions
from ps.deltas.batches import Marker
from ps.deltas.encoding import BatchEncoder
from ps.deltas.partition import Partition
from ps.deltas.publishing import Publisher, RunJob
from ps.deltas.reading import find_partitions, partition_folder
from ps.deltas.serving import past_replies_of, replies_of
from ps.deltas.writer import Writer
from ps.errors import RequestError, TrimmedError
from ps.holding import Holding
from ps.wire import weir_pb2 as pb

_END_OF_NUMBERS = 1 << 32  # of partitions, on the wire


class Outlet:
    """publisher: None while nothing is published."""

    def __init__(
        self, run_job: RunJob, *, clock: Callable[[], float], takes_over: bool, leads: Callable[[], bool]
    ) -> None:
        """run_job, clock: the shard's. takes_over: end a process that still has the partition. leads: whether no other
        process can have the shard's place, asked on other threads.
        """
        self.publisher: Publisher | None = None
        self.takes_over = takes_over
        self._run_job, self._clock, self._leads = run_job, clock, leads

    def use(self, holding: Holding, options: DeltaOptions | None) -> None:
        """Publish what the holding has from now on, beginning with every bucket; or go on with other options. Compiles
        what the serving layouts need.
        """
        publisher = self.publisher
        if publisher is not None and options is not None and _is_same(publisher.options, options):
            publisher.options = options
            publisher.writer.use(options)
            return
        self.close()
        if options is None:
            return
        assert options.directory is not None
        encoder = BatchEncoder(holding.spec, holding.tables, options)
        first = int(time.time() * 1e6)
        folder, shard = partition_folder(options.directory, holding.shard), holding.shard
        opening = partial(Partition, folder, shard, options, encoder.layouts, first=first)
        writer = Writer(lambda: opening(takes_over=self.takes_over), options, first=first, leads=self._leads)
        self.publisher = Publisher(
            *(holding, options, writer, encoder, self._run_job), clock=self._clock, now=time.time
        )

    @property
    def idle_seconds(self) -> float | None:
        """After how long `poll` may have something to do though nothing happened; None: never."""
        return None if self.publisher is None else self.publisher.idle_seconds

    @property
    def next_offset(self) -> int | None:
        """From which on the stream says all that changes from now on; None: nothing is published."""
        return None if self.publisher is None else self.publisher.writer.next_offset

    def poll(self) -> None:
        """As Publisher.poll."""
        if self.publisher is not None:
            self.publisher.poll()

    def mark(self, marker: Marker, epoch: int, answer: Future[int]) -> None:
        """As Publisher.mark. Raises RequestError where nothing is published."""
        self._published().mark(marker, epoch, answer)

    def replies(
        self, next_offset: int, goes_on: Callable[[], bool], *, partition: int | None = None
    ) -> Iterator[pb.DeltasReply]:
        """As serving.replies_of, on any thread. partition: default, the shard's own; or one of `past_partitions`, as
        serving.past_replies_of. Raises RequestError where nothing is published, and for another shard's partition,
        TrimmedError for one that is not there.
        """
        publisher = self._published()
        assert publisher.options.directory is not None
        number = publisher.shard if partition is None else partition
        folder = partition_folder(publisher.options.directory, number)
        if number == publisher.shard:
            return replies_of(folder, publisher.writer, next_offset, goes_on)
        if number < publisher.num_shards:
            raise RequestError(f"partition {number} is streamed by shard {number}; this is shard {publisher.shard}")
        if number not in self.past_partitions():
            raise TrimmedError(f"partition {number} is not here any more; take a newer version, or a newer bundle")
        return past_replies_of(
            folder, publisher.writer, next_offset, lambda: goes_on() and number >= publisher.num_shards
        )

    def past_partitions(self) -> list[int]:
        """Those of shards that are gone, whose files are beside the shard's own. On any thread."""
        publisher = self.publisher
        if publisher is None:
            return []
        assert publisher.options.directory is not None
        found = find_partitions(publisher.options.directory)
        return [number for number in found if publisher.num_shards <= number < _END_OF_NUMBERS]

    def close(self) -> None:
        """Publish no more."""
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _published(self) -> Publisher:
        if self.publisher is None:
            raise RequestError("this cluster publishes no deltas; set cluster.deltas")
        return self.publisher


def _is_same(options: DeltaOptions, others: DeltaOptions) -> bool:
    return (options.directory, options.codec) == (others.directory, others.codec)
