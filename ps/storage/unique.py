"""Duplicates of a batch: the distinct keys grouped by bucket, their rows spread over the batch, and sums of gradients
per distinct key. Thread-safe, stateless.
"""

from __future__ import annotations

import numpy as np

from ps.errors import RequestError
from ps.storage.kernels import unique as kernels
from ps.types import Gradients, Inverse, Keys, Offsets, Rows, UniqueKeys

_MAX_KEYS = 1 << 30


def unique_by_bucket(keys: Keys, num_buckets: int) -> tuple[UniqueKeys, Inverse, Offsets]:
    """The distinct keys [u], the place of each raw key among them [n], and where each bucket starts [num_buckets + 1].

    Keys are grouped by bucket, ascending; inside a bucket they stand in order of first appearance.
    `distinct[inverse]` equals `keys`. num_buckets: a power of two. Raises RequestError for more than 2^30 keys.
    """
    if len(keys) > _MAX_KEYS:
        raise RequestError(f"a batch of {len(keys)} keys is more than {_MAX_KEYS}; send it in parts")
    n = len(keys)
    keys = np.ascontiguousarray(keys, np.uint64)
    slots = np.zeros(1 << max(4, (2 * n - 1).bit_length()), np.uint32)
    distinct, buckets = np.empty(n, np.uint64), np.empty(n, np.int32)
    inverse, counts = np.empty(n, np.int64), np.zeros(num_buckets, np.int64)
    bits, hashes = num_buckets.bit_length() - 1, np.empty(kernels.CHUNK, np.uint64)
    found = kernels.find_distinct(keys, bits, slots, distinct, buckets, inverse, counts, hashes)
    starts, grouped = np.empty(num_buckets + 1, np.int64), np.empty(found, np.uint64)
    kernels.group_by_bucket(distinct, buckets, counts, starts, grouped, np.empty(found, np.int64), inverse)
    return grouped, inverse, starts


def take_by_key(rows: Rows, inverse: Inverse, columns: slice) -> Rows:
    """float32 [n, w]: the given columns of the row, in rows (float32 [u, W]), of each of n keys; the way back of
    `sum_by_key`. columns: start and stop. Raises RequestError for columns that the rows do not have.
    """
    if not 0 <= columns.start <= columns.stop <= rows.shape[1]:
        raise RequestError(f"columns {columns.start} to {columns.stop} of rows {rows.shape}")
    out = np.empty((len(inverse), columns.stop - columns.start), np.float32)
    kernels.take_by_key(np.ascontiguousarray(rows), np.ascontiguousarray(inverse, np.int64), out, columns.start)
    return out


def sum_by_key(
    gradients: Gradients, inverse: Inverse, num_unique: int, *, out: Gradients | None = None, column: int = 0
) -> Gradients:
    """float32 [u, w]: the sum, in batch order, of the gradients [n, w] of each distinct key.

    With `out` (float32 [u, W], zeros or earlier sums), adds into out[:, column:column + w] and returns `out`:
    gradients of several segments then stand side by side without a copy. Raises RequestError when shapes do not fit.
    """
    width = gradients.shape[1]
    if out is None:
        out = np.zeros((num_unique, column + width), np.float32)
    if gradients.shape[0] != len(inverse) or out.shape[0] != num_unique or column + width > out.shape[1]:
        raise RequestError(
            f"gradients {gradients.shape} for {len(inverse)} keys do not fit columns {column}.. of sums {out.shape}"
        )
    if out.dtype != np.float32 or not out.flags.c_contiguous:
        raise RequestError(f"`out` is {out.dtype}; sums go to a C-contiguous float32 array")
    kernels.add_by_key(
        np.ascontiguousarray(gradients, np.float32), np.ascontiguousarray(inverse, np.int64), out, column
    )
    return out
