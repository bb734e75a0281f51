"""Rows come, go, and change between early and full; the index of a bucket follows, and its rows stay dense.

Structures and names are those of index.py. Room has been reserved before.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.index import (
    ADDRESSES,
    BUCKETS,
    CAPACITY,
    CHUNK,
    GROUP,
    HASH_RING,
    HITS,
    INDEX,
    KEYS,
    ROW_BITS,
    ROWS,
    SHAPE,
    U32,
    U64,
    WORDS,
    address_of,
    bucket_of_hash,
    home,
    is_early,
    key_at,
    key_of,
    line_of,
    number_at,
    number_of,
    place_of,
    position_of,
    set_entry,
    set_key,
    tag_of,
)
from ps.storage.kernels.prefetch import prefetch_read
from ps.storage.kernels.views import borrow, compare_group, lowest_bit


@inlined
def _insert(words, buckets, b, h, number, bucket_bits):
    """An index entry for a row whose key is not in the index."""
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    group, tag = home(h, bucket_bits, capacity), tag_of(h, row_bits)
    empty = compare_group(words, index + group, row_bits, tag) >> U32(16)
    while empty == 0:
        group += GROUP
        if group >= capacity:
            group = 0
        empty = compare_group(words, index + group, row_bits, tag) >> U32(16)
    set_entry(words, index + group + lowest_bit(U32(empty)), tag, number, row_bits)


@typed_kernel("void", WORDS, BUCKETS, KEYS, "int64", SHAPE, "int64", ADDRESSES, HASH_RING)
def append(words, buckets, keys, bucket_bits, shape, early, addresses, hashes):
    """A row for each key (absent, unique, room reserved): its key and index entry are written, the rest is 0.

    early: 1 for early rows, else 0.
    """
    stride = shape.early_stride if early else shape.stride
    words, buckets, keys, hashes = borrow(words), borrow(buckets), borrow(keys), borrow(hashes)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        for i in range(length):
            hashes[i] = mix64(keys[start + i])
            b = bucket_of_hash(hashes[i], bucket_bits)
            prefetch_read(words, buckets[b, INDEX] + home(hashes[i], bucket_bits, buckets[b, CAPACITY]))
        for i in range(length):
            b = bucket_of_hash(hashes[i], bucket_bits)
            line = line_of(b, early, bucket_bits)
            number = number_of(buckets[line, ROWS], early, shape)
            buckets[line, ROWS] += 1
            _insert(words, buckets, b, hashes[i], number, bucket_bits)
            address = address_of(words, buckets, b, number, bucket_bits, shape)
            place = place_of(address, shape)
            set_key(words, place, keys[start + i])
            for word in range(2, stride):
                words[place + word] = U32(0)
            addresses[start + i] = address


@inlined
def _free_entry(words, buckets, b, key, h, bucket_bits, shape):
    """The word where an index entry for the key goes, or -1 if it has one."""
    index, capacity, row_bits = buckets[b, INDEX], buckets[b, CAPACITY], buckets[b, ROW_BITS]
    group, tag = home(h, bucket_bits, capacity), tag_of(h, row_bits)
    while True:
        compared = compare_group(words, index + group, row_bits, tag)
        hits = compared & HITS
        while hits != 0:
            number = number_at(words, index + group + lowest_bit(U32(hits)), row_bits)
            if key_of(words, buckets, b, number, bucket_bits, shape) == key:
                return np.int64(-1)
            hits &= U32(hits - U32(1))
        if compared > HITS:
            return np.int64(index + group + lowest_bit(U32(compared >> U32(16))))
        group += GROUP
        if group >= capacity:
            group = 0


@typed_kernel("int64", WORDS, BUCKETS, KEYS, readonly_array("uint32", 2), "int64", "int64", SHAPE, "int64", HASH_RING)
def load(words, buckets, keys, images, b, bucket_bits, shape, early, hashes):
    """Rows of bucket b with these images (all words behind the key), room reserved; up to the first key that has a row
    or belongs to another bucket. Returns how many keys came before it.

    early: 1 for early rows, else 0.
    """
    words, buckets, keys, hashes = borrow(words), borrow(buckets), borrow(keys), borrow(hashes)
    line, row_bits = line_of(b, early, bucket_bits), buckets[b, ROW_BITS]
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        for i in range(length):
            hashes[i] = mix64(keys[start + i])
            prefetch_read(words, buckets[b, INDEX] + home(hashes[i], bucket_bits, buckets[b, CAPACITY]))
        for i in range(length):
            key, h = keys[start + i], hashes[i]
            if bucket_of_hash(h, bucket_bits) != U64(b):
                return start + i
            entry = _free_entry(words, buckets, b, key, h, bucket_bits, shape)
            if entry < 0:
                return start + i
            number = number_of(buckets[line, ROWS], early, shape)
            buckets[line, ROWS] += 1
            set_entry(words, entry, tag_of(h, row_bits), number, row_bits)
            place = place_of(address_of(words, buckets, b, number, bucket_bits, shape), shape)
            set_key(words, place, key)
            for word in range(images.shape[1]):
                words[place + 2 + word] = images[start + i, word]
    return keys.shape[0]


@typed_kernel("void", WORDS, BUCKETS, "int64", "int64", SHAPE)
def rebuild(words, buckets, b, bucket_bits, shape):
    """Fill the index of bucket b anew from its rows; INDEX, CAPACITY and ROW_BITS name the new one, whatever lies
    there.
    """
    words, buckets = borrow(words), borrow(buckets)
    for position in range(buckets[b, INDEX], buckets[b, INDEX] + buckets[b, CAPACITY]):
        words[position] = U32(0)
    for early in range(2 if shape.early_stride != 0 else 1):
        for row in range(buckets[line_of(b, early, bucket_bits), ROWS]):
            number = number_of(row, early, shape)
            key = key_of(words, buckets, b, number, bucket_bits, shape)
            _insert(words, buckets, b, mix64(key), number, bucket_bits)


@inlined
def _remove_entry(words, buckets, b, hole, bucket_bits, shape):
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
            key = key_of(words, buckets, b, number_at(words, index + position, row_bits), bucket_bits, shape)
            wanted = home(mix64(key), bucket_bits, capacity)
            # Distances, around the end, from the home and from the hole to where the entry is.
            walked = group - wanted + (capacity if group < wanted else 0)
            gap = group - hole_group + (capacity if group < hole_group else 0)
            if walked >= gap:
                words[index + hole] = entry
                hole, hole_group = position, group
                break
    words[index + hole] = U32(0)


@inlined
def _move(words, buckets, b, source, target, bucket_bits, shape):
    """The row with number `source` is copied to number `target` of the same kind, its index entry follows."""
    start = place_of(address_of(words, buckets, b, source, bucket_bits, shape), shape)
    end = place_of(address_of(words, buckets, b, target, bucket_bits, shape), shape)
    key, index, row_bits = key_at(words, start), buckets[b, INDEX], buckets[b, ROW_BITS]
    h = mix64(key)
    position = position_of(words, buckets, b, key, h, bucket_bits, shape)
    set_entry(words, index + position, tag_of(h, row_bits), target, row_bits)
    for word in range(shape.early_stride if is_early(source, shape) else shape.stride):
        words[end + word] = words[start + word]


@inlined
def _leave(words, buckets, b, number, bucket_bits, shape):
    """A row leaves its kind: the last one fills the hole. No index entry has this number any more."""
    early = is_early(number, shape)
    line = line_of(b, early, bucket_bits)
    last = number_of(buckets[line, ROWS] - 1, early, shape)
    if number != last:
        _move(words, buckets, b, last, number, bucket_bits, shape)
    buckets[line, ROWS] -= 1


@typed_kernel("int64", WORDS, BUCKETS, KEYS, "int64", SHAPE)
def remove(words, buckets, keys, bucket_bits, shape):
    """Delete the rows of the keys that have one; the last row of a kind fills its holes. Returns how many were
    deleted.
    """
    words, buckets, keys = borrow(words), borrow(buckets), borrow(keys)
    removed = np.int64(0)
    for i in range(keys.shape[0]):
        h = mix64(keys[i])
        b = bucket_of_hash(h, bucket_bits)
        position = position_of(words, buckets, b, keys[i], h, bucket_bits, shape)
        if position < 0:
            continue
        number = number_at(words, buckets[b, INDEX] + position, buckets[b, ROW_BITS])
        _remove_entry(words, buckets, b, position, bucket_bits, shape)
        _leave(words, buckets, b, number, bucket_bits, shape)
        removed += 1
    return removed


@typed_kernel("void", WORDS, BUCKETS, KEYS, "int64", SHAPE, ADDRESSES, array("int64"))
def promote(words, buckets, keys, bucket_bits, shape, addresses, places):
    """Make the early rows of the keys (unique, all have one, room reserved) full; what an early row has not is 0.

    addresses [n]: of the full rows; places [n]: where each was among the early rows, for `demote`.
    """
    words, buckets, keys = borrow(words), borrow(buckets), borrow(keys)
    for i in range(keys.shape[0]):
        h = mix64(keys[i])
        b = bucket_of_hash(h, bucket_bits)
        position = position_of(words, buckets, b, keys[i], h, bucket_bits, shape)
        entry, row_bits = buckets[b, INDEX] + position, buckets[b, ROW_BITS]
        old, new = number_at(words, entry, row_bits), number_of(buckets[b, ROWS], 0, shape)
        buckets[b, ROWS] += 1
        source = place_of(address_of(words, buckets, b, old, bucket_bits, shape), shape)
        target = address_of(words, buckets, b, new, bucket_bits, shape)
        for word in range(shape.early_stride):
            words[target + word] = words[source + word]
        for word in range(shape.early_stride, shape.stride):
            words[target + word] = U32(0)
        set_entry(words, entry, tag_of(h, row_bits), new, row_bits)
        _leave(words, buckets, b, old, bucket_bits, shape)
        addresses[i], places[i] = target, old >> 1


@typed_kernel("void", WORDS, BUCKETS, KEYS, "int64", SHAPE, array("int64"))
def demote(words, buckets, keys, bucket_bits, shape, places):
    """Make the full rows of the keys (unique, all have one, room reserved) early, at these places among the early
    rows, or last where there are fewer; the row that was there becomes the last. So it undoes `promote` to the row
    order, with keys and places from the last to the first.
    """
    words, buckets, keys = borrow(words), borrow(buckets), borrow(keys)
    for i in range(keys.shape[0]):
        h = mix64(keys[i])
        b = bucket_of_hash(h, bucket_bits)
        position = position_of(words, buckets, b, keys[i], h, bucket_bits, shape)
        line = line_of(b, 1, bucket_bits)
        entry, row_bits, last = buckets[b, INDEX] + position, buckets[b, ROW_BITS], buckets[line, ROWS]
        old, new = number_at(words, entry, row_bits), number_of(min(places[i], last), 1, shape)
        if places[i] < last:
            _move(words, buckets, b, new, number_of(last, 1, shape), bucket_bits, shape)
        buckets[line, ROWS] += 1
        source = address_of(words, buckets, b, old, bucket_bits, shape)
        target = place_of(address_of(words, buckets, b, new, bucket_bits, shape), shape)
        for word in range(shape.early_stride):
            words[target + word] = words[source + word]
        set_entry(words, entry, tag_of(h, row_bits), new, row_bits)
        _leave(words, buckets, b, old, bucket_bits, shape)
