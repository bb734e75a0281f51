"""From Arrow columns to a Batch, as the configuration's fields and labels say.

A table's bags hold its fields in the order of the configuration. The dense vector holds the raw and log fields,
labels their tasks, in that order too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ps.keys import pack
from ps.types import Keys
from workers.config import Categorical, Config, FeatureField, Label, Multi, Numeric
from workers.samples.batch import Bags, Batch
from workers.samples.chunk import Chunk
from workers.samples.columns import hash_lists, hash_values, is_text, numbers, wrong
from workers.samples.errors import DataError
from workers.samples.rules import Intervals, dense_values, first_beyond_float32


@dataclass(frozen=True)
class Keyed:
    """A field that makes keys."""

    name: str
    column: str
    slot: int
    field: FeatureField


class Schema:
    """tables: fields of each table, in order; dense, labels: names in order; columns: what must be read. Immutable."""

    def __init__(self, config: Config) -> None:
        slots = config.slots()
        keyed = [Keyed(name, config.column_of(name), slot, config.fields[name]) for name, slot in slots.items()]
        self.tables = {
            table: tuple(field for field in keyed if config.table_of(field.name) == table) for table in config.tables
        }
        self.dense: tuple[str, ...] = tuple(name for name in config.fields if name not in slots)
        self.labels: Mapping[str, Label] = dict(config.labels)
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(config.columns().values()))
        self.multi_columns = {field.column for field in keyed if isinstance(field.field, Multi)}
        self.places = {column: place for place, column in reversed(config.columns().items())}
        self._fields = config.fields
        self._column_of = {name: config.column_of(name) for name in config.fields}
        self._group, self._event_time, self._weight = config.group, config.event_time, config.sample_weight

    def parse(self, chunk: Chunk) -> Batch:
        """All samples of a chunk. Raises DataError: file, line, column and text of the first mistake in it."""
        labels = np.empty((chunk.size, len(self.labels)), np.float32)
        for task, (name, label) in enumerate(self.labels.items()):
            labels[:, task] = _label(chunk, label.column or name, label)
        dense = np.empty((chunk.size, len(self.dense)), np.float32)
        for i, name in enumerate(self.dense):
            dense[:, i] = self._dense(chunk, name)
        probability = None
        if chunk.probability is not None:
            probability = np.repeat(chunk.probability[:, None], len(self.labels), axis=1)
        return Batch(
            chunk.size,
            {table: _bags(chunk, fields) for table, fields in self.tables.items()},
            dense,
            labels,
            None if self._weight is None else _at_least_zero(chunk, self._weight).astype(np.float32),
            None if self._group is None else hash_values(chunk.columns[self._group]),
            None if self._event_time is None else _required(chunk, self._event_time, "event time"),
            probability,
        )

    def _dense(self, chunk: Chunk, name: str) -> NDArray[np.float64]:
        field, column = self._fields[name], self._column_of[name]
        assert isinstance(field, Numeric)
        values = dense_values(field, numbers(chunk, column))
        if (too_large := first_beyond_float32(values)) is not None:
            raise wrong(chunk, column, too_large, "is beyond float32; transform: log takes it")
        return values


def _bags(chunk: Chunk, fields: tuple[Keyed, ...]) -> Bags:
    names = tuple(field.name for field in fields)
    if not any(isinstance(field.field, Multi) for field in fields):
        keys = np.empty((chunk.size, len(fields)), np.uint64)
        for f, field in enumerate(fields):
            keys[:, f] = _single(chunk, field)
        return Bags(keys.ravel(), names)
    lengths = np.ones((chunk.size, len(fields)), np.int64)
    parts: list[Keys] = []
    for f, field in enumerate(fields):
        if isinstance(field.field, Multi):
            hashes, lengths[:, f] = hash_lists(
                chunk.columns[field.column], field.field.separator, field.field.max_length
            )
            parts.append(pack(field.slot, hashes))
        else:
            parts.append(_single(chunk, field))
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths.ravel(), out=offsets[1:])
    keys = np.empty(offsets[-1], np.uint64)
    starts = offsets[:-1].reshape(lengths.shape)
    for f, part in enumerate(parts):
        own_starts = np.cumsum(lengths[:, f]) - lengths[:, f]
        keys[np.repeat(starts[:, f] - own_starts, lengths[:, f]) + np.arange(len(part))] = part
    mean = tuple(isinstance(field.field, Multi) and field.field.pooling == "mean" for field in fields)
    return Bags(keys, names, offsets, mean)


def _single(chunk: Chunk, keyed: Keyed) -> Keys:
    """uint64 [n]: the keys of a field with one key a sample."""
    if isinstance(keyed.field, Categorical):
        array = chunk.columns[keyed.column]
        if pa.types.is_nested(array.type):
            raise DataError(
                f"{chunk.where(0)}: column '{keyed.column}' has the type {array.type}; type: multi reads lists"
            )
        return pack(keyed.slot, hash_values(array))
    assert isinstance(keyed.field, Numeric)
    return Intervals(keyed.field, keyed.slot).keys(numbers(chunk, keyed.column))


def _label(chunk: Chunk, column: str, label: Label) -> NDArray[np.float64]:
    """float64 [n], NaN where masked."""
    if label.equals is not None:
        array = chunk.columns[column]
        array = array if is_text(array.type) else array.cast("string")
        text = pc.utf8_trim_whitespace(pc.fill_null(array, ""))
        values: NDArray[np.float64] = pc.equal(text, label.equals).to_numpy(zero_copy_only=False).astype(np.float64)
        values[pc.equal(text, "").to_numpy(zero_copy_only=False)] = np.nan
    else:
        values = numbers(chunk, column)
    masked = np.isnan(values)
    if label.empty == "error" and masked.any():
        row = int(np.argmax(masked))
        raise wrong(chunk, column, row, f"is no label of type {label.type}; 'empty: masked' would allow a missing one")
    if label.at_least is not None:
        return np.where(masked, np.nan, values >= label.at_least)
    bad = np.zeros(0, bool)
    if label.type == "binary":
        bad, allowed = ~masked & (values != 0) & (values != 1), "0 or 1"
    elif label.type == "weight":
        bad, allowed = ~masked & (values < 0), "a number >= 0"
    if bad.any():
        row = int(np.argmax(bad))
        raise wrong(chunk, column, row, f"is no label of type {label.type}; allowed: {allowed}")
    return values


def _at_least_zero(chunk: Chunk, column: str) -> NDArray[np.float64]:
    values = _required(chunk, column, "sample weight")
    if (values < 0).any():
        raise wrong(chunk, column, int(np.argmax(values < 0)), "is no sample weight; allowed: a number >= 0")
    return values


def _required(chunk: Chunk, column: str, what: str) -> NDArray[np.float64]:
    values = numbers(chunk, column)
    missing = np.isnan(values)
    if missing.any():
        raise wrong(chunk, column, int(np.argmax(missing)), f"is no {what}; allowed: a number")
    return values
