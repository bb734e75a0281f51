"""The order of samples: a function of (seed, epoch, row number) alone; each worker can compute its part of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ps.keys import hash_texts, mix
from workers.samples.chunk import Range


def permuted(start: int, stop: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [stop - start]: rows start..stop-1 sorted by a hash of (seed, epoch, row); mix is one-to-one, so without
    ties.
    """
    salt = hash_texts([f"order {seed} {epoch}"])[0]
    return np.argsort(mix(np.arange(start, stop, dtype=np.uint64) + salt)) + start


def in_parts(start: int, stop: int | None, part: int) -> Iterator[Range]:
    """[start, stop) in consecutive ranges of `part` rows; stop None: without end."""
    while stop is None or start < stop:
        end = start + part if stop is None else min(start + part, stop)
        yield start, end
        start = end


def shares(num_rows: int | None, part: int, rank: int, world: int, first: int = 0) -> Iterator[Range]:
    """The rows of one worker, in rounds from `first` on: round i gives each of `world` workers, by rank, `part` rows
    in turn.

    In the last, shorter round every worker gets the same number of rows; less than `world` rows are left out at the
    end. num_rows None (unknown; world 1 only): without end.
    """
    if num_rows is None:
        yield from in_parts(first * part, None, part)
        return
    for start in range(first * part * world, num_rows, part * world):
        own = min(part, (num_rows - start) // world)
        if own:
            yield start + rank * own, start + (rank + 1) * own


def num_batches(num_rows: int, batch_size: int, world: int, *, drop_last: bool, part: int) -> int:
    """Batches that each worker gets out of `shares`."""
    rounds, rest = divmod(num_rows, part * world)
    own = rest // world
    return rounds * (part // batch_size) + (own // batch_size if drop_last else -(-own // batch_size))
