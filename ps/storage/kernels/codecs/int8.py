"""int8: the codes of a row's segment share one scale, a power of two.

codes     = exponent code*              dim + 1 bytes
exponent  = byte e: a code counts multiples of 2^(e - 127), the float32 whose exponent bits are e; 1 .. 248, so that
            127 * scale is finite. 0: no scale yet, everything reads as 0
code      = -127 .. 127

An encoder takes the scale that lies in the codes and changes it only where it must: it doubles while the greatest
magnitude exceeds 127 * scale, and halves while that lies below a quarter of it. So at an equal scale an element that
did not change keeps its code, whatever is drawn, and a scale does not flap. Values that are all 0 keep it. Without a
scale yet, the least one that holds the values is taken.
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.draws import draw, step_sequence
from ps.storage.kernels.views import bits_of, bytes_of, from_bits

U32, U64, I32 = np.uint32, np.uint64, np.int32
MAGNITUDE, GREATEST_EXPONENT, GREATEST = U32(0x7FFFFFFF), 248, 127
# Greater magnitudes have no fraction bits: adding it leaves a float32 rounded to a whole number, ties to even.
WHOLE = np.float32(1.5 * 2**23)
FRACTION = np.float32(2.0**16)


def words(dim):
    return (dim + 4) // 4


@inlined
def codes(floats, halves, word, dim):
    return bytes_of(halves, 4 * word, dim + 1)


@inlined
def clear(codes):
    codes[0] = 0


@inlined
def decode(codes, values):
    scale = from_bits((U32(codes[0]) & U32(0xFF)) << U32(23))
    for j in range(values.shape[0]):
        values[j] = np.float32(codes[1 + j]) * scale


@inlined
def _fit(values, codes):
    """Set the scale that these values need; returns its inverse, exact."""
    greatest = U32(0)
    for j in range(values.shape[0]):
        greatest = max(greatest, U32(bits_of(values[j]) & MAGNITUDE))
    exponent = I32(codes[0]) & I32(0xFF)
    if greatest > 0:
        # 127 has the mantissa 0x7E0000: the sums carry into the exponent where that of `greatest` is above it, or not
        # below it.
        least = I32(U32(greatest + U32(0x01FFFF)) >> U32(23)) - 6
        loosest = I32(U32(greatest + U32(0x020000)) >> U32(23)) - 5
        exponent = max(min(max(least, 1), GREATEST_EXPONENT), min(exponent, loosest))
    codes[0] = np.int8(exponent)
    return from_bits(U32(254 - exponent) << U32(23))


@inlined
def _store(codes, j, code):
    codes[1 + j] = np.int8(max(min(code, I32(GREATEST)), I32(-GREATEST)))
    return np.int64((code > GREATEST) | (code < -GREATEST))


@inlined
def encode_nearest(values, codes):
    inverse = _fit(values, codes)
    saturated = 0
    for j in range(values.shape[0]):
        code = I32(bits_of(values[j] * inverse + WHOLE)) - I32(bits_of(WHOLE))
        saturated += _store(codes, j, I32(code))
    return saturated


@inlined
def encode_stochastic(values, codes, stream, key, step):
    """Adds 16 random bits below the code and cuts; four elements share a draw."""
    start = step_sequence(stream, key, step)
    inverse = _fit(values, codes)
    saturated = 0
    for j in range(values.shape[0]):
        random = I32((draw(start, j >> 2) >> U64((j & 3) << 4)) & U64(0xFFFF))
        fixed = I32(values[j] * inverse * FRACTION)  # whole for a code: then no random number reaches the next one
        saturated += _store(codes, j, I32(I32(fixed + random) >> I32(16)))
    return saturated
