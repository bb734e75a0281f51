"""What keys without a row have gathered, in a sketch of bounded size; and admission by chance.

    sketch      uint16 [num_buckets, lines * 32]: of every bucket its own counters, in lines of 32 (64 bytes)
    a key       lives in 4 counters of one line, chosen by a hash that is not the one of its bucket
    estimate    the least of the four; an addition raises only those below the new estimate (conservative update,
                Estan and Varghese 2002): never less than what was added, more where keys share counters

When more than half of a bucket's counters are in use, all of them are halved, and what is then below `least`, one
smallest addition, is forgotten: keys seen once make room.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.draws import draw, step_sequence
from ps.storage.kernels.hashing import mix64
from ps.storage.kernels.index import KEYS, bucket_of_hash
from ps.storage.kernels.views import borrow

U64 = np.uint64
LINE = 32
GREATEST = np.int64(65535)
SALT = U64(0x5851F42D4C957F2D)  # what makes the sketch's hash another one than the bucket's


@inlined
def _halve(counters, least):
    """Returns how many are in use afterwards."""
    used = 0
    for i in range(counters.shape[0]):
        half = counters[i] >> 1
        counters[i] = half if half >= least else 0
        used += counters[i] != 0
    return used


@typed_kernel(
    "void",
    array("uint16", 2),
    array("int64"),
    KEYS,
    "int64",
    readonly_array("float32"),
    "float64",
    "int64",
    readonly_array("float64"),
    array("bool"),
)
def gather(sketch, used, keys, bucket_bits, amounts, scale, least, thresholds, admitted):
    """Add amounts[i] (times scale, rounded up) to keys[i]; admitted[i]: its estimate reaches thresholds[slot] * scale.

    used: int64 [num_buckets], counters in use; thresholds: float64 [4096].
    """
    used, keys, amounts = borrow(used), borrow(keys), borrow(amounts)
    thresholds, admitted = borrow(thresholds), borrow(admitted)
    lines = U64(sketch.shape[1] // LINE)
    for i in range(keys.shape[0]):
        bucket = np.int64(bucket_of_hash(mix64(keys[i]), bucket_bits))
        h = mix64(keys[i] ^ SALT)
        line = np.int64(((h >> U64(32)) * lines) >> U64(32)) * LINE
        estimate = GREATEST
        for k in range(4):
            place = line + np.int64((h >> U64(5 * k)) & U64(LINE - 1))
            estimate = min(estimate, np.int64(sketch[bucket, place]))
        wanted = np.ceil(np.float64(amounts[i]) * scale)
        estimate += np.int64(min(max(wanted, 0.0), 65535.0))
        estimate = min(estimate, GREATEST)
        for k in range(4):
            place = line + np.int64((h >> U64(5 * k)) & U64(LINE - 1))
            if np.int64(sketch[bucket, place]) < estimate:
                used[bucket] += sketch[bucket, place] == 0
                sketch[bucket, place] = np.uint16(estimate)
        admitted[i] = np.float64(estimate) >= np.floor(thresholds[np.int64(keys[i] >> U64(52))] * scale)
        while used[bucket] * 2 > sketch.shape[1]:
            used[bucket] = _halve(sketch[bucket], least)


@typed_kernel("void", KEYS, "uint64", "int64", "float64", array("bool"))
def draw_chances(keys, stream, step, probability, admitted):
    """admitted[i]: true with this probability, a function of (stream, key, step)."""
    keys, admitted = borrow(keys), borrow(admitted)
    for i in range(keys.shape[0]):
        uniform = np.float64(draw(step_sequence(stream, keys[i], step), 0) >> U64(11)) * 2.0**-53
        admitted[i] = uniform < probability
