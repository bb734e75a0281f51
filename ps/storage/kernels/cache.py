"""The hot-key cache of one table: a set-associative store of rows and a blocked count-min sketch of key frequencies.

    set of a key   = multiply-high of the upper half of mix64(key); WAYS rows a set, stamp -1 marks an empty way
    sketch         = uint32 [blocks, 16]; a key counts in one block (one cache line), once in each of its four groups
    of four

Arrays only; one thread at a time. A sampled estimate is never below the true count since the last halving.
"""

import numpy as np

from ps.storage.kernels.build import inlined, kernel
from ps.storage.kernels.hashing import mix64

U64 = np.uint64
WAYS = 8
GROUPS = 4


@inlined
def _set_of(h, num_sets):
    return np.int64(((h >> U64(32)) * U64(num_sets)) >> U64(32))


@inlined
def _count(sketch, h):
    """Count a key once and return its new estimate. Conservative: only counters at the minimum grow."""
    block = np.int64((h & U64(0xFFFFFFFF)) & U64(sketch.shape[0] - 1))
    g = mix64(h)
    least = np.uint32(0xFFFFFFFF)
    for i in range(GROUPS):
        least = min(least, sketch[block, 4 * i + np.int64((g >> U64(2 * i)) & U64(3))])
    for i in range(GROUPS):
        j = 4 * i + np.int64((g >> U64(2 * i)) & U64(3))
        if sketch[block, j] == least and least < np.uint32(0xFFFFFFFF):
            sketch[block, j] = least + np.uint32(1)
    return least + np.uint32(1)


@inlined
def _estimate(sketch, h):
    block = np.int64((h & U64(0xFFFFFFFF)) & U64(sketch.shape[0] - 1))
    g = mix64(h)
    least = np.uint32(0xFFFFFFFF)
    for i in range(GROUPS):
        least = min(least, sketch[block, 4 * i + np.int64((g >> U64(2 * i)) & U64(3))])
    return least


@inlined
def _find(keys, stamps, num_sets, key, h):
    """Place of a key, or -1."""
    start = _set_of(h, num_sets) * WAYS
    for place in range(start, start + WAYS):
        if keys[place] == key and stamps[place] >= 0:
            return place
    return -1


@kernel
def read(cached_keys, cached_rows, stamps, sketch, wanted, oldest, out, missing):
    """Count every key; copy rows not older than stamp `oldest` to out[i]; list the others' positions. Returns how
    many those are.

    wanted: uint64 [n], unique; out: float32 [n, width]; missing: int64 [n].
    """
    num_sets = cached_keys.shape[0] // WAYS
    width = out.shape[1]
    num_missing = 0
    for i in range(wanted.shape[0]):
        h = mix64(wanted[i])
        _count(sketch, h)
        place = _find(cached_keys, stamps, num_sets, wanted[i], h)
        if place >= 0 and stamps[place] >= oldest:
            for j in range(width):
                out[i, j] = cached_rows[place, j]
        else:
            missing[num_missing] = i
            num_missing += 1
    return num_missing


@kernel
def contains(cached_keys, stamps, wanted, out):
    """out[i] = whether a row of wanted[i], of any age, is held. out: bool [n]."""
    num_sets = cached_keys.shape[0] // WAYS
    for i in range(wanted.shape[0]):
        out[i] = _find(cached_keys, stamps, num_sets, wanted[i], mix64(wanted[i])) >= 0


@kernel
def admit(cached_keys, cached_rows, stamps, sketch, keys, rows, positions, stamp, oldest, min_count):
    """Store rows[i] of keys[i] for i in positions: over their older copy, or in place of an expired or less frequent
    row.

    A key seen fewer than min_count times is not admitted. Returns how many rows were stored.
    """
    num_sets = cached_keys.shape[0] // WAYS
    width = rows.shape[1]
    stored = 0
    for p in range(positions.shape[0]):
        i = positions[p]
        key = keys[i]
        h = mix64(key)
        place = _find(cached_keys, stamps, num_sets, key, h)
        if place < 0:
            frequency = _estimate(sketch, h)
            if frequency < min_count:
                continue
            start = _set_of(h, num_sets) * WAYS
            least = frequency
            for way in range(start, start + WAYS):
                if stamps[way] < oldest:  # empty, or too old to be read
                    place = way
                    break
                other = _estimate(sketch, mix64(cached_keys[way]))
                if other < least:
                    place, least = way, other
            if place < 0:
                continue
        elif stamps[place] > stamp:
            continue  # a newer pull was faster
        cached_keys[place] = key
        stamps[place] = stamp
        for j in range(width):
            cached_rows[place, j] = rows[i, j]
        stored += 1
    return stored
