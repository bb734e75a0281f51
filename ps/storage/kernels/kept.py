"""The keys that a mark remembers: a growing set, each key with a number, in chains by bucket.

    keys   [number]    the key                     nexts [number]   the number before it in its bucket, -1: none
    heads  [bucket]    the last number of a bucket, -1: none; -2: the bucket is not watched
    slots              hash tables of number + 1, one a part; 0: empty
    parts  [PARTS, 3]  START, CAPACITY and COUNT of each part's table
    used   [2]         slots given out; numbers given out

A key's part is the low bits of its hash. A table grows to twice its size when it is half full, behind all others; sizes
begin staggered, so that not all grow in the same call.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.prefetch import prefetch_read

U32, U64, I64 = np.uint32, np.uint64, np.int64
PARTS = 64
START, CAPACITY, COUNT = 0, 1, 2
UNWATCHED, NONE = -2, -1
AHEAD = 8


@inlined
def _first(parts, part, h):
    return parts[part, START] + I64(((h >> U64(6)) & U64(0xFFFFFFFF)) * U64(parts[part, CAPACITY]) >> U64(32))


@inlined
def _find(slots, parts, keys, part, h, key):
    """The slot of a key, or the empty one where it belongs."""
    position, end = _first(parts, part, h), parts[part, START] + parts[part, CAPACITY]
    while slots[position] != 0 and keys[I64(slots[position]) - 1] != key:
        position += 1
        if position == end:
            position = parts[part, START]
    return position


@inlined
def _grow(slots, parts, keys, used, part):
    old, capacity = parts[part, START], parts[part, CAPACITY]
    parts[part, START], parts[part, CAPACITY] = used[0], 2 * capacity
    used[0] += 2 * capacity
    for position in range(old, old + capacity):
        number = slots[position]
        if number != 0:
            key = keys[I64(number) - 1]
            slots[_find(slots, parts, keys, part, mix64(key), key)] = number


@typed_kernel(
    "int64",
    array("uint32"),
    array("int64", 2),
    array("int64"),
    array("uint64"),
    array("int32"),
    array("int32"),
    readonly_array("uint64"),
    "int64",
    array("int64"),
)
def remember(slots, parts, used, keys, nexts, heads, given, bucket_bits, fresh):
    """Give numbers, one after another, to the given keys of watched buckets that have none; returns how many, and
    their places among the given ones in fresh.
    """
    count = I64(0)
    for i in range(given.shape[0]):
        if i + AHEAD < given.shape[0]:
            h = mix64(given[i + AHEAD])
            prefetch_read(slots, _first(parts, I64(h & U64(PARTS - 1)), h))
        key = given[i]
        h = mix64(key)
        bucket = I64(h >> U64(64 - bucket_bits)) if bucket_bits > 0 else I64(0)
        if heads[bucket] == UNWATCHED:
            continue
        part = I64(h & U64(PARTS - 1))
        if 2 * parts[part, COUNT] >= parts[part, CAPACITY]:
            _grow(slots, parts, keys, used, part)
        position = _find(slots, parts, keys, part, h, key)
        if slots[position] == 0:
            number = used[1]
            used[1] += 1
            slots[position] = U32(number + 1)
            parts[part, COUNT] += 1
            keys[number] = key
            nexts[number] = heads[bucket]
            heads[bucket] = number
            fresh[count] = i
            count += 1
    return count


@typed_kernel(
    "void",
    readonly_array("uint32"),
    array("int64", 2),
    readonly_array("uint64"),
    readonly_array("uint64"),
    array("int64"),
)
def numbers_of(slots, parts, keys, given, numbers):
    """numbers[i]: that of given[i]; NONE where it has none."""
    for i in range(given.shape[0]):
        h = mix64(given[i])
        position = _find(slots, parts, keys, I64(h & U64(PARTS - 1)), h, given[i])
        numbers[i] = I64(slots[position]) - 1


@typed_kernel("int64", array("int32"), "int64", array("int64"))
def chain(nexts, head, numbers):
    """The numbers of a bucket into numbers, or as many as fit; returns how many there are."""
    count, number = I64(0), head
    while number >= 0:
        if count < numbers.shape[0]:
            numbers[count] = number
        count += 1
        number = I64(nexts[number])
    return count
