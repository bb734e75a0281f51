"""Which keys earn a row: decided when a key without one is pushed. Part of a Table; single-threaded.

What keys have gathered so far belongs to their bucket: it is dropped, saved and loaded with it.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.keys import MAX_SLOT, hash_texts
from ps.lifetime import Always, ByCount, Chance, Sketched
from ps.spec import TableSpec
from ps.storage.kernels import admission as kernels
from ps.storage.watching import Watchers
from ps.types import Floats, Keys

_COUNTER_BYTES = 2
_FULL_SCALE = 32_768  # what the greatest threshold is in a counter


class Admission:
    """The gate of one table."""

    def __init__(self, table: str, spec: TableSpec, watchers: Watchers, *, seed: int, num_buckets: int) -> None:
        self._watchers = watchers
        self._option, self._score = spec.admission, spec.score
        self._bits = num_buckets.bit_length() - 1
        self._stream = hash_texts([f"{seed}\0{table}\0admission"])[0]
        self._sketch, self._used = np.zeros((num_buckets, 0), np.uint16), np.zeros(num_buckets, np.int64)
        option = self._option
        if isinstance(option, Sketched):
            lines = max(1, option.sketch_bytes // (num_buckets * kernels.LINE * _COUNTER_BYTES))
            self._sketch = np.zeros((num_buckets, lines * kernels.LINE), np.uint16)  # its pages come when touched
            self._thresholds = np.full(MAX_SLOT + 1, option.threshold)
            for slot, threshold in option.slots.items():
                self._thresholds[slot] = threshold
            self._scale = _FULL_SCALE / max(float(self._thresholds.max()), 1e-9)
            show = 1.0 if isinstance(option, ByCount) else self._score.show or self._score.click or 1.0
            self._least = min(int(np.ceil(show * self._scale)), _FULL_SCALE)

    @property
    def is_open(self) -> bool:
        """Whether every key is admitted."""
        return isinstance(self._option, Always)

    @property
    def memory_bytes(self) -> int:
        """Of the sketches of buckets that have gathered something."""
        return int(np.count_nonzero(self._used)) * self._sketch.shape[1] * _COUNTER_BYTES

    def admit(self, keys: Keys, counts: Floats | None, *, step: int) -> NDArray[np.bool_]:
        """bool [n]: which of these unique keys without a row earn one now. counts: float32 [n, 2], shows and clicks of
        this push; None: one show each. Gathers them.
        """
        admitted = np.ones(len(keys), np.bool_)
        option, keys = self._option, np.ascontiguousarray(keys, np.uint64)
        if isinstance(option, Chance):
            kernels.draw_chances(keys, self._stream, step, option.probability, admitted)
        elif isinstance(option, Sketched):
            shows, clicks = (np.ones(len(keys)), np.zeros(len(keys))) if counts is None else counts.T
            amounts = shows if isinstance(option, ByCount) else self.score_of(shows, clicks)
            self.gather(keys, amounts.astype(np.float32), admitted)
        return admitted

    def gather(self, keys: Keys, amounts: Floats, admitted: NDArray[np.bool_]) -> None:
        """Add amounts (float32 [n]) to what keys have gathered in a sketch; admitted [n]: whose is enough now."""
        if not self._sketch.shape[1]:
            return
        self._watchers.gathering(keys, amounts)
        rest = (self._scale, self._least, self._thresholds, admitted)
        kernels.gather(self._sketch, self._used, np.ascontiguousarray(keys, np.uint64), self._bits, amounts, *rest)

    def score_of(self, shows: NDArray[np.floating], clicks: NDArray[np.floating]) -> NDArray[np.float64]:
        """float64 [n]: ps.lifetime.Score."""
        score: NDArray[np.float64] = self._score.show * (shows.astype(np.float64) - clicks) + self._score.click * clicks
        return score

    def drop_bucket(self, bucket: int) -> None:
        """Forget what a bucket's keys have gathered."""
        self._sketch[bucket], self._used[bucket] = 0, 0

    def clear(self) -> None:
        """Forget everything."""
        self._sketch[self._used > 0] = 0
        self._used[:] = 0

    def save(self, bucket: int) -> bytes:
        """What a bucket's keys have gathered; empty for nothing."""
        return self.packed(self._sketch[bucket] if self._used[bucket] else self._sketch[bucket, :0])

    def gathered(self, bucket: int) -> NDArray[np.uint16]:
        """A copy of what a bucket's keys have gathered, empty for nothing; quicker than to save it."""
        return self._sketch[bucket].copy() if self._used[bucket] else self._sketch[bucket, :0].copy()

    def packed(self, gathered: NDArray[np.uint16]) -> bytes:
        """What `save` gives of it."""
        return zlib.compress(gathered.astype("<u2").tobytes(), 1) if len(gathered) else b""

    def load(self, bucket: int, data: bytes) -> None:
        """The reverse of `save`. A sketch of another size, or of a table that has none now, is forgotten: keys gather
        anew. Raises RequestError for damage.
        """
        size = self._sketch.shape[1] * _COUNTER_BYTES
        try:
            found = zlib.decompressobj().decompress(data, size + 1)
        except zlib.error as error:
            raise RequestError(f"the admission sketch of bucket {bucket} is damaged: {error}") from error
        if size and len(found) == size:
            self._sketch[bucket] = np.frombuffer(found, "<u2")
            self._used[bucket] = np.count_nonzero(self._sketch[bucket])
