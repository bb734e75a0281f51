"""Small configurations, sources and plain oracles for the tests of samples."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ps.keys import hash_texts
from workers.config import Config
from workers.samples.batch import Batch
from workers.samples.chunk import Chunk, Range

COLUMNS = ("dense", "labels", "weights", "groups", "event_time", "probability")


def config(data: dict[str, Any], fields: dict[str, Any], **parts: Any) -> Config:
    """A configuration of one table with the binary label `click` unless `parts` says otherwise."""
    forms = [{"type": field} if isinstance(field, str) else field for field in fields.values()]
    has_keys = any(form["type"] != "numeric" or form.get("transform") == "buckets" for form in forms)
    base = {
        "name": "t",
        "data": data,
        "labels": {"click": "binary"},
        "tables": {"main": {"segments": {"embedding": {"dim": 2}}}},
        "model": "lr",
    } | parts
    if not has_keys:  # a job needs one
        fields = fields | {"key": {"type": "categorical", "column": next(iter(base["labels"]))}}
    return Config.model_validate(base | {"fields": fields})


def write(path: Path, text: str) -> Path:
    """A text file, packed where its name ends in .gz."""
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def key(slot: int, text: str) -> int:
    """The key of a value: the documented packing, in plain integers."""
    return slot << 52 | int(hash_texts([text])[0]) & (1 << 52) - 1


def bag(batch: Batch, sample: int, field: str, table: str = "main") -> list[int]:
    """The keys of one bag."""
    bags = batch.bags[table]
    number = sample * len(bags.fields) + bags.fields.index(field)
    if bags.offsets is None:
        return [int(bags.keys[number])]
    return [int(key) for key in bags.keys[bags.offsets[number] : bags.offsets[number + 1]]]


def assert_same(first: Batch, second: Batch) -> None:
    """Equal in every bit."""
    assert first.size == second.size
    assert first.bags.keys() == second.bags.keys()
    for table, bags in first.bags.items():
        other = second.bags[table]
        assert (bags.fields, bags.mean) == (other.fields, other.mean)
        np.testing.assert_array_equal(bags.keys, other.keys)
        assert (bags.offsets is None) == (other.offsets is None)
        if bags.offsets is not None:
            np.testing.assert_array_equal(bags.offsets, other.offsets)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


class NumberedSource:
    """Rows 0..n-1 whose column `id` is their number and `tags` the list of its digits."""

    def __init__(self, num_rows: int, chunk_rows: int, *, is_known: bool = True) -> None:
        self.num_rows, self.chunk_rows, self.is_known = num_rows, chunk_rows, is_known
        self.rows_read = 0

    @property
    def known_rows(self) -> int | None:
        return self.num_rows if self.is_known else None

    def count_rows(self) -> int:
        return self.num_rows

    def chunks(self, ranges: Iterable[Range]) -> Iterator[Chunk]:
        for start, stop in ranges:
            if start >= self.num_rows:
                return
            stop = min(stop, self.num_rows)
            for first in range(start, stop, self.chunk_rows):
                numbers = range(first, min(first + self.chunk_rows, stop))
                self.rows_read += len(numbers)
                columns = {
                    "id": pa.array(numbers),
                    "tags": pa.array([[int(digit) for digit in str(number)] for number in numbers]),
                    "number": pa.array(numbers, pa.float64()),
                    "click": pa.array([number % 2 for number in numbers]),
                }
                yield Chunk(columns, len(numbers), lambda row: f"row {row}", first)


NUMBERED = config(
    {"train": "none"}, {"id": "categorical", "tags": "multi", "number": "numeric"}, labels={"click": "binary"}
)


def numbers_of(batches: Iterable[Batch]) -> list[list[int]]:
    """The row numbers of each batch of a NumberedSource; checks that keys and labels are of the same rows."""
    result = []
    for batch in batches:
        rows = [int(value) for value in batch.dense[:, 0]]
        assert batch.size == len(rows)
        assert batch.labels[:, 0].tolist() == [row % 2 for row in rows]
        for i, row in enumerate(rows):
            assert bag(batch, i, "id") == [key(0, str(row))]
            assert bag(batch, i, "tags") == [key(1, digit) for digit in str(row)]
        result.append(rows)
    return result
