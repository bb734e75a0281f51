"""Where the row of a key is: one open-addressing index per bucket, rows in blocks behind a directory.

    arena       one stretch of memory seen as uint32 `words`, float32 `floats` and uint16 `halves`
    buckets     int64 [num_buckets, 8]; columns INDEX .. below, offsets in words
    index       CAPACITY entries of uint32 in groups of 16 (a cache line): 0 = empty, else tag << ROW_BITS | row number
    directory   uint32 per block: its offset in units of 64 words
    row         at directory[row >> block_shift] * 64 + (row & mask) * stride: key (low word, high word), values, state

    h = mix64(key): bucket = its top bits; home group = (the next 32 bits * groups) >> 32; tag = its low bits, 1 for 0

A key is in its home group, or in a later one if all from its home up to there are full; the last is followed by the
first. So a search compares 16 entries at once and ends at the first group that has the key or an empty entry.
ROW_BITS is what the capacity needs: small buckets have long tags.

Rows of a bucket are dense: 0 .. ROWS - 1. An empty bucket has INDEX = CAPACITY = 0, and the first words of the arena
are always 0, so that a search there ends at once. A search fetches lines for a whole chunk of keys ahead of use.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.prefetch import prefetch_read
from ps.storage.kernels.views import borrow, compare_group, lowest_bit

U32, U64 = np.uint32, np.uint64
INDEX, CAPACITY, ROWS, DIRECTORY, ROOM, DIRECTORY_CAPACITY, ROW_BITS = 0, 1, 2, 3, 4, 5, 6
COLUMNS = 8
UNIT = 64  # words; blocks start at multiples of it
GROUP = 16
HITS = U32(0xFFFF)  # of compare_group
CHUNK = 128  # keys that a search has under way: their index and row lines fit the first-level cache

WORDS, BUCKETS, KEYS, ADDRESSES = array("uint32"), array("int64", 2), readonly_array("uint64"), array("int64")
HASH_RING = array("uint64")


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
def row_of(entry, row_bits):
    return np.int64(entry) & ((1 << row_bits) - 1)


@inlined
def row_address(words, directory, row, block_shift, stride):
    block = np.int64(words[U64(directory + (row >> block_shift))]) * UNIT
    return block + (row & ((1 << block_shift) - 1)) * stride


@inlined
def key_at(words, address):
    return U64(words[U64(address)]) | (U64(words[U64(address) + U64(1)]) << U64(32))


@inlined
def set_key(words, address, key):
    words[address] = U32(key & U64(0xFFFFFFFF))
    words[address + 1] = U32(key >> U64(32))


@inlined
def position_of(words, buckets, b, key, h, bucket_bits, block_shift, stride):
    """Index position of the key in bucket b, or -1."""
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    group, tag = home(h, bucket_bits, capacity), tag_of(h, row_bits)
    while True:
        compared = compare_group(words, index + group, row_bits, tag)
        hits = compared & HITS
        while hits != 0:
            position = group + lowest_bit(U32(hits))
            row = row_of(words[index + position], row_bits)
            if key_at(words, row_address(words, buckets[b, DIRECTORY], row, block_shift, stride)) == key:
                return position
            hits &= U32(hits - U32(1))
        if compared > HITS:
            return np.int64(-1)
        group += GROUP
        if group >= capacity:
            group = 0


@inlined
def search_chunk(words, buckets, keys, start, length, bucket_bits, block_shift, stride, hashes, addresses):
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
    block_mask = U64((1 << block_shift) - 1)
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
        row = U64(words[place + U64(lowest_bit(hits))]) & ((U64(1) << U64(row_bits)) - U64(1))
        block = U64(words[U64(columns[b + U64(DIRECTORY)]) + (row >> U64(block_shift))])
        address = block * U64(UNIT) + (row & block_mask) * U64(stride)
        addresses[i] = address
        for line in range(0, stride, 16):
            prefetch_read(words, address + U64(line))
        prefetch_read(words, address + U64(stride - 1))


@inlined
def found_row(words, buckets, key, h, candidate, bucket_bits, block_shift, stride):
    """Last pass: address of the row of the key, or -1, given what search_chunk found."""
    if candidate < 0 or key_at(words, candidate) == key:
        return candidate
    b = bucket_of_hash(h, bucket_bits)
    position = position_of(words, buckets, b, key, h, bucket_bits, block_shift, stride)
    if position < 0:
        return np.int64(-1)
    row = row_of(words[buckets[b, INDEX] + position], buckets[b, ROW_BITS])
    return row_address(words, buckets[b, DIRECTORY], row, block_shift, stride)


@typed_kernel("int64", WORDS, BUCKETS, KEYS, "int64", "int64", "int64", ADDRESSES, array("int64"), HASH_RING, ADDRESSES)
def locate(words, buckets, keys, bucket_bits, block_shift, stride, addresses, missing, hashes, ring):
    """addresses[i] [n]: row of keys[i] or -1; missing [num_buckets] += keys without a row. Returns how many have
    none.
    """
    words, buckets, keys, hashes, ring = borrow(words), borrow(buckets), borrow(keys), borrow(hashes), borrow(ring)
    total = np.int64(0)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        search_chunk(words, buckets, keys, start, length, bucket_bits, block_shift, stride, hashes, ring)
        for i in range(length):
            address = found_row(words, buckets, keys[start + i], hashes[i], ring[i], bucket_bits, block_shift, stride)
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


@inlined
def _insert(words, buckets, b, h, row, bucket_bits):
    """An index entry for a row whose key is not in the index."""
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    group, tag = home(h, bucket_bits, capacity), tag_of(h, row_bits)
    empty = compare_group(words, index + group, row_bits, tag) >> U32(16)
    while empty == 0:
        group += GROUP
        if group >= capacity:
            group = 0
        empty = compare_group(words, index + group, row_bits, tag) >> U32(16)
    words[index + group + lowest_bit(U32(empty))] = U32(U32(tag << U32(row_bits)) | U32(row))


@typed_kernel("void", WORDS, BUCKETS, KEYS, "int64", "int64", "int64", ADDRESSES, HASH_RING)
def append(words, buckets, keys, bucket_bits, block_shift, stride, addresses, hashes):
    """A row for each key (absent, unique, room reserved): its key and index entry are written, the rest is 0."""
    words, buckets, keys, hashes = borrow(words), borrow(buckets), borrow(keys), borrow(hashes)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        for i in range(length):
            hashes[i] = mix64(keys[start + i])
            b = bucket_of_hash(hashes[i], bucket_bits)
            prefetch_read(words, buckets[b, INDEX] + home(hashes[i], bucket_bits, buckets[b, CAPACITY]))
        for i in range(length):
            b = bucket_of_hash(hashes[i], bucket_bits)
            row = buckets[b, ROWS]
            buckets[b, ROWS] = row + 1
            _insert(words, buckets, b, hashes[i], row, bucket_bits)
            address = row_address(words, buckets[b, DIRECTORY], row, block_shift, stride)
            set_key(words, address, keys[start + i])
            for word in range(2, stride):
                words[address + word] = U32(0)
            addresses[start + i] = address


@typed_kernel("void", WORDS, BUCKETS, "int64", "int64", "int64", "int64")
def rebuild(words, buckets, b, bucket_bits, block_shift, stride):
    """Fill the index of bucket b anew from its rows; INDEX, CAPACITY and ROW_BITS name the new one, whatever lies
    there.
    """
    words, buckets = borrow(words), borrow(buckets)
    for position in range(buckets[b, INDEX], buckets[b, INDEX] + buckets[b, CAPACITY]):
        words[position] = U32(0)
    for row in range(buckets[b, ROWS]):
        key = key_at(words, row_address(words, buckets[b, DIRECTORY], row, block_shift, stride))
        _insert(words, buckets, b, mix64(key), row, bucket_bits)


@inlined
def _remove_entry(words, buckets, b, hole, bucket_bits, block_shift, stride):
    """Empty an entry. If its group was full, an entry that had to pass it moves there, and so on from that one's
    group.
    """
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    hole_group = hole - hole % GROUP
    full = compare_group(words, index + hole_group, row_bits, U32(0)) >> U32(16) == 0
    group = hole_group
    while full:
        group = group + GROUP if group + GROUP < capacity else 0
        if group == hole_group:
            break
        full = compare_group(words, index + group, row_bits, U32(0)) >> U32(16) == 0
        for position in range(group, group + GROUP):
            entry = words[index + position]
            if entry == 0:
                continue
            row = row_of(entry, row_bits)
            key = key_at(words, row_address(words, buckets[b, DIRECTORY], row, block_shift, stride))
            wanted = home(mix64(key), bucket_bits, capacity)
            # Distances, around the end, from the home and from the hole to where the entry is.
            walked = group - wanted + (capacity if group < wanted else 0)
            gap = group - hole_group + (capacity if group < hole_group else 0)
            if walked >= gap:
                words[index + hole] = entry
                hole, hole_group = position, group
                break
    words[index + hole] = U32(0)


@typed_kernel("int64", WORDS, BUCKETS, KEYS, "int64", "int64", "int64")
def remove(words, buckets, keys, bucket_bits, block_shift, stride):
    """Delete the rows of the keys that have one; the last row of a bucket fills the hole. Returns how many were
    deleted.
    """
    words, buckets, keys = borrow(words), borrow(buckets), borrow(keys)
    removed = np.int64(0)
    for i in range(keys.shape[0]):
        h = mix64(keys[i])
        b = bucket_of_hash(h, bucket_bits)
        position = position_of(words, buckets, b, keys[i], h, bucket_bits, block_shift, stride)
        if position < 0:
            continue
        index, directory, row_bits = buckets[b, INDEX], buckets[b, DIRECTORY], buckets[b, ROW_BITS]
        row, last = row_of(words[index + position], row_bits), buckets[b, ROWS] - 1
        _remove_entry(words, buckets, b, position, bucket_bits, block_shift, stride)
        if row != last:
            source = row_address(words, directory, last, block_shift, stride)
            target = row_address(words, directory, row, block_shift, stride)
            moved = key_at(words, source)
            h = mix64(moved)
            place = index + position_of(words, buckets, b, moved, h, bucket_bits, block_shift, stride)
            words[place] = U32(U32(tag_of(h, row_bits) << U32(row_bits)) | U32(row))
            for word in range(stride):
                words[target + word] = words[source + word]
        buckets[b, ROWS] = last
        removed += 1
    return removed


@typed_kernel("void", WORDS, BUCKETS, "int64", "int64", "int64", "int64", array("uint64"), ADDRESSES)
def list_rows(words, buckets, b, first, block_shift, stride, keys, addresses):
    """Keys and addresses of rows first .. first + len(keys) of bucket b."""
    words, buckets = borrow(words), borrow(buckets)
    for i in range(keys.shape[0]):
        addresses[i] = row_address(words, buckets[b, DIRECTORY], first + i, block_shift, stride)
        keys[i] = key_at(words, addresses[i])


@typed_kernel("void", WORDS, readonly_array("int64"), array("uint32", 2))
def read_images(words, addresses, images):
    """images[i]: the words behind the key of the row at addresses[i]."""
    for i in range(addresses.shape[0]):
        for word in range(images.shape[1]):
            images[i, word] = words[addresses[i] + 2 + word]


@typed_kernel("void", WORDS, readonly_array("int64"), readonly_array("uint32", 2))
def write_images(words, addresses, images):
    """The reverse of read_images."""
    for i in range(addresses.shape[0]):
        for word in range(images.shape[1]):
            words[addresses[i] + 2 + word] = images[i, word]
