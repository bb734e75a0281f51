"""Bytes that rows take in memory and in a checkpoint, from the code that lays them out: nothing is estimated here.

A table of few buckets is grown in address space alone: its real Buckets plan runs, blocks and indexes, and no row is
written. Buckets are staggered in their cycle of growth, which repeats from one index size to the next; so a few of
them, spread over the cycle, stand for all, and a bucket of millions of rows for one of fewer in the same place.
"""

from __future__ import annotations

import numpy as np

from ps.record import Record, encode_record
from ps.spec import TableSpec
from ps.storage.buckets import FULL, GROWTH, Buckets
from ps.storage.layout import layout_of

_SAMPLED_BUCKETS = 32
_SAMPLED_ROWS = 300_000  # of one bucket, at most; from there on runs have their greatest size and sizes only repeat
_STEP = 1.01  # growth between two reservations: finer than a run, which is a sixteenth
_RECORD_ROWS = 4096  # of a checkpoint's record


class Footprint:
    """Of one table's layout. Every row counts as one that has its late segments."""

    def __init__(self, name: str, spec: TableSpec) -> None:
        self._name, self._layout = name, layout_of(spec)
        self.max_rows = Buckets(name, self._layout, 1, None).max_rows  # of a bucket

    @property
    def row_bytes(self) -> int:
        """Key, metadata, values and state of a row, with its late segments."""
        return self._layout.kinds[FULL].row_bytes

    @property
    def image_bytes(self) -> int:
        """Of a row in a file or on its way, without its key."""
        return 4 * self._layout.image_words

    def memory_bytes(self, num_rows: float, num_buckets: int) -> float:
        """What Table.memory_bytes comes to, over all shards. Raises ValueError for more rows than buckets hold."""
        rows = num_rows / num_buckets
        if rows > self.max_rows:
            raise ValueError(f"{rows:.4g} rows in a bucket; it holds {self.max_rows}")
        sampled = min(_SAMPLED_BUCKETS, num_buckets)
        scaled = rows
        while scaled > _SAMPLED_ROWS:
            scaled /= GROWTH
        added = self._grown_bytes(sampled, round(scaled)) - self._grown_bytes(sampled, 0)
        per_bucket = added / sampled * (rows / scaled if scaled else 0)
        return self._grown_bytes(num_buckets, 0) + num_buckets * per_bucket

    def checkpoint_bytes(self, num_rows: float, num_buckets: int) -> float:
        """Of all records: rows without padding between them, and a frame for every 4,096 rows of a bucket."""
        image = self.image_bytes
        one = Record(self._name, num_buckets - 1, "", np.zeros(1, np.uint64), np.zeros((1, image), np.uint8))
        frame = len(encode_record(one)) - 8 - image
        records = num_buckets * -(-(num_rows / num_buckets) // _RECORD_ROWS)
        return num_rows * (8 + image) + records * frame

    def _grown_bytes(self, num_buckets: int, rows: int) -> int:
        """Memory of buckets that grew to `rows` rows each, row by row or nearly so."""
        buckets, reached = Buckets(self._name, self._layout, num_buckets, None), 0
        while reached < rows:
            reached = min(max(reached + 1, int(reached * _STEP)), rows)
            rows_of_lines = np.zeros(len(buckets.table), np.int64)
            rows_of_lines[:num_buckets] = reached  # full rows; there are none yet, so all of these are new
            buckets.reserve(rows_of_lines)
        return buckets.memory_bytes
