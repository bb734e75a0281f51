"""Duplicates of a batch: the distinct keys grouped by bucket, and sums of gradients per distinct key."""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.prefetch import prefetch_read, prefetch_write

U64 = np.uint64
CHUNK = 1024  # hashes of one chunk stay in the first-level cache
AHEAD = 12  # rows between asking for a line and using it


@typed_kernel(
    "int64",
    readonly_array("uint64"),
    "int64",
    array("uint32"),
    array("uint64"),
    array("int32"),
    array("int64"),
    array("int64"),
    array("uint64"),
)
def find_distinct(keys, bucket_bits, slots, distinct, buckets, inverse, counts, hashes):
    """Number the distinct keys in order of first appearance; returns how many.

    slots: zeros, a power of two of at least 2 * n, hash table of number + 1; distinct, buckets [n]: key and bucket of
    each number; inverse [n]: number of each key; counts [num_buckets], zeros on entry: distinct keys of each bucket;
    hashes [CHUNK]: room.
    """
    mask = U64(slots.shape[0] - 1)
    shift = U64(64 - bucket_bits)
    found = np.int64(0)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        for i in range(length):
            hashes[i] = mix64(keys[start + i])
            prefetch_read(slots, np.int64(hashes[i] & mask))
        for i in range(length):
            key, position = keys[start + i], hashes[i] & mask
            while True:
                number = np.int64(slots[np.int64(position)])
                if number == 0:
                    bucket = np.int64(hashes[i] >> shift) if bucket_bits > 0 else np.int64(0)
                    distinct[found] = key
                    buckets[found] = bucket
                    counts[bucket] += 1
                    inverse[start + i] = found
                    found += 1
                    slots[np.int64(position)] = np.uint32(found)
                    break
                if distinct[number - 1] == key:
                    inverse[start + i] = number - 1
                    break
                position = (position + U64(1)) & mask
    return found


@typed_kernel(
    "void",
    array("uint64"),
    array("int32"),
    array("int64"),
    array("int64"),
    array("uint64"),
    array("int64"),
    array("int64"),
)
def group_by_bucket(distinct, buckets, counts, starts, grouped, places, inverse):
    """Counting sort of the distinct keys by bucket, stable, and the inverse renumbered.

    counts [num_buckets]; starts [num_buckets + 1], out; grouped [u], out; places [u]: scratch; inverse [n]:
    renumbered in place.
    """
    starts[0] = 0
    for b in range(counts.shape[0]):
        starts[b + 1] = starts[b] + counts[b]
        counts[b] = starts[b]
    for i in range(grouped.shape[0]):
        place = counts[buckets[i]]
        counts[buckets[i]] = place + 1
        grouped[place] = distinct[i]
        places[i] = place
    for i in range(inverse.shape[0]):
        inverse[i] = places[inverse[i]]


@inlined
def _add(gradients, inverse, out, column, width):
    flat = out.reshape(-1)
    stride = out.shape[1]
    n = inverse.shape[0]
    for i in range(n):
        if i + AHEAD < n:
            base = inverse[i + AHEAD] * stride + column
            prefetch_write(flat, base)
            prefetch_write(flat, base + width - 1)
        target = out[inverse[i], column : column + width]
        source = gradients[i]
        for j in range(width):
            target[j] += source[j]


@typed_kernel("void", readonly_array("float32", 2), readonly_array("int64"), array("float32", 2), "int64")
def add_by_key(gradients, inverse, out, column):
    """out[inverse[i], column : column + w] += gradients[i], in batch order; gradients: float32 [n, w]."""
    width = gradients.shape[1]
    # Constant widths become a few vector instructions without a loop.
    if width == 1:
        _add(gradients, inverse, out, column, 1)
    elif width == 8:
        _add(gradients, inverse, out, column, 8)
    elif width == 16:
        _add(gradients, inverse, out, column, 16)
    elif width == 32:
        _add(gradients, inverse, out, column, 32)
    else:
        _add(gradients, inverse, out, column, width)


@inlined
def _take(rows, inverse, out, column, width):
    flat = rows.reshape(-1)
    stride = rows.shape[1]
    n = inverse.shape[0]
    for i in range(n):
        if i + AHEAD < n:
            base = inverse[i + AHEAD] * stride + column
            prefetch_read(flat, base)
            prefetch_read(flat, base + width - 1)
        target = out[i]
        source = rows[inverse[i], column : column + width]
        for j in range(width):
            target[j] = source[j]


@typed_kernel("void", readonly_array("float32", 2), readonly_array("int64"), array("float32", 2), "int64")
def take_by_key(rows, inverse, out, column):
    """out[i] = rows[inverse[i], column:column + width of out]."""
    width = out.shape[1]
    # A constant width becomes whole vector moves.
    if width == 16:
        _take(rows, inverse, out, column, 16)
    elif width == 8:
        _take(rows, inverse, out, column, 8)
    elif width == 1:
        _take(rows, inverse, out, column, 1)
    else:
        _take(rows, inverse, out, column, width)
