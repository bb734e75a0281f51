"""A sparse table: rows of one layout, by key, without vocabulary or fixed size.

A row that does not exist reads as its initial value; pull never writes; push creates. A late segment that a row does
not have yet reads as its initial value too, and what would change it is dropped. A row changes only when every number
of its next values and state is finite, and a call that raises has changed nothing. What a row becomes depends
on its own key, gradients and steps, never on what else a call carried. Single-threaded, no I/O; sweeps and scans go
bucket by bucket, so a caller can do other work in between.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.keys import bucket_of
from ps.spec import TableSpec
from ps.storage import layout as layouts
from ps.storage import writing
from ps.storage.admission import Admission
from ps.storage.arena import Arena
from ps.storage.before import Before, restored
from ps.storage.blame import blame_optimizers
from ps.storage.buckets import EARLY, FULL, MAX_ROWS, Buckets
from ps.storage.kernels import changes, generate, index
from ps.storage.late import LateSegments
from ps.storage.new_rows import NewRows
from ps.storage.passes import Passes
from ps.storage.programs import Programs
from ps.storage.reading import ALL, Block, blocks_of, decoded, images_at, rows_of
from ps.storage.watching import Watchers
from ps.types import NOTHING_SEEN, Floats, Gradients, Images, Keys, PushCounts, Rows, Seen, UniqueKeys


class Table:
    """One table, or the part of it in this process. Counters, of rows or elements so far: saturated, nonfinite,
    created, deleted, evicted, refused (keys that were not admitted), turned_away (keys that found no room for a row or
    for its late segments).
    """

    def __init__(self, name: str, spec: TableSpec, *, seed: int, num_buckets: int, check: bool = False) -> None:
        """num_buckets: a power of two. Kernels of the row layout are compiled, or read from the cache, when they are
        first used, or by `warm_up`; at once where an optimizer is a user's. check: users' row functions get bounds
        checks.
        """
        if not 1 <= num_buckets <= 1 << 20 or num_buckets & (num_buckets - 1):
            raise RequestError(
                f"table {name!r}: num_buckets is {num_buckets}; it must be a power of two up to {1 << 20}"
            )
        self.name, self.spec, self.num_buckets = name, spec, num_buckets
        self.saturated = self.nonfinite = self.created = self.deleted = self.evicted = 0
        self.refused = self.turned_away = 0
        self._layout = layouts.layout_of(spec, check=check)
        self._kernels = generate.kernels_of(self._layout.kernels)
        self._hyper = layouts.hyper_of(spec)
        self._streams = layouts.streams_of(name, spec, seed)
        self._own_rates = layouts.learning_rates_of(spec)
        self._score = layouts.score_of(spec)
        self._bits = num_buckets.bit_length() - 1
        self._place = (self._bits, self._layout.kernels.shape)
        floats = np.zeros(self._layout.scratch_floats, np.float32)
        hashes, addresses = np.zeros(index.CHUNK, np.uint64), np.zeros(index.CHUNK, np.int64)
        self._workspace = (hashes, addresses, floats, floats.view(np.uint16))
        lone = np.zeros(self._layout.kernels.stride, np.float32)  # one encoded row
        self._lone = (lone, lone.view(np.uint16))
        self._buckets = Buckets(name, self._layout, num_buckets, spec.memory_limit_bytes)
        self._before = Before(self._layout)
        self.watchers = Watchers()
        self.admission = Admission(name, spec, self.watchers, seed=seed, num_buckets=num_buckets)
        self.new_rows = NewRows(self)
        self.late = LateSegments(self)
        self.programs = Programs(self)

    @property
    def num_rows(self) -> int:
        return int(self._buckets.rows.sum())

    @property
    def num_early(self) -> int:
        """Rows without their late segments; the others are full."""
        return int(self._buckets.table[self.num_buckets :, index.ROWS].sum())

    @property
    def rows_per_bucket(self) -> NDArray[np.int64]:
        """int64 [num_buckets], a copy."""
        return self._buckets.rows

    @property
    def memory_bytes(self) -> int:
        """Memory of rows, indexes and directories, with what is reserved for rows to come, and of the admission
        sketch.
        """
        return self._buckets.memory_bytes + self.admission.memory_bytes

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one full row with its key and state, without its index entry."""
        return self._layout.kinds[FULL].row_bytes

    @property
    def bytes_per_early_row(self) -> int | None:
        """The same of a row without its late segments; None where there are none."""
        return self._layout.kinds[EARLY].row_bytes if self._layout.has_late else None

    @property
    def image_bytes(self) -> int:
        """Of the image of a full row."""
        return 4 * self._layout.image_words

    def image_layout(self) -> str:
        """Canonical text of the row layout: images of tables with equal text are interchangeable."""
        return self._layout.text()

    def warm_up(self) -> None:
        """Compile whatever is not yet, so that no request waits for it, and run the code that every pull runs."""
        self._kernels.compile_all()
        keys = np.zeros(1, np.uint64)
        self.pull(keys)
        bucket_of(keys, self.num_buckets)  # what every message of keys is checked with

    def pull(self, keys: Keys, out: Rows | None = None) -> Rows:
        """float32 [n, width]: rows of any keys, duplicates too; initial values where there is none. Writes nothing.

        out: C-contiguous float32 [n, width] to fill instead of a new array.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        if out is None:
            out = np.empty((len(keys), self._layout.width), np.float32)
        elif out.shape != (len(keys), self._layout.width) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise RequestError(f"table {self.name!r}: out is {out.dtype} {out.shape}; the rows are float32 [n, width]")
        self._kernels.pull(*self._memory, keys, self._bits, self._hyper, self._streams, out, *self._workspace)
        return out

    def initial_values(self, keys: Keys) -> Rows:
        """float32 [n, width]: what rows of these keys read as before they exist, whether they do or not."""
        keys, out = np.ascontiguousarray(keys, np.uint64), np.empty((len(keys), self._layout.width), np.float32)
        memory = (*self._memory[:3], np.zeros((1, index.COLUMNS), np.int64))  # one bucket, without rows
        self._kernels.pull(*memory, keys, 0, self._hyper, self._streams, out, *self._workspace)
        return out

    def push(
        self,
        keys: UniqueKeys,
        gradients: Gradients,
        *,
        step: int,
        learning_rates: Floats,
        seen: Seen = NOTHING_SEEN,
    ) -> PushCounts:
        """Apply one gradient (float32 [n, width]) to the row of each key, creating it where there is none and the key
        is admitted; the gradient of one that is not is dropped. An early row that reaches the score gets its late
        segments first, as initial; where there is no room for them it stays early, counted as turned away.

        learning_rates: float32 [num_segments]. Keys are unique; grouped by bucket is fastest. Raises RequestError for
        shapes that do not fit, MemoryLimitError when there is no room for new rows; both before any row is written.
        """
        keys, gradients = np.ascontiguousarray(keys, np.uint64), np.ascontiguousarray(gradients, np.float32)
        rates, shown = self._checked_rates(learning_rates), self.new_rows.shown(keys, seen)
        if gradients.shape != (len(keys), self._layout.width):
            raise RequestError(
                f"table {self.name!r}: gradients {gradients.shape} for {len(keys)} keys of width {self._layout.width}"
            )
        self.watchers.changing(keys)
        passes = Passes(self, keys, gradients, shown, rates=rates, step=step, event_time=seen.event_time)
        counts, created, refused = passes.apply()
        self.created += created
        return self._counted(counts, created, refused)

    def promote(self, keys: UniqueKeys, learning_rates: Floats | None = None) -> int:
        """Give the early rows among those of `keys` their late segments, as initial; returns how many rows got them.

        learning_rates: float32 [num_segments], for an optimizer whose first state depends on one; default the spec's.
        Raises MemoryLimitError, or RequestError where a user's init_state fails; then nothing has changed.
        """
        rates = self._own_rates if learning_rates is None else self._checked_rates(learning_rates)
        self.watchers.changing(keys)
        return len(self.late.grow(np.ascontiguousarray(keys, np.uint64), rates).keys)

    @property
    def may_raise(self) -> bool:
        """Whether an optimizer is a user's, so that a table-wide update is tried before it is done."""
        return self._layout.kernels.may_raise

    def sweep(self, bucket: int, *, step: int, learning_rates: Floats, write: bool = True) -> int:
        """One step of the table-wide update, of the segments that have one, on a bucket; returns how many rows it has.

        step: as the pushes', counted from 1: Adam's bias correction uses it. write: False only sees whether a user's
        optimizer raises RequestError; where it does not, writing does not either.
        """
        rates, counts = self._checked_rates(learning_rates), np.zeros(4, np.int64)
        keys, addresses = rows_of(self, bucket, 0, MAX_ROWS)
        if write:
            self.watchers.changing(keys)
        arguments = (addresses, rates, self._hyper, self._streams, step, counts, self._workspace[2], write)
        try:
            self._kernels.sweep_rows(*self._memory[:3], *arguments)
        except Exception as error:
            at = slice(counts[3], counts[3] + 1)
            raise blame_optimizers(self, error, "sweep", keys[at], rates, step) from error
        if write:
            self._counted(counts[:3], 0)
        return len(addresses)

    def delete(self, keys: Keys) -> int:
        """Delete the rows of these keys; returns how many existed. Changes the order of rows in their buckets, and
        gives back memory that the buckets then have to spare.
        """
        removed = self.remove(keys)
        self.deleted += removed
        for bucket in np.unique(bucket_of(keys, self.num_buckets)).tolist():
            self.shrink(bucket)
        return removed

    def remove(self, keys: Keys) -> int:
        """As `delete`, without giving memory back: `shrink` does."""
        keys = np.ascontiguousarray(keys, np.uint64)
        self.watchers.removing(keys)
        return int(changes.remove(self.arena.words, self._buckets.table, keys, *self._place))

    def shrink(self, bucket: int) -> None:
        """Give back memory that a bucket has to spare."""
        self._buckets.shrink(bucket)

    @property
    def arena(self) -> Arena:
        """The memory that addresses of rows count in."""
        return self._buckets.arena

    def read_values(self, addresses: NDArray[np.int64], segment: str | None = None) -> Rows:
        """float32 [n, dim]: decoded values of rows, all segments side by side or one."""
        return decoded(self, addresses, segment)[0]

    def has_segment(self, addresses: NDArray[np.int64], segment: str | None) -> NDArray[np.bool_]:
        """bool [n]: which rows have a segment, or any (None)."""
        is_late = segment is not None and self._layout.segment(segment)[1].late
        found: NDArray[np.bool_] = addresses < (index.EARLY if is_late else np.iinfo(np.int64).max)
        return found

    def scan(self, bucket: int, segment: str | None = None) -> Iterator[Block]:
        """Blocks of at most 4096 rows in row order: all segments side by side, or one of them. See Block.

        Of a late segment: the rows that have it. In whole rows, a late segment that a row does not have is as initial,
        and what a block writes there is dropped.
        """
        place, column = ALL, 0
        if segment is not None:
            place, chosen = self._layout.segment(segment)
            column = chosen.column
        for keys, addresses in blocks_of(self, bucket, segment):
            try:
                values, state = decoded(self, addresses, segment)
            except Exception as error:
                raise blame_optimizers(self, error, "init_state", keys[:0], self._own_rates) from error
            yield Block(keys, values, state, self, addresses, place, column)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """bool [n]: which keys have a row."""
        present: NDArray[np.bool_] = self._locate(keys)[0] >= 0
        return present

    def write_values(
        self,
        keys: UniqueKeys,
        values: Rows,
        segment: str | None = None,
        *,
        step: int = 0,
        seen: Seen = NOTHING_SEEN,
    ) -> PushCounts:
        """Set the values (float32 [n, dim]) of a segment or of whole rows, creating rows of admitted keys. State
        stays, or is initial. A late segment named here is made where a row does not have it; in whole rows it is passed
        over there.

        Raises RequestError for a wrong shape, MemoryLimitError when there is no room; both before anything is written.
        """
        place, column, width = ALL, 0, self._layout.width
        if segment is not None:
            place, chosen = self._layout.segment(segment)
            column, width = chosen.column, chosen.dim
        if values.shape != (len(keys), width):
            raise RequestError(f"table {self.name!r}: values {values.shape} for {len(keys)} keys of width {width}")
        keys = np.ascontiguousarray(keys, np.uint64)
        self.watchers.changing(keys)
        addresses, made = self.new_rows.rows_for(keys, seen, step)
        present = addresses >= 0
        try:
            with self.late.complete(keys[present], addresses[present], segment) as (_, addresses):
                nonfinite = self._overwrite(addresses, place, column, values[present])
        except Exception:
            self.new_rows.take_back(made)
            self.created -= len(made)
            raise
        num_rows = int(np.count_nonzero(present))
        return PushCounts(num_rows - nonfinite, len(made), nonfinite, len(keys) - num_rows)

    def read_images(self, bucket: int) -> Iterator[tuple[Keys, Images]]:
        """(keys, images) of at most 4096 rows at a time, in row order: full rows, then early ones, whose images are
        shorter; all of one piece are of one size.
        """
        for keys, addresses in blocks_of(self, bucket):
            yield keys, images_at(self, addresses)

    def write_images(self, keys: UniqueKeys, images: Images) -> None:
        """Set rows to images (uint8 [n, image_bytes]), creating rows in the order of `keys` where there are none.

        Images of early rows make early rows, also where there was a full one, and the reverse. Raises RequestError for
        a wrong shape, MemoryLimitError when there is no room; both before anything is written.
        """
        writing.write(self, keys, images)

    def load_images(self, bucket: int, keys: UniqueKeys, images: Images, *, expected: int = 0) -> None:
        """As `write_images`, for keys of one bucket that have no rows, which are not looked up first: others are right
        too, only slower.

        expected: how many rows the bucket is to have in the end, about, so that its index need not grow on the way.
        """
        writing.load(self, bucket, keys, images, expected)

    def drop_bucket(self, bucket: int) -> None:
        """Delete all rows of a bucket and give their memory back."""
        self.watchers.dropping(bucket)
        self._buckets.drop(bucket)
        self.admission.drop_bucket(bucket)

    def expect(self, num_rows: int) -> None:
        """About so many rows are to come to an empty table: see Arena.expect."""
        self._buckets.expect(num_rows)

    def clear(self) -> None:
        """Delete all rows and give their memory back."""
        for bucket in range(self.num_buckets):
            self.watchers.dropping(bucket)
        self._buckets.clear()
        self.admission.clear()

    @property
    def _memory(self) -> tuple[NDArray[np.uint32], Floats, NDArray[np.uint16], NDArray[np.int64]]:
        arena = self._buckets.arena
        return arena.words, arena.floats, arena.halves, self._buckets.table

    def _checked_rates(self, learning_rates: Floats) -> Floats:
        rates = np.ascontiguousarray(learning_rates, np.float32)
        if rates.shape != (len(self.spec.segments),):
            raise RequestError(
                f"table {self.name!r}: learning rates {rates.shape} for {len(self.spec.segments)} segments"
            )
        return rates

    def _locate(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each key's address, -1 where there is no row; and by bucket how many keys have none."""
        addresses, missing = np.empty(len(keys), np.int64), np.zeros(self.num_buckets, np.int64)
        keys, table = np.ascontiguousarray(keys, np.uint64), self._buckets.table
        index.locate(self.arena.words, table, keys, *self._place, addresses, missing, *self._workspace[:2])
        return addresses, missing

    def _overwrite(self, addresses: NDArray[np.int64], segment: int, column: int, values: Rows) -> int:
        counts, arena = np.zeros(3, np.int64), self._buckets.arena
        values = np.ascontiguousarray(values, np.float32)
        memory, rest = (arena.floats, arena.halves), (self._own_rates, self._hyper, counts, self._workspace[2])
        try:
            with restored(arena.words, self._layout, addresses if self.may_raise else addresses[:0]):
                self._kernels.overwrite_rows(*memory, addresses, segment, column, values, *rest)
        except Exception as error:
            raise blame_optimizers(self, error, "rebase_state", np.empty(0, np.uint64), self._own_rates) from error
        return self._counted(counts, 0).nonfinite

    def _counted(self, counts: NDArray[np.int64], created: int, refused: int = 0) -> PushCounts:
        applied, nonfinite, saturated = (int(count) for count in counts)
        self.saturated += saturated
        self.nonfinite += nonfinite
        return PushCounts(applied, created, nonfinite, refused)
