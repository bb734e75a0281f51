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
        v |= U64(data[p + i]) << U64(8 * i)
    return v


@inlined
def _read32(data, p):
    v = U64(0)
    for i in range(4):
        v |= U64(data[p + i]) << U64(8 * i)
    return v


@inlined
def _round(acc, lane):
    return _rotl(acc + lane * P2, 31) * P1


@inlined
def xxh64(data, start, end):
    """XXH64 of data[start:end], seed 0. data: uint8 [n]."""
    p = start
    if end - start >= 32:
        a, b, c, d = P1 + P2, P2, U64(0), U64(0) - P1
        while p + 32 <= end:
            a = _round(a, _read64(data, p))
            b = _round(b, _read64(data, p + 8))
            c = _round(c, _read64(data, p + 16))
            d = _round(d, _read64(data, p + 24))
            p += 32
        h = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
        h = (h ^ _round(U64(0), a)) * P1 + P4
        h = (h ^ _round(U64(0), b)) * P1 + P4
        h = (h ^ _round(U64(0), c)) * P1 + P4
        h = (h ^ _round(U64(0), d)) * P1 + P4
    else:
        h = P5
    h += U64(end - start)
    while p + 8 <= end:
        h = _rotl(h ^ _round(U64(0), _read64(data, p)), 27) * P1 + P4
        p += 8
    if p + 4 <= end:
        h = _rotl(h ^ (_read32(data, p) * P1), 23) * P2 + P3
        p += 4
    while p < end:
        h = _rotl(h ^ (U64(data[p]) * P5), 11) * P1
        p += 1
    h = (h ^ (h >> U64(33))) * P2
    h = (h ^ (h >> U64(29))) * P3
    return h ^ (h >> U64(32))


@kernel
def hash_strings(data, offsets, out):
    """out[i] = XXH64 of data[offsets[i]:offsets[i + 1]]; data: uint8 [bytes], offsets: int32 or int64 [n + 1]."""
    for i in range(out.shape[0]):
        out[i] = xxh64(data, np.int64(offsets[i]), np.int64(offsets[i + 1]))
