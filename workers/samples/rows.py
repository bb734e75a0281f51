"""Batches as columns of rows: pick some, cut a range, join several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.samples.batch import Bags, Batch

_COLUMNS = ("dense", "labels", "weights", "groups", "event_time", "probability")


def take(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    """The samples at `rows`, in that order."""
    bags = {table: _take_bags(own, rows) for table, own in batch.bags.items()}
    return _mapped(batch, len(rows), bags, lambda column: column.take(rows, axis=0))


def cut_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Samples [start, stop): views, no copy of their keys."""
    bags = {table: _cut_bags(own, start, stop) for table, own in batch.bags.items()}
    return _mapped(batch, stop - start, bags, lambda column: column[start:stop])


def join(batches: Sequence[Batch]) -> Batch:
    """The samples of one or more batches of one schema, end to end."""
    first = batches[0]
    if len(batches) == 1:
        return first
    columns = {
        name: np.concatenate([getattr(batch, name) for batch in batches])
        for name in _COLUMNS
        if getattr(first, name) is not None
    }
    bags = {table: _join_bags([batch.bags[table] for batch in batches]) for table in first.bags}
    return Batch(sum(batch.size for batch in batches), bags, **columns)


def _mapped(batch: Batch, size: int, bags: dict[str, Bags], pick: Callable[[Any], Any]) -> Batch:
    columns = {name: pick(getattr(batch, name)) for name in _COLUMNS if getattr(batch, name) is not None}
    return Batch(size, bags, **columns)


def _take_bags(bags: Bags, rows: NDArray[np.int64]) -> Bags:
    width = len(bags.fields)
    if bags.offsets is None:
        return Bags(bags.keys.reshape(-1, width).take(rows, axis=0).ravel(), bags.fields, None, bags.mean)
    borders = bags.offsets.take(rows[:, None] * width + np.arange(width + 1))
    offsets = np.zeros(len(rows) * width + 1, np.int64)
    np.cumsum(np.diff(borders, axis=1).ravel(), out=offsets[1:])
    # All bags of a sample lie together: one range of keys a sample.
    shift = borders[:, 0] - offsets[:-1:width]
    sources = np.repeat(shift, np.diff(offsets[::width])) + np.arange(offsets[-1])
    return Bags(bags.keys.take(sources), bags.fields, offsets, bags.mean)


def _cut_bags(bags: Bags, start: int, stop: int) -> Bags:
    width = len(bags.fields)
    if bags.offsets is None:
        return Bags(bags.keys[start * width : stop * width], bags.fields, None, bags.mean)
    offsets = bags.offsets[start * width : stop * width + 1]
    return Bags(bags.keys[offsets[0] : offsets[-1]], bags.fields, offsets - offsets[0], bags.mean)


def _join_bags(parts: list[Bags]) -> Bags:
    first = parts[0]
    keys = np.concatenate([bags.keys for bags in parts])
    if first.offsets is None:
        return Bags(keys, first.fields, None, first.mean)
    lengths = np.concatenate([np.diff(bags.offsets) for bags in parts if bags.offsets is not None])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Bags(keys, first.fields, offsets, first.mean)
