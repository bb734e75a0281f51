"""fp16 (IEEE binary16), without infinities: greater values become 65504, and are counted.

Below 2^-14 the codes are multiples of 2^-24. Both ranges are computed and one is chosen: values of fresh rows lie in
both. No step of it makes a subnormal float32, which some CPUs handle a hundred times slower.
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.draws import draw, step_sequence
from ps.storage.kernels.views import bits_of, from_bits, part

U32, U64 = np.uint32, np.uint64
MAGNITUDE, SIGN, GREATEST = U32(0x7FFFFFFF), U32(0x8000), U32(0x7BFF)
REBIAS = U32(112 << 10)  # exponent bias of float32 less that of fp16
NORMAL = U32(113 << 23)  # bits of 2^-14, the least value with a full mantissa
OVER = U32(143 << 23)  # bits of 2^16, above every code
HALF = np.float32(0.5)  # the last bit of a float32 from 0.5 up to 1 is 2^-24: adding it rounds to that


def words(dim):
    return (dim + 1) // 2


@inlined
def codes(floats, halves, word, dim):
    return part(halves, 2 * word, dim)


@inlined
def clear(codes):
    pass


@inlined
def decode(codes, values):
    for j in range(values.shape[0]):
        code = U32(codes[j])
        magnitude = U32(code & U32(0x7FFF))
        normal = U32(U32(magnitude << U32(13)) + U32(112 << 23))
        tiny = bits_of(np.float32(np.int32(magnitude)) * np.float32(2.0**-24))
        chosen = normal if magnitude >= U32(0x400) else tiny
        values[j] = from_bits(U32(chosen) | U32(U32(code & SIGN) << U32(16)))


@inlined
def _store(codes, j, bits, code):
    codes[j] = np.uint16(U32(min(code, GREATEST)) | U32(U32(bits >> U32(16)) & SIGN))
    return np.int64(code > GREATEST)


@inlined
def encode_nearest(values, codes):
    saturated = 0
    for j in range(values.shape[0]):
        bits = bits_of(values[j])
        magnitude = min(U32(bits & MAGNITUDE), OVER)
        odd = U32(U32(magnitude >> U32(13)) & U32(1))
        normal = U32(U32(U32(magnitude + U32(0xFFF)) + odd) >> U32(13)) - REBIAS
        tiny = U32(bits_of(from_bits(min(magnitude, NORMAL)) + HALF) - bits_of(HALF))
        saturated += _store(codes, j, bits, U32(normal) if magnitude >= NORMAL else tiny)
    return saturated


@inlined
def encode_stochastic(values, codes, stream, key, step):
    """Adds random bits below the code and cuts; four elements share a draw."""
    start = step_sequence(stream, key, step)
    saturated = 0
    for j in range(values.shape[0]):
        random = U32((draw(start, j >> 2) >> U64((j & 3) << 4)) & U64(0xFFFF))
        bits = bits_of(values[j])
        magnitude = min(U32(bits & MAGNITUDE), OVER)
        normal = U32(U32(magnitude + U32(random >> U32(3))) >> U32(13)) - REBIAS
        fixed = U32(np.int32(from_bits(min(magnitude, NORMAL)) * np.float32(2.0**40)))  # in units of 2^-24 / 2^16
        tiny = U32(U32(fixed + random) >> U32(16))
        saturated += _store(codes, j, bits, U32(normal) if magnitude >= NORMAL else tiny)
    return saturated
