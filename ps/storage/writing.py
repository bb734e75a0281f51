"""Rows set to images. Part of a Table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ps.errors import MemoryLimitError, RequestError
from ps.storage.kernels import changes
from ps.storage.kernels.images import write_images
from ps.types import Images, Keys, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table


def write(table: Table, keys: UniqueKeys, images: Images) -> None:
    """See Table.write_images."""
    keys, kind = np.ascontiguousarray(keys, np.uint64), _kind_of(table, keys, images)
    table.watchers.changing(keys)
    addresses = table._locate(keys)[0]
    absent = np.flatnonzero(addresses < 0)
    if table._layout.has_late:
        table.late.make_room(keys, addresses, kind)
        addresses = table._locate(keys)[0]
    elif len(absent):
        table.new_rows.reserve(keys[absent])
        if len(absent) < len(keys):  # the first rows of a bucket move when it gets more room
            addresses = table._locate(keys)[0]
    addresses[absent] = table.new_rows.append(keys[absent], kind)
    words = np.ascontiguousarray(images).view(np.uint32)
    write_images(table.arena.words, addresses, words, table._layout.early_words)


def load(table: Table, bucket: int, keys: UniqueKeys, images: Images, expected: int) -> None:
    """See Table.load_images."""
    keys, kind = np.ascontiguousarray(keys, np.uint64), _kind_of(table, keys, images)
    table.watchers.changing(keys)
    try:
        table._buckets.reserve_in(bucket, kind, len(keys), expected)
    except MemoryLimitError:  # less may do: some may have rows, fewer may be to come
        write(table, keys, images)
        return
    words, rest = np.ascontiguousarray(images).view(np.uint32), (*table._place, kind, table._workspace[0])
    done = changes.load(table.arena.words, table._buckets.table, keys, words, bucket, *rest)
    if done < len(keys):
        write(table, keys[done:], images[done:])


def _kind_of(table: Table, keys: Keys, images: Images) -> int:
    """Of the rows that images are of. Raises RequestError for a wrong shape."""
    sizes = [4 * kind.image_words for kind in table._layout.kinds]
    if images.dtype != np.uint8 or images.ndim != 2 or len(images) != len(keys) or images.shape[1] not in sizes:
        raise RequestError(
            f"table {table.name!r}: images {images.dtype} {images.shape} for {len(keys)} keys; "
            f"this layout has uint8 [n, {' or '.join(map(str, sizes))}]"
        )
    return sizes.index(images.shape[1])
