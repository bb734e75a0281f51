"""mix64 (a 64-bit finalizer) for placing keys, and XXH64 over packed strings for making them.

mix64 is the finalizer of SplitMix64 (Steele, Lea, Flood 2014). XXH64 is Yann Collet's xxHash with seed 0. Both are
fixed for ever: files, routing and serving depend on them. Test vectors in tests/ps/test_keys.py.
"""

import numpy as np

from ps.storage.kernels.build import inlined, kernel

U64 = np.uint64
P1, P2, P3, P4, P5 = (
    U64(0x9E3779B185EBCA87),
    U64(0xC2B2AE3D27D4EB4F),
    U64(0x165667B19E3779F9),
    U64(0x85EBCA77C2B2AE63),
    U64(0x27D4EB2F165667C5),
)


@inlined
def mix64(x):
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


@kernel
def mix_all(keys, out):
    for i in range(keys.shape[0]):
        out[i] = mix64(keys[i])


@kernel
def buckets_of(keys, bucket_bits, out):
    shift = U64(64 - bucket_bits)
    for i in range(keys.shape[0]):
        # A shift by 64 is undefined, so one bucket is a case of its own.
        out[i] = np.int32(mix64(keys[i]) >> shift) if bucket_bits > 0 else np.int32(0)


@inlined
def _rotl(x, r):
    return (x << U64(r)) | (x >> U64(64 - r))


@inlined
def _read64(data, p):
    v = U64(0)
    for i in range(8):
        v |= U64(data[p + U64(i)]) << U64(8 * i)
    return v


@inlined
def _read32(data, p):
    v = U64(0)
    for i in range(4):
        v |= U64(data[p + U64(i)]) << U64(8 * i)
    return v


@inlined
def _round(acc, lane):
    return _rotl(acc + lane * P2, 31) * P1


@inlined
def xxh64(data, start, end):
    """XXH64 of data[start:end], seed 0. data: uint8 [n]. Positions are unsigned: eight bytes are then read as one
    word.
    """
    p, end = U64(start), U64(end)
    length = end - p
    if length >= U64(32):
        a, b, c, d = P1 + P2, P2, U64(0), U64(0) - P1
        while p + U64(32) <= end:
            a = _round(a, _read64(data, p))
            b = _round(b, _read64(data, p + U64(8)))
            c = _round(c, _read64(data, p + U64(16)))
            d = _round(d, _read64(data, p + U64(24)))
            p += U64(32)
        h = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
        h = (h ^ _round(U64(0), a)) * P1 + P4
        h = (h ^ _round(U64(0), b)) * P1 + P4
        h = (h ^ _round(U64(0), c)) * P1 + P4
        h = (h ^ _round(U64(0), d)) * P1 + P4
    else:
        h = P5
    h += length
    while p + U64(8) <= end:
        h = _rotl(h ^ _round(U64(0), _read64(data, p)), 27) * P1 + P4
        p += U64(8)
    if p + U64(4) <= end:
        h = _rotl(h ^ (_read32(data, p) * P1), 23) * P2 + P3
        p += U64(4)
    while p < end:
        h = _rotl(h ^ (U64(data[p]) * P5), 11) * P1
        p += U64(1)
    h = (h ^ (h >> U64(33))) * P2
    h = (h ^ (h >> U64(29))) * P3
    return h ^ (h >> U64(32))


@kernel
def hash_strings(data, offsets, out):
    """out[i] = XXH64 of data[offsets[i]:offsets[i + 1]]; data: uint8 [bytes], offsets: int32 or int64 [n + 1]."""
    for i in range(out.shape[0]):
        out[i] = xxh64(data, np.int64(offsets[i]), np.int64(offsets[i + 1]))


@kernel
def hash_columns(data, ends, columns, prefixes, mask, max_bytes, out):
    """Keys of several columns of texts that stand end to end: out[i] = XXH64 of text i & mask | its column's prefix.

    data: uint8 [bytes]; ends: uint32 [n], where each text ends in its column; columns: int64 [2, c], bytes and texts of
    each; prefixes: uint64 [c]. False where ends fall, do not end with their column, or a text is longer than max_bytes
    or begins inside a UTF-8 character.
    """
    base, i = U64(0), 0
    for c in range(columns.shape[1]):
        start, size, prefix = U64(0), U64(columns[0, c]), prefixes[c]
        for _ in range(columns[1, c]):
            end = U64(ends[i])
            if end < start or end > size or end - start > U64(max_bytes):
                return False
            if end > start and data[base + start] & 0xC0 == 0x80:
                return False
            out[i] = xxh64(data, base + start, base + end) & mask | prefix
            start = end
            i += 1
        if start != size:
            return False
        base += size
    return True


@kernel
def hash_integers(values, text, out):
    """out[i] = XXH64 of the decimal text of int64 values[i]. text: uint8 [20], scratch."""
    for i in range(out.shape[0]):
        is_negative = values[i] < 0
        rest = U64(0) - U64(values[i]) if is_negative else U64(values[i])
        start = U64(20)
        while True:
            start -= U64(1)
            tenth = rest // U64(10)
            text[start] = np.uint8(U64(48) + rest - tenth * U64(10))
            rest = tenth
            if rest == U64(0):
                break
        if is_negative:
            start -= U64(1)
            text[start] = np.uint8(45)
        out[i] = xxh64(text, start, U64(20))
