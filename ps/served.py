"""One table of a replica: rows in the serving codec that many threads read while one applies what came.

A row is read whole, always. Changes are made in pieces of at most SLICE_ROWS rows, and rows are read in pieces of at
most PULL_KEYS keys; between pieces the others have their turn. So a read waits a few milliseconds at most, and reads
and changes that fit in one piece see each other whole. A checkpoint is loaded a record at a time, before anybody reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.errors import DeltaError, RequestError
from ps.journal.frames import RowsFrame
from ps.keys import bucket_of
from ps.record import Record, layout_digest
from ps.serving_rows import unserved_table
from ps.spec import TableSpec
from ps.storage.shared_reading import Reader
from ps.storage.spreading import Spread
from ps.storage.table import Table
from ps.turns import Turns
from ps.types import Images, Keys, Rows

SLICE_ROWS = 4096
PULL_KEYS = 16_384
_SHRUNK_AT_ONCE = 64  # buckets

Chosen: TypeAlias = NDArray[np.bool_] | None  # bool [num_buckets]: those that a batch may change; None: all
Step: TypeAlias = tuple[int, Callable[[], object]]  # how many rows it changes, and the change


class _Readers(NamedTuple):
    """Of one thread."""

    rows: Reader
    initial: Reader


class ServedTable:
    """Thread-safe to read. `steps` and what they return belong to one thread, which runs them while it is alone."""

    def __init__(self, name: str, trained: TableSpec, served: TableSpec, turns: Turns, *, seed: int, num_buckets: int):
        """trained: whose rows that do not exist are read as they are there. served: as ps.serving_rows makes it."""
        self.name, self.spec = name, served
        self._rows = Table(name, served, seed=seed, num_buckets=num_buckets)
        unserved = unserved_table(trained)
        # What the codecs round alike reads alike: then the rows' own table knows its initial values.
        self._initial = self._rows if unserved == served else Table(name, unserved, seed=seed, num_buckets=1)
        self.layout = layout_digest(self._rows.image_layout())
        self.width = served.width
        self.image_bytes = self._rows.image_bytes
        self._turns, self._local = turns, threading.local()
        self._thinned: set[int] = set()  # buckets that lost rows
        self.pull(np.zeros(1, np.uint64))  # so that no request waits for kernels to be compiled

    @property
    def num_rows(self) -> int:
        return self._rows.num_rows

    @property
    def bytes_per_row(self) -> int:
        """As Table.bytes_per_row."""
        return self._rows.bytes_per_row

    @property
    def memory_bytes(self) -> int:
        """As Table.memory_bytes."""
        return self._rows.memory_bytes

    def pull(self, keys: Keys, out: Rows | None = None) -> tuple[Rows, int]:
        """float32 [n, width] of any keys, and how many of them have no row: those read as they do in training.

        out: as Table.pull has it.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        if out is None:
            out = np.empty((len(keys), self.width), np.float32)
        elif out.shape != (len(keys), self.width) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise RequestError(
                f"table {self.name!r}: out is {out.dtype} {out.shape}; the rows are float32 [{len(keys)}, {self.width}]"
            )
        readers, num_unknown = self._readers(), 0
        for start in range(0, len(keys), PULL_KEYS):
            piece, rows = keys[start : start + PULL_KEYS], out[start : start + PULL_KEYS]
            absent = None
            with self._turns.together():
                num_absent = readers.rows.read(piece, rows)
                if num_absent and self._initial is not self._rows:
                    absent = readers.rows.absent(piece)
            if absent is not None:
                rows[absent] = readers.initial.initial_values(piece[absent])
            num_unknown += num_absent
        return out, num_unknown

    def spread(self, keys: Keys, spread: Spread) -> int:
        """As `pull`, to where the rows are wanted: each key is in a run. Returns how many have no row."""
        keys, absent = np.ascontiguousarray(keys, np.uint64), np.empty(min(len(keys), PULL_KEYS), np.int64)
        readers, num_unknown = self._readers(), 0
        for start in range(0, len(keys), PULL_KEYS):
            with self._turns.together():
                num_absent = readers.rows.spread(keys[start : start + PULL_KEYS], start, spread, absent)
            if num_absent and self._initial is not self._rows:
                places = absent[:num_absent]
                spread.put(readers.initial.initial_values(keys[places]), places)
            num_unknown += num_absent
        return num_unknown

    def _readers(self) -> _Readers:
        found: _Readers | None = getattr(self._local, "readers", None)
        if found is None:
            rows = Reader(self._rows)
            found = self._local.readers = _Readers(rows, rows if self._initial is self._rows else Reader(self._initial))
        return found

    def let_go(self) -> None:
        """Give the memory of all rows back; nobody reads them any more."""
        self._rows.clear()

    def expect(self, num_rows: int) -> None:
        """As Table.expect."""
        self._rows.expect(num_rows)

    def load(self, record: Record, expected: int) -> Step:
        """What takes the rows of a checkpoint's record, all at once: an index of the right size is made once. expected:
        rows that the table is to have in the end, about. Raises DeltaError for another layout.
        """
        self.check(record.layout, "the checkpoint")
        of_bucket = expected // self._rows.num_buckets
        load = partial(self._rows.load_images, record.bucket, record.keys, record.images, expected=of_bucket)
        return len(record.keys), load

    def check(self, layout: str, source: str) -> None:
        """Raise DeltaError unless images of this layout are this table's."""
        if layout != self.layout:
            raise DeltaError(
                f"{source} has rows of table {self.name!r} in another layout than this replica serves: their codec or "
                "segments changed; start it from a bundle that was exported since"
            )

    def steps(self, frames: Sequence[RowsFrame], chosen: Chosen) -> Iterator[Step]:
        """What a batch changes here. A bucket that it replaces gets its new rows before the others go, so no key that
        has a row before and after is without one in between.
        """
        replaced = _Replaced(self._rows.num_buckets)
        for frame in frames:
            (keys, images), removed, dropped = frame.full, frame.removed, frame.dropped
            if chosen is not None:
                is_chosen = chosen[bucket_of(keys, len(chosen))]
                keys, images = keys[is_chosen], images[is_chosen]
                removed = removed[chosen[bucket_of(removed, len(chosen))]]
                dropped = tuple(bucket for bucket in dropped if chosen[bucket])
            replaced.see(dropped, keys, removed)
            yield from self._writes(keys, images)
            yield from self._removals(removed)
        for bucket, kept in replaced.kept():
            gone = [held[~np.isin(held, kept)] for held, _ in self._rows.read_images(bucket)]
            yield from self._removals(np.concatenate(gone) if gone else kept[:0])

    def _writes(self, keys: Keys, images: Images) -> Iterator[Step]:
        for start in range(0, len(keys), SLICE_ROWS):
            piece = slice(start, start + SLICE_ROWS)
            yield len(keys[piece]), partial(self._rows.write_images, keys[piece], images[piece])

    def _removals(self, keys: Keys) -> Iterator[Step]:
        for start in range(0, len(keys), SLICE_ROWS):
            piece = keys[start : start + SLICE_ROWS]
            yield len(piece), partial(self._rows.remove, piece)
        self._thinned.update(bucket_of(keys, self._rows.num_buckets).tolist())

    def shrinks(self) -> Iterator[Step]:
        """What gives memory back after steps that removed rows."""
        buckets = sorted(self._thinned)
        self._thinned.clear()
        for start in range(0, len(buckets), _SHRUNK_AT_ONCE):
            yield SLICE_ROWS, partial(self._shrink, buckets[start : start + _SHRUNK_AT_ONCE])

    def _shrink(self, buckets: list[int]) -> None:
        for bucket in buckets:
            self._rows.shrink(bucket)


class _Replaced:
    """Which keys the buckets that a batch replaces have in the end."""

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets
        self._buckets: dict[int, int] = {}  # and the first frame that counts
        self._seen: list[tuple[int, Keys, bool]] = []  # frame, keys, whether they have a row from there on
        self._num_frames = 0

    def see(self, dropped: Sequence[int], keys: Keys, removed: Keys) -> None:
        """The next frame."""
        self._buckets |= dict.fromkeys(dropped, self._num_frames)
        if self._buckets:
            self._seen += [(self._num_frames, keys, True), (self._num_frames, removed, False)]
        self._num_frames += 1

    def kept(self) -> Iterator[tuple[int, Keys]]:
        """Each bucket, and all of its keys."""
        if not self._buckets:
            return
        keys = np.concatenate([keys for _, keys, _ in reversed(self._seen)])
        sizes = [len(keys) for _, keys, _ in reversed(self._seen)]
        frames = np.repeat([frame for frame, _, _ in reversed(self._seen)], sizes)
        present = np.repeat([is_there for _, _, is_there in reversed(self._seen)], sizes)
        buckets = bucket_of(keys, self._num_buckets)
        keys, newest = np.unique(keys, return_index=True)  # the first one here is the last that was said
        frames, present, buckets = frames[newest], present[newest], buckets[newest]
        order = np.argsort(buckets, kind="stable")
        keys, frames, present, buckets = keys[order], frames[order], present[order], buckets[order]
        for bucket, since in self._buckets.items():
            here = slice(*np.searchsorted(buckets, [bucket, bucket + 1]))
            yield bucket, keys[here][present[here] & (frames[here] >= since)]
