"""Saves of a shard: what it holds at one instant, as the pieces of a file of rows, made while updates go on.
Single-threaded, with the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

import numpy as np

from ps import checkpoint
from ps.errors import CheckpointError
from ps.holding import Holding
from ps.record import Record, encode_record
from ps.schedule import Mode
from ps.storage.kept import Kept

Running: TypeAlias = Generator[None, None, Any]
Add: TypeAlias = Callable[[Mode, Running, Callable[[Any, Exception | None], None]], None]  # Shard's own
Answering: TypeAlias = Callable[[Iterable[Future[Any]], Any, Exception | None], None]


class Sink(Protocol):
    """Where the pieces of a file go."""

    def __call__(self, piece: bytes) -> bool:
        """Take a piece. False: that is enough for now."""
        ...

    def when_room(self, go_on: Callable[[], None]) -> None:
        """Call this, as an event of the shard, when there is room again."""
        ...


class Cut:
    """Marks when it is made: no row is copied then. `pieces` are to be taken to their end, or `close` called.

    What was applied is copied at the mark: 16 bytes a client and bucket.
    """

    def __init__(self, holding: Holding) -> None:
        self._start = checkpoint.start_frame(
            shard=holding.shard, spec=holding.spec, layouts=holding.layouts(), expired=holding.expired_ids()
        )
        self._layouts = holding.layouts()
        self._applied = {name: applied.copy() for name, applied in holding.applied.items()}
        self._buckets, self._epoch = holding.owned.tolist(), holding.routing.epoch
        self._kept = {name: Kept(table, holding.owned) for name, table in holding.tables.items()}
        self._rows: dict[str, int] = {}
        self._is_closed, self._why = False, ""
        self.pieces = self._pieces()

    @property
    def summary(self) -> dict[str, Any]:
        """What the manifest says of the file, once all pieces are out."""
        return {"rows": self._rows, "num_owned_buckets": len(self._buckets), "routing_epoch": self._epoch}

    @property
    def memory_bytes(self) -> int:
        """Of rows that changed since the mark, as they were."""
        return sum(kept.memory_bytes for kept in self._kept.values())

    def cancel(self, why: str) -> None:
        """The rest cannot be had: the next piece raises CheckpointError."""
        self._why = why
        self.close()

    def close(self) -> None:
        """Keep nothing any more."""
        if not self._is_closed:
            self._is_closed = True
            for kept in self._kept.values():
                kept.close()

    def _pieces(self) -> Generator[bytes, None, None]:
        yield self._start
        num_records = 0
        for name in self._kept:
            for bucket in self._buckets:
                for record in self._records(name, bucket):
                    yield encode_record(record)
                    num_records += 1
                    self._rows[name] = self._rows.get(name, 0) + len(record.keys)
        self.close()
        yield checkpoint.end_frame(num_records=num_records, rows=self._rows)

    def _records(self, name: str, bucket: int) -> Iterator[Record]:
        kept, layout = self._kept[name], self._layouts[name]
        if self._why:
            raise CheckpointError(self._why)
        once = (self._applied[name].entries(bucket), kept.admission(bucket))
        for keys, images in kept.read_images(bucket):
            yield Record(name, bucket, layout, keys, images, *once)
            once = (b"", b"")
            if self._why:
                raise CheckpointError(self._why)
        if any(once):
            yield Record(name, bucket, layout, np.empty(0, np.uint64), np.empty((0, 0), np.uint8), *once)


class Saves:
    """Those of one shard that have not ended. They mark as updates do, and go on beside them."""

    def __init__(self, add: Add, answer: Answering) -> None:
        self._add, self._answer = add, answer
        self._cuts: list[Cut] = []

    def begin(
        self,
        holding: Callable[[], Holding],
        sink: Sink,
        answer: Future[dict[str, Any]],
        marked: Future[None] | None,
    ) -> None:
        """See Shard.save."""

        def mark() -> Generator[None, None, Cut]:
            yield
            cut = Cut(holding())
            self._cuts.append(cut)
            return cut

        def go_on(cut: Cut | None, error: Exception | None) -> None:
            if cut is None:
                self._answer([answer], None, error)
                return
            if marked is not None:
                self._answer([marked], None, None)
            self._write(cut, sink, answer)

        self._add("update", mark(), go_on)

    def cancel(self, why: str) -> None:
        """They fail, with CheckpointError."""
        for cut in self._cuts:
            cut.cancel(why)

    def _write(self, cut: Cut, sink: Sink, answer: Future[dict[str, Any]]) -> None:
        """Go on where the sink had enough."""

        def work() -> Generator[None, None, bool]:
            for piece in cut.pieces:
                if not sink(piece):
                    return False
                yield
            return True

        def finished(is_whole: bool, error: Exception | None) -> None:
            if error is None and not is_whole:
                sink.when_room(lambda: self._write(cut, sink, answer))
                return
            cut.close()
            self._cuts.remove(cut)
            self._answer([answer], cut.summary, error)

        self._add("yielding", work(), finished)
