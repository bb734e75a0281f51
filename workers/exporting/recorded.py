"""Recorded samples: the first rows of a split as requests would carry them, and as the trainer reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ps.types import Keys, Rows
from workers.config import Config, Numeric
from workers.config.data import Split
from workers.exporting.tower import TowerInputs
from workers.models.registry import required_segments
from workers.samples.batch import Batch
from workers.samples.chunk import Chunk
from workers.samples.columns import is_text, numbers
from workers.samples.open import open_dataset
from workers.samples.rows import join
from workers.samples.schema import Schema
from workers.training.lookup import RowLeaves


@dataclass(frozen=True)
class Recorded:
    """columns: of the fields, by name, a JSON value each sample. Text and integers come as they are, what else is
    hashed as the text that was hashed, what is only read as a number as a number; None where missing.
    """

    split: Split
    batch: Batch
    columns: dict[str, list[Any]]

    @property
    def keys(self) -> dict[str, Keys]:
        """By table, ascending and unique."""
        return {table: np.unique(bags.keys) for table, bags in self.batch.bags.items()}

    def inputs(self, config: Config, rows: Mapping[str, Rows]) -> TowerInputs:
        """What the model reads of these samples. rows: by table float32 [n, width], of `keys`."""
        inverse = {table: np.searchsorted(self.keys[table], bags.keys) for table, bags in self.batch.bags.items()}
        leaves = RowLeaves(self.batch, rows, inverse, config.tables, tuple(config.slots()), train=False)
        read = required_segments(config.model["name"])
        segments = {segment: leaves.segments[segment].numpy() for segment in read}
        return TowerInputs(segments, self.batch.dense)


def record(config: Config, schema: Schema, num_samples: int) -> Recorded:
    """At most so many samples of the test split, else of valid, else of train. Raises DataError."""
    split = next(split for split in ("test", "valid", "train") if split in config.data.splits)
    dataset = open_dataset(config, split, schema)
    chunks = list(dataset.source.chunks([(0, num_samples)]))
    texts = {config.column_of(name) for name, field in config.fields.items() if not isinstance(field, Numeric)}
    columns: dict[str, list[Any]] = {config.column_of(name): [] for name in config.fields}
    for chunk in chunks:
        for column, values in columns.items():
            values += _texts(chunk.columns[column]) if column in texts else _numbers(chunk, column)
    return Recorded(split, join([schema.parse(chunk) for chunk in chunks]), columns)


def _texts(array: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not _is_plain(kind.value_type):
            array = array.cast(pa.list_(pa.string()))
    elif not _is_plain(kind):
        array = array.cast(pa.string())
    found: list[Any] = array.to_pylist()
    return found


def _is_plain(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_integer(kind))


def _numbers(chunk: Chunk, column: str) -> list[Any]:
    values = numbers(chunk, column)
    return [None if missing else value for value, missing in zip(values.tolist(), np.isnan(values).tolist())]
