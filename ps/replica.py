"""Rows for serving: those of a checkpoint in the serving codec, kept up with batches of a delta stream. Read-only for
its users.

A batch (ps/deltas/batches.py) is applied when it is there to its end, in the order of its partition; one that was
applied before is passed by, and one that leaves a gap is refused. `positions` says how far each partition got, and
moves when a whole batch is in. Of each bucket the greatest routing epoch counts that rows came with: what the owner
before still sent is passed by. So replaying all partitions from any earlier cut, in any interleaving, ends at the same
rows.

Readers see every row whole. What a reader sees of a batch while it is applied: ps/served.py.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ps.chain import live_records
from ps.checkpoint import read_manifest
from ps.deltas.batches import Batch, Marker
from ps.errors import DeltaError, RequestError
from ps.journal.frames import RowsFrame
from ps.keys import bucket_of
from ps.served import SLICE_ROWS, Chosen, ServedTable, Step
from ps.spec import ClusterSpec
from ps.storage.spreading import Spread
from ps.turns import Turns
from ps.types import Keys, Rows


class Lag(NamedTuple):
    """seconds: the rows are complete as of so long ago, in the partition that is furthest behind. records: rows and
    keys that are known to be published and are not applied, of all partitions.
    """

    seconds: float
    records: int


@dataclass
class _Partition:
    position: int  # all batches of lesser offsets are applied
    total: int | None  # records of those; None: not known
    complete_at: float  # unix seconds: it has all that was published until then
    published: int = 0  # records, as far as known
    is_retired: bool = False


class Replica:
    """All methods are thread-safe; batches are applied one after another."""

    def __init__(self, training_spec: ClusterSpec, serving_spec: ClusterSpec) -> None:
        """Compiles the kernels of the row layouts, or reads them from the cache. Raises RequestError for specs that do
        not belong together.
        """
        for what, one, other in (
            ("tables", sorted(training_spec.tables), sorted(serving_spec.tables)),
            ("num_buckets", training_spec.num_buckets, serving_spec.num_buckets),
            ("seed", training_spec.seed, serving_spec.seed),
        ):
            if one != other:
                raise RequestError(f"a replica's specs differ in {what}: trained {one}, served {other}")
        self.training_spec, self.serving_spec = training_spec, serving_spec
        self.num_applied = self.num_passed_by = 0  # batches
        self._turns, self._applying = Turns(), threading.Lock()
        self._progress = threading.Condition()
        self._partitions: dict[int, _Partition] = {}
        self._marker: Marker | None = None
        self._began_at = time.time()  # from when on the age counts of partitions that nothing was heard of
        num_buckets = serving_spec.num_buckets
        assert num_buckets is not None
        self._epochs = np.zeros(num_buckets, np.int64)
        self._tables = {
            name: ServedTable(
                name, training_spec.tables[name], spec, self._turns, seed=serving_spec.seed, num_buckets=num_buckets
            )
            for name, spec in serving_spec.tables.items()
        }
        # Tables and what works on them refer to each other: without this their memory would stay until the garbage
        # collector comes by, which a server that froze what it began with seldom lets it.
        weakref.finalize(self, _let_go, tuple(self._tables.values())).atexit = False

    # What it serves.

    def pull(self, table: str, keys: Keys, out: Rows | None = None) -> tuple[Rows, int]:
        """float32 [n, width] of any keys, duplicates too, and how many of them have no row: those read exactly as they
        do in training, whatever codec serves. Raises RequestError for an unknown table and for `out` of another shape.
        """
        return self.table(table).pull(keys, out)

    def spread(self, table: str, keys: Keys, spread: Spread) -> int:
        """As `pull`, but rows go straight to where they are wanted; how many of the keys have no row."""
        return self.table(table).spread(keys, spread)

    def table(self, name: str) -> ServedTable:
        """Raises RequestError for one that there is not."""
        found = self._tables.get(name)
        if found is None:
            raise RequestError(f"no table {name!r}; the replica has {', '.join(self._tables)}")
        return found

    @property
    def tables(self) -> Mapping[str, ServedTable]:
        return self._tables

    @property
    def num_rows(self) -> int:
        return sum(table.num_rows for table in self._tables.values())

    @property
    def memory_bytes(self) -> int:
        """Of rows and indexes, with what is reserved."""
        return sum(table.memory_bytes for table in self._tables.values())

    # How far it is.

    @property
    def positions(self) -> dict[int, int]:
        """By partition the next offset: all before it is applied."""
        with self._progress:
            return {number: partition.position for number, partition in sorted(self._partitions.items())}

    @property
    def marker(self) -> Marker | None:
        """The newest one that was applied, of any partition; of equal steps the last."""
        return self._marker

    @property
    def version(self) -> str | None:
        """Of the newest marker."""
        return None if self._marker is None else self._marker.version

    def lag(self, now: float) -> Lag:
        """now: unix seconds. The shards' clocks and this one are taken to agree."""
        with self._progress:
            partitions = [each for each in self._partitions.values() if not each.is_retired]
            behind = (each.published - each.total for each in partitions if each.total is not None)
            return Lag(self.age(now), sum(max(0, records) for records in behind))

    def age(self, now: float) -> float:
        """The seconds of `lag`, as every answer has them."""
        with self._progress:
            times = [each.complete_at for each in self._partitions.values() if not each.is_retired]
            return max(0.0, now - min(times, default=self._began_at))

    def wait_until(self, positions: Mapping[int, int], timeout_seconds: float | None = None) -> bool:
        """Block until all batches before these offsets are applied. False: they are not, after so long."""
        with self._progress:
            return self._progress.wait_for(
                lambda: all(self._position(number) >= least for number, least in positions.items()), timeout_seconds
            )

    def heard(self, partition: int, *, at: float, is_end: bool, total: int | None = None) -> None:
        """What a source said beside batches. is_end: at `at` (unix seconds), nothing stood behind what is applied.
        total: records that the partition had then, as far as known.
        """
        with self._progress:
            found = self._partition(partition)
            found.published, found.is_retired = max(found.published, total or 0), False
            if is_end:
                found.complete_at = max(found.complete_at, at)
                found.total = total if found.total is None else found.total

    @property
    def retired(self) -> set[int]:
        """Partitions whose shards are gone."""
        with self._progress:
            return {number for number, partition in self._partitions.items() if partition.is_retired}

    def retire(self, partition: int) -> None:
        """Its shard is gone, and others have published its buckets: its age counts no more."""
        with self._progress:
            if partition in self._partitions:
                self._partitions[partition].is_retired = True

    # What changes it.

    def load(
        self,
        directory: str | Path,
        positions: Mapping[int, int] | None = None,
        *,
        marker: Marker | None = None,
        at: float | None = None,
    ) -> int:
        """Take the rows of a checkpoint of the serving spec; returns how many. Into an empty replica.

        positions: next offsets where the checkpoint ends; of a partition that is not named all is read. marker: the
        version that the rows are of. at: unix seconds as of which the rows are complete; default: now. Raises
        CheckpointError for files that cannot be read, RequestError for those of another spec, DeltaError for another
        layout.
        """
        manifest = read_manifest(directory)
        found, here = manifest.spec, self.serving_spec
        for what, theirs, own in (
            ("tables", found.tables, here.tables),
            ("num_buckets", found.num_buckets, here.num_buckets),
            ("seed", found.seed, here.seed),
        ):
            if theirs != own:
                raise RequestError(f"{directory}: its rows have another {what} than the replica serves: export it anew")
        with self._applying:
            if self.num_rows or self._partitions:
                raise RequestError("this replica has rows already: load a bundle into a new one")
            num_rows = 0
            for name, count in manifest.rows.items():
                self._tables[name].expect(count)
            for record, _ in live_records(manifest):
                self._run(iter([self._tables[record.table].load(record, manifest.rows[record.table])]))
                num_rows += len(record.keys)
            with self._progress:
                self._began_at = time.time() if at is None else at
                for number, position in (positions or {}).items():
                    self._partition(number).position = position
                self._marker = marker
                self._progress.notify_all()
        return num_rows

    def apply(self, batch: Batch, partition: int) -> bool:
        """Take a whole batch. False: it was applied before, and is passed by. Raises DeltaError, having changed
        nothing, for one that leaves a gap, and for rows of another layout.
        """
        with self._applying:
            known = self._partitions.get(partition)
            if known is not None and batch.offset < known.position:
                self.num_passed_by += 1
                return False
            place = f"the batch of offset {batch.offset} of partition {partition}"
            # Offsets leave gaps of their own, records do not. Fewer than known: the shard's machine lost what it had
            # written, and the shard publishes all of its rows again. So it does behind a batch that begins.
            if known is not None and known.total is not None and batch.total > known.total and not batch.begins:
                raise DeltaError(
                    f"{place} has {batch.total} records before it, {known.total} are here: read the partition from "
                    f"offset {known.position} on; where it has no longer what is missing, start from a newer bundle"
                )
            self._check(batch, place)
            chosen = self._chosen(batch)
            touched = list(self._by_table(batch))
            self._run(chain.from_iterable(table.steps(frames, chosen) for table, frames in touched))
            self._run(chain.from_iterable(table.shrinks() for table, _ in touched))
            self._remember_epoch(batch)
            with self._progress:
                found = self._partition(partition)
                if found.total is not None and batch.total < found.total:
                    found.published = 0
                found.position, found.total = batch.offset + 1, batch.total + batch.records
                # A shard whose clock is ahead must not seem to live on.
                found.complete_at = max(found.complete_at, min(batch.at, time.time()))
                if batch.marker is not None and (self._marker is None or batch.marker.step >= self._marker.step):
                    self._marker = batch.marker
                self.num_applied += 1
                self._progress.notify_all()
            return True

    def _check(self, batch: Batch, place: str) -> None:
        for frame in batch.rows:
            if frame.table not in self._tables:
                raise DeltaError(f"{place} has rows of table {frame.table!r}: start this replica from a newer bundle")
            table = self._tables[frame.table]
            table.check(frame.layout, place)
            keys, images = frame.full
            if len(frame.early[0]) or (len(keys) and images.shape[1] != table.image_bytes):
                raise DeltaError(f"{place} has images of table {frame.table!r} that are not of its layout")
            if any(bucket >= len(self._epochs) for bucket in frame.dropped):
                raise DeltaError(f"{place} replaces a bucket that there is not")

    def _by_table(self, batch: Batch) -> Iterator[tuple[ServedTable, list[RowsFrame]]]:
        for name, table in self._tables.items():
            frames = [frame for frame in batch.rows if frame.table == name]
            if frames:
                yield table, frames

    def _chosen(self, batch: Batch) -> Chosen:
        """Buckets that no newer owner has published."""
        return None if batch.epoch >= self._epochs.max() else self._epochs <= batch.epoch

    def _remember_epoch(self, batch: Batch) -> None:
        if batch.epoch <= self._epochs.min():
            return
        for frame in batch.rows:
            for keys in (frame.full[0], frame.removed):
                buckets = bucket_of(keys, len(self._epochs))
                self._epochs[buckets] = np.maximum(self._epochs[buckets], batch.epoch)
            dropped = list(frame.dropped)
            self._epochs[dropped] = np.maximum(self._epochs[dropped], batch.epoch)

    def _run(self, steps: Iterator[Step]) -> None:
        """Alone, for SLICE_ROWS rows at a time; readers come in between."""
        step = next(steps, None)
        while step is not None:
            with self._turns.alone():
                room = SLICE_ROWS
                while step is not None and (room == SLICE_ROWS or step[0] <= room):
                    room -= step[0]
                    step[1]()
                    step = next(steps, None)

    def _position(self, partition: int) -> int:
        found = self._partitions.get(partition)
        return 0 if found is None else found.position

    def _partition(self, number: int) -> _Partition:
        return self._partitions.setdefault(number, _Partition(0, None, self._began_at))


def _let_go(tables: Iterable[ServedTable]) -> None:
    for table in tables:
        table.let_go()
