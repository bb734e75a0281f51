"""A split as batches: in which order, which worker gets which, and from where on.

Three kinds of order (docs/samples.md):
    full     the split is parsed once and held in memory; each epoch permutes it. Worker r of W takes rows [r*B,
    (r+1)*B) of each
             global batch of W*B rows, so W workers of batch B follow one worker of batch W*B.
    window   streaming. Each worker takes a window of rows in turn, parses and permutes only that.
    none     streaming in the data's own order; shares as in full.
Evaluation: the data's own order, a contiguous share each, nothing left out.

Every batch is a function of (seed, epoch, rank, world, number), so an epoch can start at any batch. One thread at a
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workers.samples.batch import Batch
from workers.samples.chunk import Range, Source
from workers.samples.order import in_parts, num_batches, permuted, shares
from workers.samples.rows import cut_rows, join, take
from workers.samples.schema import Schema

STREAM_ROWS = 1 << 16


class Dataset:
    """Batches of a source. held: keep the parsed split in memory (always for shuffle full)."""

    def __init__(
        self,
        source: Source,
        schema: Schema,
        *,
        batch_size: int,
        shuffle: Literal["full", "none"] | int = "none",
        seed: int = 0,
        drop_last: bool = False,
        held: bool = False,
        evaluation: bool = False,
    ) -> None:
        self.source, self.schema, self.batch_size = source, schema, batch_size
        self.shuffle, self.seed, self.drop_last, self.evaluation = shuffle, seed, drop_last, evaluation
        self.is_held = held or shuffle == "full"
        self._samples: Batch | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def num_rows(self) -> int | None:
        """Rows of the split, or None where nobody has counted them yet."""
        return self.source.known_rows if self._samples is None else self._samples.size

    def samples(self) -> Batch:
        """The whole split, parsed, in its own order; kept in memory from now on."""
        if self._samples is None:
            self._samples = join(
                [self.schema.parse(chunk) for chunk in self.source.chunks(in_parts(0, None, STREAM_ROWS))]
            )
        return self._samples

    def num_batches(self, world: int = 1, drop_last: bool | None = None) -> int | None:
        """Batches of every worker in an epoch (in an evaluation, of the one with most), or None where rows are not
        counted.
        """
        rows = self._count_rows() if world > 1 or self.is_held else self.num_rows
        if rows is None:
            return None
        if self.evaluation:
            largest_share = -(-rows // world)
            return -(-largest_share // self.batch_size)
        drop_last = self.drop_last if drop_last is None else drop_last
        return num_batches(rows, self.batch_size, world, drop_last=drop_last, part=self._part(world))

    def batches(
        self, epoch: int = 0, rank: int = 0, world: int = 1, start_batch: int = 0, drop_last: bool | None = None
    ) -> Iterator[Batch]:
        """The batches of one worker from number `start_batch` on. Every worker gets the same number of them, except
        in an evaluation, which also never drops one. Raises DataError.
        """
        drop_last = (self.drop_last if drop_last is None else drop_last) and not self.evaluation
        rows = self._count_rows() if world > 1 or self.is_held else self.num_rows
        part = self._part(world)
        first, skipped = divmod(start_batch, part // self.batch_size)
        if self.evaluation and rows is not None:
            ranges = in_parts(rows * rank // world + first * part, rows * (rank + 1) // world, part)
        else:
            ranges = shares(rows, part, rank, world, first)
        parts = self._held(ranges, epoch) if self.is_held else self._streamed(ranges, epoch)
        return _batched(parts, self.batch_size, drop_last, skipped)

    def _part(self, world: int) -> int:
        """Rows that a worker takes in turn: a multiple of the batch size."""
        rows = self.shuffle if isinstance(self.shuffle, int) else 1
        if self.evaluation or (self.shuffle == "none" and world == 1):
            rows = STREAM_ROWS  # the order is the same for any number: only a matter of speed
        return -(-rows // self.batch_size) * self.batch_size

    def _count_rows(self) -> int:
        return self.samples().size if self.is_held else self.source.count_rows()

    def _held(self, ranges: Iterable[Range], epoch: int) -> Iterator[Batch]:
        samples = self.samples()
        for start, stop in ranges:
            if self.shuffle == "full":
                yield take(samples, self._permutation(epoch, samples.size)[start:stop])
            else:
                yield cut_rows(samples, start, stop)

    def _permutation(self, epoch: int, rows: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permuted(0, rows, seed=self.seed, epoch=epoch)
        return self._order[1]

    def _streamed(self, ranges: Iterable[Range], epoch: int) -> Iterator[Batch]:
        """A parsed part for each range, permuted within itself where there is a window."""
        ranges, asked = tee(ranges)
        chunks = self.source.chunks(asked)
        for start, stop in ranges:
            pieces: list[Batch] = []
            missing = stop - start
            while missing and (chunk := next(chunks, None)) is not None:
                pieces.append(self.schema.parse(chunk))
                missing -= chunk.size
            if not pieces:
                return
            part = join(pieces)
            if isinstance(self.shuffle, int):
                part = take(part, permuted(start, start + part.size, seed=self.seed, epoch=epoch) - start)
            yield part


def _batched(parts: Iterable[Batch], batch_size: int, drop_last: bool, skipped: int) -> Iterator[Batch]:
    """Parts cut into batches, from batch `skipped` of the first part on. All parts but the last are whole batches."""
    start = skipped * batch_size
    for part in parts:
        stop = part.size // batch_size * batch_size if drop_last else part.size
        for first in range(start, stop, batch_size):
            yield cut_rows(part, first, min(first + batch_size, stop))
        start = 0
