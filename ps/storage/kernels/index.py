"""Where the row of a key is: one open-addressing index per bucket, rows in blocks behind a directory.

    arena       one stretch of memory seen as uint32 `words`, float32 `floats` and uint16 `halves`
    buckets     int64 [num_buckets, 8]; columns INDEX .. below, offsets in words
    index       CAPACITY entries of uint32 in groups of 16 (a cache line): 0 = empty, else tag << ROW_BITS | number
    directory   uint32 per block: its offset in units of 64 words
    row         at directory[row >> block_shift] * 64 + (row & mask) * stride: key (low word, high word), values, state
    number      of a row in its bucket: the row; where there are late segments, row << 1 | early
    address     words from the start of the arena to the row, and the flag EARLY where it is an early one

    h = mix64(key): bucket = its top bits; home group = (the next 32 bits * groups) >> 32; tag = its low bits, 1 for 0

A key is in its home group, or in a later one if all from its home up to there are full; the last is followed by the
first. So a search compares 16 entries at once and ends at the first group that has the key or an empty entry.
ROW_BITS is what the capacity needs: small buckets have long tags.

Rows of a bucket are dense: 0 .. ROWS - 1. An empty bucket has INDEX = CAPACITY = 0, and the first words of the arena
are always 0, so that a search there ends at once. A search fetches lines for a whole chunk of keys ahead of use.

A table with late segments has rows of two sizes: full ones, and early ones, which are the first early_stride words of a
full one. Both are dense and have blocks and a directory of their own; early rows have them in line num_buckets + b of
`buckets`, which then has two lines a bucket, while line b has the index of both. Elsewhere early_stride is 0, and what
is said here of early rows costs nothing.
"""

from collections import namedtuple

import numpy as np
from numba import types

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.prefetch import prefetch_read
from ps.storage.kernels.views import borrow, compare_group, lowest_bit

U32, U64 = np.uint32, np.uint64
INDEX, CAPACITY, ROWS, DIRECTORY, ROOM, DIRECTORY_CAPACITY, ROW_BITS = 0, 1, 2, 3, 4, 5, 6
COLUMNS = 8
EARLY = 1 << 62  # in an address; every other address is below it
PLACE = EARLY - 1  # what an address is without the flag
UNIT = 64  # words; blocks start at multiples of it
GROUP = 16
HITS = U32(0xFFFF)  # of compare_group
CHUNK = 128  # keys that a search has under way: their index and row lines fit the first-level cache

WORDS, BUCKETS, KEYS, ADDRESSES = array("uint32"), array("int64", 2), readonly_array("uint64"), array("int64")
HASH_RING = array("uint64")

# Where rows lie: words of a row, and 2 ** shift rows in a block; of early rows too, 0 where there are none.
Shape = namedtuple("Shape", ["block_shift", "stride", "early_shift", "early_stride"])
SHAPE = types.NamedUniTuple(types.int64, len(Shape._fields), Shape)


@inlined
def bucket_of_hash(h, bucket_bits):
    # Two shifts, because one by 64 is undefined.
    return (h >> U64(1)) >> U64(63 - bucket_bits)


@inlined
def home(h, bucket_bits, capacity):
    """First entry of the home group."""
    groups = U64(capacity // GROUP)
    return np.int64((((h << U64(bucket_bits)) >> U64(32)) * groups) >> U64(32)) * GROUP


@inlined
def tag_of(h, row_bits):
    return max(U32(h) & U32((1 << (32 - row_bits)) - 1), U32(1))


@inlined
def number_at(words, entry, row_bits):
    """The number in the index entry at a word."""
    return np.int64(words[entry]) & ((1 << row_bits) - 1)


@inlined
def set_entry(words, entry, tag, number, row_bits):
    words[entry] = U32(U32(tag << U32(row_bits)) | U32(number))


@inlined
def row_address(words, directory, row, block_shift, stride):
    block = np.int64(words[U64(directory + (row >> block_shift))]) * UNIT
    return block + (row & ((1 << block_shift) - 1)) * stride


@inlined
def key_at(words, address):
    return U64(words[U64(address)]) | (U64(words[U64(address) + U64(1)]) << U64(32))


@inlined
def place_of(address, shape):
    """An address without the flag."""
    return address & PLACE if shape.early_stride != 0 else address


@inlined
def line_of(b, early, bucket_bits):
    """The line of `buckets` with bucket b's rows of a kind, early 0 or 1."""
    return U64(b) + (U64(early) << U64(bucket_bits))


@inlined
def is_early(number, shape):
    """1 for an early row's number, else 0."""
    return number & 1 if shape.early_stride != 0 else np.int64(0)


@inlined
def number_of(row, early, shape):
    return row << 1 | early if shape.early_stride != 0 else row


@inlined
def address_of(words, buckets, b, number, bucket_bits, shape):
    """Address of the row with this number in bucket b."""
    if shape.early_stride == 0:
        return row_address(words, buckets[b, DIRECTORY], number, shape.block_shift, shape.stride)
    directory = buckets[line_of(b, number & 1, bucket_bits), DIRECTORY]
    if number & 1:
        return row_address(words, directory, number >> 1, shape.early_shift, shape.early_stride) | EARLY
    return row_address(words, directory, number >> 1, shape.block_shift, shape.stride)


@inlined
def key_of(words, buckets, b, number, bucket_bits, shape):
    """Key of the row with this number in bucket b."""
    return key_at(words, place_of(address_of(words, buckets, b, number, bucket_bits, shape), shape))


@inlined
def set_key(words, address, key):
    words[address] = U32(key & U64(0xFFFFFFFF))
    words[address + 1] = U32(key >> U64(32))


@inlined
def position_of(words, buckets, b, key, h, bucket_bits, shape):
    """Index position of the key in bucket b, or -1."""
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    group, tag = home(h, bucket_bits, capacity), tag_of(h, row_bits)
    while True:
        compared = compare_group(words, index + group, row_bits, tag)
        hits = compared & HITS
        while hits != 0:
            position = group + lowest_bit(U32(hits))
            number = number_at(words, index + position, row_bits)
            if key_of(words, buckets, b, number, bucket_bits, shape) == key:
                return position
            hits &= U32(hits - U32(1))
        if compared > HITS:
            return np.int64(-1)
        group += GROUP
        if group >= capacity:
            group = 0


@inlined
def _fetch_row(words, place, stride):
    """Ask for the lines of a row; all numbers unsigned but stride."""
    for line in range(0, stride, 16):
        prefetch_read(words, place + U64(line))
    prefetch_read(words, place + U64(stride - 1))


@inlined
def search_chunk(words, buckets, keys, start, length, bucket_bits, shape, hashes, addresses):
    """First two passes of a search for keys[start : start + length], length at most CHUNK.

    hashes[i]: mix64 of key start + i; addresses[i]: the first row whose tag fits, its lines on their way, or -1.
    Indices are unsigned here: numba adds the length to negative signed ones, which is a good part of so short a loop.
    """
    for i in range(length):
        hashes[i] = mix64(keys[start + i])
    columns = buckets.reshape(-1)
    for i in range(length):
        h = hashes[i]
        b = bucket_of_hash(h, bucket_bits) * U64(COLUMNS)
        groups = U64(columns[b + U64(CAPACITY)]) // U64(GROUP)
        group = (((h << U64(bucket_bits)) >> U64(32)) * groups) >> U64(32)
        place = U64(columns[b + U64(INDEX)]) + group * U64(GROUP)
        addresses[i] = place
        prefetch_read(words, place)
    kinds, early_lines = U64(shape.early_stride != 0), U64(COLUMNS) << U64(bucket_bits)
    block_mask, early_mask = U64((1 << shape.block_shift) - 1), U64((1 << shape.early_shift) - 1)
    for i in range(length):
        h, place = hashes[i], U64(addresses[i])
        b = bucket_of_hash(h, bucket_bits) * U64(COLUMNS)
        row_bits = U32(columns[b + U64(ROW_BITS)])
        tag = max(U32(h) & U32((U64(1) << U64(U32(32) - row_bits)) - U64(1)), U32(1))
        compared = compare_group(words, place, row_bits, tag)
        while compared == 0:
            place += U64(GROUP)
            if place >= U64(columns[b + U64(INDEX)] + columns[b + U64(CAPACITY)]):
                place = U64(columns[b + U64(INDEX)])
            compared = compare_group(words, place, row_bits, tag)
        hits = U32(compared & HITS)
        if hits == 0:
            addresses[i] = -1
            continue
        number = U64(words[place + U64(lowest_bit(hits))]) & ((U64(1) << U64(row_bits)) - U64(1))
        if shape.early_stride != 0 and number & U64(1) != U64(0):
            row = number >> U64(1)
            block = U64(words[U64(columns[b + early_lines + U64(DIRECTORY)]) + (row >> U64(shape.early_shift))])
            address = block * U64(UNIT) + (row & early_mask) * U64(shape.early_stride)
            addresses[i] = address | U64(EARLY)
            _fetch_row(words, address, shape.early_stride)
            continue
        row = number >> kinds
        block = U64(words[U64(columns[b + U64(DIRECTORY)]) + (row >> U64(shape.block_shift))])
        address = block * U64(UNIT) + (row & block_mask) * U64(shape.stride)
        addresses[i] = address
        _fetch_row(words, address, shape.stride)


@inlined
def found_row(words, buckets, key, h, candidate, bucket_bits, shape):
    """Last pass: address of the row of the key, or -1, given what search_chunk found."""
    if candidate < 0 or key_at(words, place_of(candidate, shape)) == key:
        return candidate
    b = bucket_of_hash(h, bucket_bits)
    position = position_of(words, buckets, b, key, h, bucket_bits, shape)
    if position < 0:
        return np.int64(-1)
    number = number_at(words, buckets[b, INDEX] + position, buckets[b, ROW_BITS])
    return address_of(words, buckets, b, number, bucket_bits, shape)


@typed_kernel("int64", WORDS, BUCKETS, KEYS, "int64", SHAPE, ADDRESSES, array("int64"), HASH_RING, ADDRESSES)
def locate(words, buckets, keys, bucket_bits, shape, addresses, missing, hashes, ring):
    """addresses[i] [n]: row of keys[i] or -1; missing [num_buckets] += keys without a row. Returns how many have
    none.
    """
    words, buckets, keys, hashes, ring = borrow(words), borrow(buckets), borrow(keys), borrow(hashes), borrow(ring)
    total = np.int64(0)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        search_chunk(words, buckets, keys, start, length, bucket_bits, shape, hashes, ring)
        for i in range(length):
            address = found_row(words, buckets, keys[start + i], hashes[i], ring[i], bucket_bits, shape)
            addresses[start + i] = address
            if address < 0:
                missing[bucket_of_hash(hashes[i], bucket_bits)] += 1
                total += 1
    return total


@typed_kernel("void", KEYS, "int64", array("int64"))
def count_by_bucket(keys, bucket_bits, counts):
    """counts [num_buckets] += keys of each bucket."""
    for i in range(keys.shape[0]):
        counts[bucket_of_hash(mix64(keys[i]), bucket_bits)] += 1


@typed_kernel("void", WORDS, BUCKETS, "int64", "int64", "int64", "int64", SHAPE, array("uint64"), ADDRESSES)
def list_rows(words, buckets, b, early, first, bucket_bits, shape, keys, addresses):
    """Keys and addresses of rows first .. first + len(keys) of a kind (early 0 or 1) of bucket b."""
    words, buckets = borrow(words), borrow(buckets)
    for i in range(keys.shape[0]):
        addresses[i] = address_of(words, buckets, b, number_of(first + i, early, shape), bucket_bits, shape)
        keys[i] = key_at(words, place_of(addresses[i], shape))
