"""Which rows lose theirs, and room for new ones when a table nears its memory limit. Single-threaded, as its table.

Both go bucket by bucket, a few thousand rows at a time, from a bucket's last row to its first: the last row fills the
place of one that goes, so rows that were not looked at are never moved behind the cursor. Between two yields the table
may change; rows that come meanwhile are looked at the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.keys import MAX_SLOT, slot_of
from ps.storage.kernels.metadata import read_metadata
from ps.storage.reading import rows_of
from ps.storage.table import Table
from ps.types import Keys, Rows

_CHUNK_ROWS = 4096
_SAMPLE_ROWS = 1 << 14
_NEARLY_FULL, _ROOMY = 0.92, 0.85  # of the memory limit: where making room begins, and what it goes down to
_AT_ONCE = 0.05  # of the rows: what one pass of making room takes
_MAX_PASSES = 8
_Judge: TypeAlias = Callable[[Keys, NDArray[np.int64]], NDArray[np.bool_]]  # (keys, addresses) -> which rows go


class Evictor:
    """Evicts from one table, whose spec has an `eviction`."""

    def __init__(self, table: Table) -> None:
        assert table.spec.eviction is not None
        self._table, self._option = table, table.spec.eviction
        self._least_rows = -(-self._option.min_rows // table.num_buckets)
        self._ages = np.full(MAX_SLOT + 1, self._option.max_age_seconds or np.inf)
        for slot, seconds in self._option.slots.items():
            self._ages[slot] = seconds
        self._now = 0  # newest event time of the rows last sampled
        self._is_making_room = self._is_asked = False
        self._useless_below = 0  # bytes: making room came to its end here, so it waits until there are more

    def evict(self, bucket: int, *, now: int) -> Iterator[int]:
        """Evict the rows of a bucket that the limits name at event time `now` (seconds); yields how many went, chunk by
        chunk. Gives their memory back at the end.
        """
        yield from self._evict(bucket, lambda keys, addresses: self._is_due(keys, addresses, now))

    def make_room(self, buckets: NDArray[np.int64]) -> Generator[None, None, None] | None:
        """Where the table is nearly full, or `ask_for_room` said so: work to be run in slices, after which it is not,
        or has nothing to evict.
        """
        limit, present = self._table.spec.memory_limit_bytes, self._table.memory_bytes
        if self._option.when_full is None or limit is None or self._is_making_room:
            return None
        wanted = self._is_asked or present >= max(_NEARLY_FULL * limit, self._useless_below + 1)
        if not wanted or not self._has_rows_to_spare(buckets):
            return None
        # Who asked found no room for a push: what is there now is too much, whatever it is.
        target = min(int(_ROOMY * limit), present - limit // 8 if self._is_asked else limit)
        self._is_making_room, self._is_asked = True, False
        return self._make_room(buckets, target)

    def ask_for_room(self, buckets: NDArray[np.int64]) -> bool:
        """Whether room is being made; else it will be when `make_room` is called next, if there are rows to evict."""
        if not self._is_making_room:
            self._is_asked = self._option.when_full is not None and self._has_rows_to_spare(buckets)
        return self._is_making_room or self._is_asked

    def _has_rows_to_spare(self, buckets: NDArray[np.int64]) -> bool:
        return bool((self._table.rows_per_bucket[buckets] > self._least_rows).any())

    def _make_room(self, buckets: NDArray[np.int64], target_bytes: int) -> Generator[None, None, None]:
        table = self._table
        try:
            for _ in range(_MAX_PASSES):
                if table.memory_bytes <= target_bytes or not self._has_rows_to_spare(buckets):
                    return
                is_worst = self._worst(float(np.quantile(self._sampled(buckets), _AT_ONCE)))
                for bucket in buckets.tolist():
                    # Rows may all be worth the same: no bucket gives more than its share at once.
                    share = int(np.ceil(_AT_ONCE * table.rows_per_bucket[bucket]))
                    for _gone in self._evict(bucket, is_worst, share):
                        yield
            self._useless_below = table.memory_bytes
        finally:
            self._is_making_room = False

    def _worst(self, at_most: float) -> _Judge:
        return lambda _, addresses: self._worth(addresses) <= at_most

    def _sampled(self, buckets: NDArray[np.int64]) -> NDArray[np.float64]:
        """What rows are worth, of a sample that takes the same part of every bucket; at least one."""
        table, found = self._table, []
        part = min(1.0, _SAMPLE_ROWS / max(1, int(table.rows_per_bucket[buckets].sum())))
        for bucket in buckets.tolist():
            rows = int(table.rows_per_bucket[bucket])
            count = int(np.ceil(rows * part))
            found.append(rows_of(table, bucket, (rows - count) // 2, count)[1])
        addresses = np.concatenate(found)
        self._now = int(self._metadata(addresses, 0)[0].max())
        return self._worth(addresses)

    def _evict(self, bucket: int, is_due: _Judge, at_most: int | None = None) -> Iterator[int]:
        table = self._table
        end = int(table.rows_per_bucket[bucket])
        left = end if at_most is None else at_most
        while end > 0 and left > 0:
            end = min(end, int(table.rows_per_bucket[bucket]))
            first = max(0, end - _CHUNK_ROWS)
            keys, addresses = rows_of(table, bucket, first, end - first)
            spare = int(table.rows_per_bucket[bucket]) - self._least_rows
            due = np.flatnonzero(is_due(keys, addresses))[: max(0, min(left, spare))]
            gone = table.remove(keys[due])
            table.evicted += gone
            end, left = first, left - gone
            yield gone
        table.shrink(bucket)
        yield 0

    def _is_due(self, keys: Keys, addresses: NDArray[np.int64], now: int) -> NDArray[np.bool_]:
        option, due = self._option, np.zeros(len(keys), np.bool_)
        last_seen, counts = self._metadata(addresses, now)
        if option.by_age:
            due |= now - last_seen > self._ages[slot_of(keys)]
        if option.min_score is not None:
            due |= self._table.admission.score_of(counts[:, 0], counts[:, 1]) < option.min_score
        if option.min_norm is not None:
            values = self._table.read_values(addresses, option.norm_segment)
            is_small = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64)) < option.min_norm
            due |= is_small & self._table.has_segment(addresses, option.norm_segment)
        return due

    def _worth(self, addresses: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n]: what is least goes first."""
        last_seen, counts = self._metadata(addresses, self._now)
        if self._option.when_full == "oldest":
            return last_seen.astype(np.float64)
        return self._table.admission.score_of(counts[:, 0], counts[:, 1])

    def _metadata(self, addresses: NDArray[np.int64], now: int) -> tuple[NDArray[np.int64], Rows]:
        """last_seen [n], and shows and clicks [n, 2] as decayed at `now`; zeros where they are not kept."""
        spec, memory = self._table.spec, self._table.arena
        last_seen, counts = np.zeros(len(addresses), np.int64), np.zeros((len(addresses), 2), np.float32)
        if spec.keeps_time:
            keeps = spec.keeps_counts
            read_metadata(memory.words, memory.floats, addresses, now, spec.score.decay, keeps, last_seen, counts)
        return last_seen, counts
