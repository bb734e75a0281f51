"""Where the row of a key is: one open-addressing index per bucket, rows in blocks behind a directory.

    arena       one stretch of memory seen as uint32 `words`, float32 `floats` and uint16 `halves`
    buckets     int64 [num_buckets, 8]; columns INDEX .. below, offsets in words
    index       CAPACITY entries of uint32, 0 = empty, else tag << 24 | row number; linear probing, wrapping at CAPACITY
    directory   uint32 per block: its offset in units of 64 words
    row         at directory[row >> block_shift] * 64 + (row & mask) * stride: key (low word, high word), values, state

    h = mix64(key): bucket = its top bits; home = (the next 32 bits * CAPACITY) >> 32; tag = its low 8 bits, 1 for 0

Rows of a bucket are dense: 0 .. ROWS - 1. An empty bucket has INDEX = CAPACITY = 0, and word 0 of the arena is always
0, so that a search there ends at once. A search fetches lines for a whole chunk of keys ahead of use.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.prefetch import prefetch_read
from ps.storage.kernels.views import borrow

U32, U64 = np.uint32, np.uint64
INDEX, CAPACITY, ROWS, DIRECTORY, BLOCKS, DIRECTORY_CAPACITY = 0, 1, 2, 3, 4, 5
COLUMNS = 8
UNIT = 64  # words; blocks start at multiples of it
TAG_SHIFT = U32(24)
ROW_MASK = (1 << 24) - 1
CHUNK = 256  # keys that a search has under way, a power of two: their index and row lines fit the first-level cache
RING_MASK = CHUNK - 1
AHEAD = 32

WORDS, BUCKETS, KEYS, ADDRESSES = array("uint32"), array("int64", 2), readonly_array("uint64"), array("int64")
HASH_RING = array("uint64")


@inlined
def bucket_of_hash(h, bucket_bits):
    return np.int64(h >> U64(64 - bucket_bits)) if bucket_bits > 0 else np.int64(0)


@inlined
def home(h, bucket_bits, capacity):
    return np.int64((((h << U64(bucket_bits)) >> U64(32)) * U64(capacity)) >> U64(32))


@inlined
def tag_of(h):
    return U32(max(h & U64(255), U64(1)))


@inlined
def row_address(words, directory, row, block_shift, stride):
    block = np.int64(words[directory + (row >> block_shift)]) * UNIT
    return block + (row & ((1 << block_shift) - 1)) * stride


@inlined
def key_at(words, address):
    return U64(words[address]) | (U64(words[address + 1]) << U64(32))


@inlined
def set_key(words, address, key):
    words[address] = U32(key & U64(0xFFFFFFFF))
    words[address + 1] = U32(key >> U64(32))


@inlined
def position_of(words, buckets, b, key, h, bucket_bits, block_shift, stride):
    """Index position of the key in bucket b, or -1."""
    index, capacity, directory = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, DIRECTORY]
    position, tag = home(h, bucket_bits, capacity), tag_of(h)
    while True:
        entry = words[index + position]
        if entry == 0:
            return np.int64(-1)
        if entry >> TAG_SHIFT == tag:
            address = row_address(words, directory, np.int64(entry) & ROW_MASK, block_shift, stride)
            if key_at(words, address) == key:
                return position
        position += 1
        if position >= capacity:
            position = 0


@inlined
def ask_index(words, buckets, keys, i, bucket_bits, hashes):
    """First stage of a search: hash keys[i], ask for its line of the index."""
    h = mix64(keys[i])
    hashes[i & RING_MASK] = h
    b = bucket_of_hash(h, bucket_bits)
    prefetch_read(words, buckets[b, INDEX] + home(h, bucket_bits, buckets[b, CAPACITY]))


@inlined
def ask_row(words, buckets, i, bucket_bits, block_shift, stride, hashes, addresses):
    """Second stage, some keys later: the first row whose tag fits, or -1; ask for its lines."""
    h = hashes[i & RING_MASK]
    b = bucket_of_hash(h, bucket_bits)
    index, capacity = buckets[b, INDEX], buckets[b, CAPACITY]
    position, tag = home(h, bucket_bits, capacity), tag_of(h)
    entry = words[index + position]
    while entry != 0 and entry >> TAG_SHIFT != tag:
        position += 1
        if position >= capacity:
            position = 0
        entry = words[index + position]
    address = np.int64(-1)
    if entry != 0:
        address = row_address(words, buckets[b, DIRECTORY], np.int64(entry) & ROW_MASK, block_shift, stride)
        for line in range(0, stride, 16):
            prefetch_read(words, address + line)
        prefetch_read(words, address + stride - 1)
    addresses[i & RING_MASK] = address


@inlined
def search_chunk(words, buckets, keys, start, length, bucket_bits, block_shift, stride, hashes, addresses):
    """The first two stages for keys[start : start + length], length at most CHUNK."""
    for i in range(start, start + length):
        ask_index(words, buckets, keys, i, bucket_bits, hashes)
    for i in range(start, start + length):
        ask_row(words, buckets, i, bucket_bits, block_shift, stride, hashes, addresses)


@inlined
def found_row(words, buckets, key, i, bucket_bits, block_shift, stride, hashes, addresses):
    """Last stage: address of the row of the key, which is keys[i], or -1."""
    candidate = addresses[i & RING_MASK]
    if candidate < 0 or key_at(words, candidate) == key:
        return candidate
    h = hashes[i & RING_MASK]
    b = bucket_of_hash(h, bucket_bits)
    position = position_of(words, buckets, b, key, h, bucket_bits, block_shift, stride)
    if position < 0:
        return np.int64(-1)
    row = np.int64(words[buckets[b, INDEX] + position]) & ROW_MASK
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
        for i in range(start, start + length):
            address = found_row(words, buckets, keys[i], i, bucket_bits, block_shift, stride, hashes, ring)
            addresses[i] = address
            if address < 0:
                missing[bucket_of_hash(hashes[i & RING_MASK], bucket_bits)] += 1
                total += 1
    return total


@typed_kernel("void", KEYS, "int64", array("int64"))
def count_by_bucket(keys, bucket_bits, counts):
    """counts [num_buckets] += keys of each bucket."""
    for i in range(keys.shape[0]):
        counts[bucket_of_hash(mix64(keys[i]), bucket_bits)] += 1


@inlined
def _insert(words, index, capacity, position, entry):
    while words[index + position] != 0:
        position += 1
        if position >= capacity:
            position = 0
    words[index + position] = entry


@typed_kernel("void", WORDS, BUCKETS, KEYS, "int64", "int64", "int64", ADDRESSES, HASH_RING)
def append(words, buckets, keys, bucket_bits, block_shift, stride, addresses, hashes):
    """A row for each key (absent, unique, room reserved): its key and index entry are written, the rest is 0."""
    words, buckets, keys, hashes = borrow(words), borrow(buckets), borrow(keys), borrow(hashes)
    for ahead in range(keys.shape[0] + AHEAD):
        if ahead < keys.shape[0]:
            ask_index(words, buckets, keys, ahead, bucket_bits, hashes)
        i = ahead - AHEAD
        if i < 0:
            continue
        h = hashes[i & RING_MASK]
        b = bucket_of_hash(h, bucket_bits)
        row, capacity = buckets[b, ROWS], buckets[b, CAPACITY]
        buckets[b, ROWS] = row + 1
        entry = U32(U32(tag_of(h) << TAG_SHIFT) | U32(row))
        _insert(words, buckets[b, INDEX], capacity, home(h, bucket_bits, capacity), entry)
        address = row_address(words, buckets[b, DIRECTORY], row, block_shift, stride)
        set_key(words, address, keys[i])
        for word in range(2, stride):
            words[address + word] = U32(0)
        addresses[i] = address


@typed_kernel("void", WORDS, BUCKETS, "int64", "int64", "int64", "int64")
def rebuild(words, buckets, b, bucket_bits, block_shift, stride):
    """Fill the index of bucket b anew from its rows; INDEX and CAPACITY name the new stretch, whatever it holds."""
    words, buckets = borrow(words), borrow(buckets)
    index, capacity, directory = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, DIRECTORY]
    for position in range(capacity):
        words[index + position] = U32(0)
    for row in range(buckets[b, ROWS]):
        h = mix64(key_at(words, row_address(words, directory, row, block_shift, stride)))
        entry = U32(U32(tag_of(h) << TAG_SHIFT) | U32(row))
        _insert(words, index, capacity, home(h, bucket_bits, capacity), entry)


@inlined
def _remove_entry(words, buckets, b, hole, bucket_bits, block_shift, stride):
    """Backward shift: entries behind the hole move up unless that would put them before their home."""
    index, capacity, directory = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, DIRECTORY]
    position = hole
    while True:
        position += 1
        if position >= capacity:
            position = 0
        entry = words[index + position]
        if entry == 0:
            break
        address = row_address(words, directory, np.int64(entry) & ROW_MASK, block_shift, stride)
        wanted = home(mix64(key_at(words, address)), bucket_bits, capacity)
        # Distances walked from the home to the entry and from the hole to the entry, around the end.
        walked = position - wanted + (capacity if position < wanted else 0)
        gap = position - hole + (capacity if position < hole else 0)
        if walked >= gap:
            words[index + hole] = entry
            hole = position
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
        index, directory = buckets[b, INDEX], buckets[b, DIRECTORY]
        row, last = np.int64(words[index + position]) & ROW_MASK, buckets[b, ROWS] - 1
        _remove_entry(words, buckets, b, position, bucket_bits, block_shift, stride)
        if row != last:
            source = row_address(words, directory, last, block_shift, stride)
            target = row_address(words, directory, row, block_shift, stride)
            moved = key_at(words, source)
            h = mix64(moved)
            place = index + position_of(words, buckets, b, moved, h, bucket_bits, block_shift, stride)
            words[place] = U32(U32(tag_of(h) << TAG_SHIFT) | U32(row))
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
