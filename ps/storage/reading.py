"""The rows of a bucket in order, and rows decoded. Part of a Table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.storage.buckets import EARLY, FULL
from ps.storage.kernels import index
from ps.storage.kernels.images import read_images
from ps.storage.kernels.metadata import SHOWS
from ps.types import Floats, Images, Keys, Rows

if TYPE_CHECKING:
    from ps.storage.table import Table

BLOCK_ROWS = 4096
ALL = -1  # place of all segments


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a bucket, all full or all early. Valid until the table changes otherwise than by `write`."""

    keys: Keys
    values: Rows  # float32 [k, dim], a copy
    state: Floats  # float32 [k, state_dim], a copy
    _table: Table
    _addresses: NDArray[np.int64]
    _segment: int
    _column: int

    @property
    def row_bytes(self) -> int:
        """Of each row, with its key and state."""
        return self._table._layout.kinds[EARLY if self._addresses[0] >= index.EARLY else FULL].row_bytes

    def counts(self) -> Floats:
        """float32 [k, 2]: shows and clicks, as decayed when each row was last pushed; [k, 0] where none are kept."""
        words = SHOWS + np.arange(2 if self._table.spec.keeps_counts else 0)
        counts: Floats = self._table.arena.floats[(self._addresses & index.PLACE)[:, None] + words]
        return counts

    def write(self, values: Rows) -> int:
        """Store values (float32 [k, dim]), to the nearest codes; returns how many rows were refused as not finite."""
        if values.shape != self.values.shape:
            raise RequestError(f"values {values.shape} for a block of {self.values.shape}")
        self._table.watchers.changing(self.keys)
        return self._table._overwrite(self._addresses, self._segment, self._column, values)


def rows_of(table: Table, bucket: int, first: int, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """Keys and addresses of so many rows of a bucket, or as many as there are, in row order: full ones, then early."""
    num_full = table._buckets.num_rows_of(bucket, FULL)
    full = rows_of_kind(table, bucket, FULL, first, count)
    early = rows_of_kind(table, bucket, EARLY, max(0, first - num_full), count - len(full[0]))
    return np.concatenate([full[0], early[0]]), np.concatenate([full[1], early[1]])


def blocks_of(table: Table, bucket: int, segment: str | None = None) -> Iterator[tuple[Keys, NDArray[np.int64]]]:
    """As `rows_of`, at most BLOCK_ROWS at a time and of one kind; of a late segment only the rows that have it."""
    is_late = segment is not None and table._layout.segment(segment)[1].late
    for kind in (FULL,) if is_late else (FULL, EARLY):
        first = 0
        while len((block := rows_of_kind(table, bucket, kind, first, BLOCK_ROWS))[0]):
            yield block
            first += BLOCK_ROWS


def rows_of_kind(table: Table, bucket: int, kind: int, first: int, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """As `rows_of`, of one kind."""
    count = max(
        0, min(count, table._buckets.num_rows_of(bucket, kind) - first)
    )  # rows may have gone since the last block
    keys, addresses = np.empty(count, np.uint64), np.empty(count, np.int64)
    words, _, _, buckets = table._memory
    index.list_rows(words, buckets, bucket, kind, first, *table._place, keys, addresses)
    return keys, addresses


def decoded(table: Table, addresses: NDArray[np.int64], segment: str | None) -> tuple[Rows, Floats]:
    """float32 [n, dim], [n, state_dim]: values and state of rows, of one segment or of all.

    A late segment that a row does not have is as it would be made; so a user's init_state may raise.
    """
    place, state_column, state_dim = table._layout.state_columns(segment)
    columns = slice(0, table._layout.width) if segment is None else table.spec.columns()[segment]
    values = np.empty((len(addresses), columns.stop - columns.start), np.float32)
    state = np.empty((len(addresses), state_dim), np.float32)
    making = (table._own_rates, table._hyper, table._streams, *table._lone, table._workspace[2])
    columns_and_out = (place, columns.start, state_column, values, state)
    table._kernels.read_rows(*table._memory[:3], addresses, *columns_and_out, *making)
    return values, state


def images_of(table: Table, keys: Keys) -> tuple[tuple[Keys, Images], tuple[Keys, Images]]:
    """(keys, images) of the full rows among those of `keys`, and of the early ones, each in the order of keys."""
    addresses = table._locate(keys)[0]
    return (
        _images_of_kind(table, keys, addresses, (addresses >= 0) & (addresses < index.EARLY)),
        _images_of_kind(table, keys, addresses, addresses >= index.EARLY),
    )


def _images_of_kind(
    table: Table, keys: Keys, addresses: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[Keys, Images]:
    if not chosen.any():
        return np.empty(0, np.uint64), np.empty((0, 0), np.uint8)
    if not chosen.all():
        keys, addresses = keys[chosen], addresses[chosen]
    return keys, images_at(table, addresses)


def images_at(table: Table, addresses: NDArray[np.int64]) -> Images:
    """The images of rows (at least one) of one kind."""
    kind = table._layout.kinds[EARLY if addresses[0] >= index.EARLY else FULL]
    images = np.empty((len(addresses), kind.image_words), np.uint32)
    read_images(table.arena.words, addresses, images, table._layout.early_words)
    return images.view(np.uint8)
