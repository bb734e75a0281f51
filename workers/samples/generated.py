"""The generated click log: rows that are a function of (seed, row number), so any block of them can be made at once.

Columns: the keyed fields of the configuration (their keys are the ranks 0, 1, ... of a Zipf law), `tags` (lists),
`position` (uniform, so that its effect is known), `price` (log-normal), `propensity` (P(seen) at that position),
`event_time` (seconds, evenly spaced), `click`. Clicks are drawn from the teacher's probability, which comes along as
`Batch.probability`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ps.keys import mix
from workers.config import Generated
from workers.config.data import Split
from workers.samples.chunk import Chunk, Range
from workers.samples.teacher import GOLDEN, Draws, Float64s, Teacher, normals, salt

CHUNK_ROWS = 1 << 15
START = 1_704_067_200.0  # 2024-01-01 UTC
SECONDS_PER_DAY = 86_400.0


def uniforms(rows: NDArray[np.uint64], seed: int, name: str) -> Float64s:
    """float64 [n] in [0, 1): draw `name` of each row."""
    with np.errstate(over="ignore"):
        hashes = mix(rows * GOLDEN + salt("draw", seed, name))
    draws: Float64s = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def zipf_ranks(uniform: Float64s, num_keys: int, exponent: float) -> NDArray[np.int64]:
    """int64 [n] in 0..num_keys-1: the integer part, less 1, of a draw from x^-exponent on [1, num_keys + 1)."""
    top = float(num_keys + 1)
    if abs(exponent - 1.0) < 1e-9:
        x = top**uniform
    else:
        power = 1.0 - exponent
        x = (1.0 + uniform * (top**power - 1.0)) ** (1.0 / power)
    return np.clip(x.astype(np.int64) - 1, 0, num_keys - 1)


class GeneratedSource:
    """Rows of one split. The splits lie one after another in time."""

    def __init__(self, log: Generated, split: Split, *, chunk_rows: int = CHUNK_ROWS) -> None:
        self.log, self.split, self.chunk_rows = log, split, chunk_rows
        self.teacher = Teacher(log)
        sizes = {"train": log.train_rows, "valid": log.valid_rows, "test": log.test_rows}
        self.known_rows = sizes[split]
        self._total = sum(sizes.values())
        self._offset = {"train": 0, "valid": log.train_rows, "test": log.train_rows + log.valid_rows}[split]

    def count_rows(self) -> int:
        return self.known_rows

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        for start, stop in ranges:
            if start >= self.known_rows:
                return
            for first in range(start, min(stop, self.known_rows), self.chunk_rows):
                yield self._make(first, min(first + self.chunk_rows, stop, self.known_rows))

    def _make(self, start: int, stop: int) -> Chunk:
        log = self.log
        rows = np.arange(self._offset + start, self._offset + stop, dtype=np.uint64)
        time = rows / max(self._total - 1, 1)
        keys = {
            name: zipf_ranks(uniforms(rows, log.seed, name), num_keys, log.zipf) for name, num_keys in log.keys.items()
        }
        position = (uniforms(rows, log.seed, "position") * log.positions).astype(np.int64)
        log_price = normals(rows, salt("price", log.seed), 1)[:, 0]
        tags, num_tags = self._tags(rows)
        probability = self.teacher.probability(Draws(keys, tags, num_tags, log_price, position, time))
        click = uniforms(rows, log.seed, "click") < probability
        columns = {name: pa.array(own) for name, own in keys.items()}
        if log.tag_keys:
            offsets = np.zeros(len(rows) + 1, np.int32)
            np.cumsum(num_tags, out=offsets[1:])
            columns["tags"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tags))
        columns["position"] = pa.array(position)
        columns["price"] = pa.array(np.exp(log_price))
        columns["propensity"] = pa.array(self.teacher.propensity(position))
        columns["event_time"] = pa.array(START + time * log.days * SECONDS_PER_DAY)
        columns["click"] = pa.array(click.astype(np.int8))
        return Chunk(columns, len(rows), self._place, start, probability)

    def _tags(self, rows: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows' tags end to end, and int64 [n], 1..max_tags of them a row (0 where there is no such field)."""
        log = self.log
        if not log.tag_keys:
            return np.zeros(0, np.int64), np.zeros(len(rows), np.int64)
        num_tags = 1 + (uniforms(rows, log.seed, "num_tags") * log.max_tags).astype(np.int64)
        place = np.arange(num_tags.sum()) - np.repeat(np.cumsum(num_tags) - num_tags, num_tags)
        draws = np.repeat(rows, num_tags) * np.uint64(log.max_tags) + place.astype(np.uint64)
        return zipf_ranks(uniforms(draws, log.seed, "tags"), log.tag_keys, log.zipf), num_tags

    def _place(self, row: int) -> str:
        return f"generated {self.split} log: row {row + 1}"
