"""bf16: the upper 16 bits of a float32."""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.draws import draw, step_sequence
from ps.storage.kernels.views import bits_of, from_bits, part

U32, U64 = np.uint32, np.uint64
SIGN, MAGNITUDE, GREATEST = U32(0x8000), U32(0x7FFFFFFF), U32(0x7F7F)


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
        values[j] = from_bits(U32(codes[j]) << U32(16))


@inlined
def _store(codes, j, bits, addend):
    code = U32(U32((bits & MAGNITUDE) + addend) >> U32(16))
    codes[j] = np.uint16(U32(min(code, GREATEST)) | U32((bits >> U32(16)) & SIGN))
    return np.int64(code > GREATEST)


@inlined
def encode_nearest(values, codes):
    saturated = 0
    for j in range(values.shape[0]):
        bits = bits_of(values[j])
        saturated += _store(codes, j, bits, U32(0x7FFF) + U32((bits >> U32(16)) & U32(1)))
    return saturated


@inlined
def encode_stochastic(values, codes, stream, key, step):
    """Adds 16 random bits below the code and cuts; four elements share a draw."""
    start = step_sequence(stream, key, step)
    saturated = 0
    for j in range(values.shape[0]):
        random = draw(start, j >> 2) >> U64((j & 3) << 4)
        saturated += _store(codes, j, bits_of(values[j]), U32(random & U64(0xFFFF)))
    return saturated
