"""Saves of a shard: what it holds at one instant, as the pieces of a file of rows, made while updates go on.
Single-threaded, with the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from ps import checkpoint
from ps.chain import packed
from ps.errors import CheckpointError
from ps.holding import Holding
from ps.record import Buffer, Record, record_pieces
from ps.schedule import Mode
from ps.storage.changed import Changed
from ps.storage.kept import Kept
from ps.types import Keys

Running: TypeAlias = Generator[None, None, Any]
Add: TypeAlias = Callable[[Mode, Running, Callable[[Any, Exception | None], None]], None]  # Shard's own
Answering: TypeAlias = Callable[[Iterable[Future[Any]], Any, Exception | None], None]


_GONE_KEYS = 1 << 16  # of one record
_NO_IMAGES = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class Mark:
    """What is asked of a save. number: of the save, over all shards. since: number of the one since whose mark only
    what has changed is to be written, 0: none. tracks: whether the next one may name this one.
    """

    number: int = 0
    since: int = 0
    tracks: bool = False


ALL_ROWS = Mark()


class Sink(Protocol):
    """Where the pieces of a file go."""

    def __call__(self, piece: Buffer) -> bool:
        """Take a piece. False: that is enough for now."""
        ...

    def when_room(self, go_on: Callable[[], None]) -> None:
        """Call this, as an event of the shard, when there is room again."""
        ...


class Cut:
    """Marks when it is made: no row is copied then. `pieces` are to be taken to their end, or `close` called.

    What was applied is copied at the mark: 16 bytes a client and bucket. changed: by table, since when; of buckets that
    it is not sure of all is written.
    """

    def __init__(
        self, holding: Holding, changed: Mapping[str, Changed] | None = None, delta_offset: int | None = None
    ) -> None:
        """delta_offset: from which on the delta stream says all that changes from now on."""
        self._changed, is_owned = changed or {}, np.isin(np.arange(holding.spec.num_buckets), holding.owned)
        self._is_sure = {name: each.is_sure & is_owned for name, each in self._changed.items()}
        increments = {name: packed(sure) for name, sure in self._is_sure.items() if sure.any()}
        self._is_increment = bool(increments)
        self._start = checkpoint.start_frame(
            shard=holding.shard,
            spec=holding.spec,
            layouts=holding.layouts(),
            expired=holding.expired_ids(),
            increments=increments,
            buckets=packed(is_owned),
        )
        self._held = {name: int(table.rows_per_bucket[holding.owned].sum()) for name, table in holding.tables.items()}
        self._layouts = holding.layouts()
        self._applied = {name: applied.copy() for name, applied in holding.applied.items()}
        self._deltas = {} if delta_offset is None else {"delta_offset": delta_offset}
        self._buckets, self._epoch = holding.owned.tolist(), holding.routing.epoch
        self._kept = {name: Kept(table, holding.owned) for name, table in holding.tables.items()}
        self._rows: dict[str, int] = {}
        self._is_closed, self._why = False, ""
        self.pieces = self._pieces()

    @property
    def summary(self) -> dict[str, Any]:
        """What the manifest says of the file, once all pieces are out."""
        buckets = {"num_owned_buckets": len(self._buckets), "routing_epoch": self._epoch}
        return {"rows": self._rows, "held": self._held, "increment": self._is_increment, **buckets, **self._deltas}

    @property
    def memory_bytes(self) -> int:
        """Of rows that changed since the mark, as they were, and of keys that changed before it."""
        old, keys = self._kept.values(), self._changed.values()
        return sum(each.memory_bytes for each in old) + sum(each.memory_bytes for each in keys)

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
            for changed in self._changed.values():
                changed.forget()

    def _pieces(self) -> Generator[Buffer, None, None]:
        yield self._start
        num_records = 0
        for name in self._kept:
            for bucket in self._buckets:
                for record in self._records(name, bucket):
                    for piece in record_pieces(record):
                        yield piece
                        if self._why:
                            raise CheckpointError(self._why)
                    num_records += 1
                    if not record.is_gone:
                        self._rows[name] = self._rows.get(name, 0) + len(record.keys)
        self.close()
        yield checkpoint.end_frame(num_records=num_records, rows=self._rows)

    def _records(self, name: str, bucket: int) -> Iterator[Record]:
        kept, layout = self._kept[name], self._layouts[name]
        if self._why:
            raise CheckpointError(self._why)
        once = (self._applied[name].entries(bucket), kept.admission(bucket))
        changed, gone = None, np.empty(0, np.uint64)
        if name in self._is_sure and self._is_sure[name][bucket]:
            changed, gone = self._changes(name, bucket)
        for start in range(0, len(gone), _GONE_KEYS):
            some = gone[start : start + _GONE_KEYS]
            yield Record(name, bucket, layout, some, np.empty((len(some), 0), np.uint8), *once, is_gone=True)
            once = (b"", b"")
        for keys, images in kept.read_images(bucket, changed):
            yield Record(name, bucket, layout, keys, images, *once)
            once = (b"", b"")
        if any(once):
            yield Record(name, bucket, layout, np.empty(0, np.uint64), _NO_IMAGES, *once)

    def _changes(self, name: str, bucket: int) -> tuple[Keys, Keys]:
        """The keys of a bucket whose rows are to be written, and those that had a row at the mark before, and at this
        one have none.
        """
        keys, had_row = self._changed[name].keys_of(bucket)
        has_row = self._kept[name].had_row(keys)
        return keys[has_row], keys[had_row & ~has_row]


class Saves:
    """Those of one shard that have not ended. They mark as updates do, and go on beside them."""

    def __init__(self, add: Add, answer: Answering, delta_offset: Callable[[], int | None]) -> None:
        """delta_offset: as Cut has it, of now."""
        self._add, self._answer, self._delta_offset = add, answer, delta_offset
        self._cuts: list[Cut] = []
        self._tracked: tuple[int, dict[str, Changed]] | None = None  # since which save, and what has changed

    def begin(
        self,
        holding: Callable[[], Holding],
        sink: Sink,
        answer: Future[dict[str, Any]],
        marked: Future[None] | None,
        asked: Mark,
    ) -> None:
        """See Shard.save."""

        def mark() -> Generator[None, None, Cut]:
            yield
            cut = Cut(holding(), self._changed_since(holding(), asked), self._delta_offset())
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

    def _changed_since(self, holding: Holding, asked: Mark) -> dict[str, Changed] | None:
        """What has changed since the save that is asked for, if that is known. Begins anew where the next one may ask
        for this one.
        """
        before = self._tracked
        if asked.tracks:
            self._tracked = asked.number, {n: Changed(table, holding.owned) for n, table in holding.tables.items()}
            for changed in () if before is None else before[1].values():
                changed.freeze()
        if before is None or not asked.tracks or before[0] != asked.since:
            return None
        return before[1]

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
