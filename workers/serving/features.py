"""From the columns of a request to keys and dense values, by the rules of training.

Keys of a table stand end to end, those of a shared column once. Which rows belong to which field say `runs`: some of
the keys' rows, or after them the bags of a multi field, whose rows are pooled into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.keys import ID_BITS, ID_MASK, hash_columns
from ps.storage.unique import sum_by_key
from ps.types import Floats, Keys, Rows
from workers.config.errors import nearest
from workers.config.fields import Categorical, FeatureField, Multi, Numeric
from workers.samples.rules import Intervals, dense_values, first_beyond_float32, without_empty
from workers.serving.columns import Column
from workers.serving.errors import MalformedError
from workers.serving.messages import AnyColumn, PlainTexts, keys_of_texts
from workers.serving.request import Request

Runs = NDArray[np.int64]  # [num_fields, 4]


@dataclass(frozen=True, slots=True)
class Bags:
    """keys [m] and bags [m]: places of the pooled keys, and which bag of `num_bags` each belongs to, ascending.
    weights: float32 [m], or None where all are 1.
    """

    keys: NDArray[np.int64]
    bags: NDArray[np.int64]
    num_bags: int
    weights: Floats | None

    def pool(self, rows: Rows) -> Rows:
        """The rows with the bags' sums below them: float32 [n + num_bags, width]. Added in order, as training does."""
        members = rows[self.keys]
        if self.weights is not None:
            members *= self.weights[:, None]
        return np.concatenate([rows, sum_by_key(members, self.bags, self.num_bags)])


class TableKeys(NamedTuple):
    """runs: whose rows belong to which of the table's fields, as ps.storage.spreading has them; those of a multi field
    are its bags, behind the keys.
    """

    keys: Keys
    runs: Runs
    bags: Bags | None


class Sample(NamedTuple):
    """What the model reads of one request. dense: float32 [num_candidates, num_dense]."""

    num_candidates: int
    tables: Mapping[str, TableKeys]
    dense: Floats


class Features:
    """Immutable, thread-safe. columns: what a request names, in order. tables: keyed fields of each, in order."""

    def __init__(self, fields: Mapping[str, FeatureField]) -> None:
        """fields: column, table and slot resolved."""
        self._column_of = {name: field.column or name for name, field in fields.items()}
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(self._column_of.values()))
        self._dense = {name: field for name, field in fields.items() if isinstance(field, Numeric) and field.is_dense}
        self.fields = dict(fields)
        self.tables: dict[str, tuple[str, ...]] = {}
        self._intervals: dict[str, Intervals] = {}
        hash_columns(b"", b"", [], [], np.zeros(0, np.uint64), 0)  # so that no request waits for it to be compiled
        for name, field in fields.items():
            if name in self._dense:
                continue
            assert field.table is not None
            assert field.slot is not None
            self.tables[field.table] = (*self.tables.get(field.table, ()), name)
            if isinstance(field, Numeric):
                self._intervals[name] = Intervals(field, field.slot)

        self._sources = {table: [self._column_of[name] for name in names] for table, names in self.tables.items()}
        self._is_categorical = {
            table: [isinstance(fields[name], Categorical) for name in names] for table, names in self.tables.items()
        }
        self._categorical_tables = {table for table, are in self._is_categorical.items() if all(are)}
        self._slot_bits = {
            table: np.array([fields[name].slot for name in names], np.uint64) << np.uint64(ID_BITS)
            for table, names in self.tables.items()
        }

    @property
    def num_dense(self) -> int:
        return len(self._dense)

    def read(self, request: Request) -> Sample:
        """Raises MalformedError naming the column that is missing, unknown or of the wrong type or length."""
        columns = self._columns(request)
        n = request.num_candidates
        dense = np.empty((n, len(self._dense)), np.float32)
        for f, (name, field) in enumerate(self._dense.items()):
            dense[:, f] = _dense(columns[self._column_of[name]].checked(), field)
        tables = {table: self._keys(table, columns, request) for table in self.tables}
        return Sample(n, tables, dense)

    def _columns(self, request: Request) -> dict[str, AnyColumn]:
        shared, candidates = request.shared, request.candidates
        columns = {**shared, **candidates}
        for name in self.columns:
            if name not in columns:
                raise MalformedError(name, "missing; give it under shared or under candidates")
        if len(shared) + len(candidates) > len(self.columns):
            for place, given in (("shared", shared), ("candidates", candidates)):
                for name in given:
                    if name not in self._column_of.values():
                        raise MalformedError(f"{place}.{name[:80]}", "unknown column" + nearest(name, self.columns))
            twice = next(name for name in shared if name in candidates)
            raise MalformedError(f"candidates.{twice}", "stands under shared too; give it once")
        for given, expected, what in (
            (shared, 1, "a shared column has one row"),
            (candidates, request.num_candidates, f"there are {request.num_candidates} candidates"),
        ):
            for column in given.values():
                if column.num_rows != expected:
                    raise column.wrong(f"{column.num_rows} rows; {what}")
        return columns

    def _keys(self, table: str, columns: Mapping[str, AnyColumn], request: Request) -> TableKeys:
        names, slot_bits, sources = self.tables[table], self._slot_bits[table], self._sources[table]
        steps = tuple([source not in request.shared for source in sources])
        plain = [column for source in sources if type(column := columns[source]) is PlainTexts]
        if len(plain) == len(names) and table in self._categorical_tables:  # the most common by far
            return TableKeys(keys_of_texts(plain, slot_bits), _plain_runs(steps, request.num_candidates), None)
        texts: dict[int, PlainTexts] = {}  # by place of the field: their keys come first
        others: dict[int, Column] = {}
        for f, (source, is_categorical) in enumerate(zip(sources, self._is_categorical[table], strict=True)):
            column = columns[source]
            if is_categorical and isinstance(column, PlainTexts):
                texts[f] = column
            else:
                others[f] = column.checked()
        starts, num_keys, parts, pooled = [0] * len(names), 0, [], _Pooled()
        if texts:
            parts.append(keys_of_texts(list(texts.values()), slot_bits[list(texts)]))
        for f, text in texts.items():
            starts[f] = num_keys
            num_keys += text.num_rows
        hashes: list[Keys] = []
        for f, column in others.items():
            field = self.fields[names[f]]
            starts[f] = num_keys
            if isinstance(field, Multi):
                part, lengths = _lists(column, field)
                starts[f] = pooled.add(f, lengths, num_keys, field.pooling == "mean")
            elif isinstance(field, Categorical):
                part = _single(column).hashes()
            else:
                part = self._intervals[names[f]].keys(_single(column).numbers())
            hashes.append(part)
            num_keys += len(part)
        if hashes:
            bits = np.repeat(slot_bits[list(others)], [len(part) for part in hashes])
            parts.append(np.concatenate(hashes) & ID_MASK | bits)
        keys = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for f in pooled.fields:
            starts[f] += num_keys
        return TableKeys(keys, _runs(tuple(starts), steps, request.num_candidates), pooled.bags())


@lru_cache(1024)
def _plain_runs(steps: tuple[bool, ...], num_candidates: int) -> Runs:
    """As `_runs`, of fields whose rows stand one behind the other."""
    counts = [num_candidates if step else 1 for step in steps]
    return _runs((0, *accumulate(counts[:-1])), steps, num_candidates)


@lru_cache(1024)
def _runs(starts: tuple[int, ...], steps: tuple[bool, ...], num_candidates: int) -> Runs:
    """Of fields whose rows begin there, and go on with each candidate where `steps` says so. Requests of one caller are
    alike.
    """
    counts = [num_candidates if step else 1 for step in steps]
    runs = np.array(sorted(zip(starts, counts, range(len(starts)), steps, strict=True)), np.int64)
    runs.flags.writeable = False
    return runs


class _Pooled:
    """Collects the bags of a table's multi fields."""

    def __init__(self) -> None:
        self.fields: list[int] = []
        self._keys: list[NDArray[np.int64]] = []
        self._bags: list[NDArray[np.int64]] = []
        self._weights: list[Floats] = []
        self._num_bags, self._has_means = 0, False

    def add(self, field: int, lengths: NDArray[np.int64], first_key: int, is_mean: bool) -> int:
        """Bags of a field, whose keys begin at `first_key`; returns the first bag."""
        first, num_keys = self._num_bags, int(lengths.sum())
        self.fields.append(field)
        self._keys.append(np.arange(first_key, first_key + num_keys))
        self._bags.append(np.repeat(np.arange(first, first + len(lengths)), lengths))
        weights = 1.0 / np.maximum(lengths, 1) if is_mean else np.ones(len(lengths))
        self._weights.append(np.repeat(weights.astype(np.float32), lengths))
        self._num_bags += len(lengths)
        self._has_means |= is_mean
        return first

    def bags(self) -> Bags | None:
        """All bags, or None where no field is pooled."""
        if not self.fields:
            return None
        weights = np.concatenate(self._weights) if self._has_means else None
        return Bags(np.concatenate(self._keys), np.concatenate(self._bags), self._num_bags, weights)


def _dense(column: Column, field: Numeric) -> NDArray[np.float64]:
    """float64 [rows]."""
    values = dense_values(field, _single(column).numbers())
    if (row := first_beyond_float32(values)) is not None:
        raise column.wrong(f"value {row} is {values[row]}, beyond float32")
    return values


def _single(column: Column) -> Column:
    if column.lengths is not None:
        raise column.wrong("lists, where each row has one value")
    return column


def _lists(column: Column, field: Multi) -> tuple[Keys, NDArray[np.int64]]:
    if column.lengths is None and column.kind != "ids":
        column = column.split(field.separator)
    lengths = np.ones(column.num_rows, np.int64) if column.lengths is None else column.lengths
    return without_empty(column.hashes(), lengths, field.max_length)
