"""Initial values: functions of (stream, key, element) that use integer operations and one product, so equal on any CPU.

Each fills `values` (float32 [dim]) from `parameter` (float64: the value, scale or standard deviation).
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.draws import draw, sequence

U64 = np.uint64


@inlined
def zeros(values, key, stream, parameter):
    for j in range(values.shape[0]):
        values[j] = np.float32(0)


@inlined
def constant(values, key, stream, parameter):
    for j in range(values.shape[0]):
        values[j] = np.float32(parameter)


@inlined
def uniform(values, key, stream, parameter):
    """On a grid of 2^24 points in [-scale, scale)."""
    start, scale = sequence(stream, key), np.float32(parameter)
    for j in range(values.shape[0]):
        grid = np.int32(draw(start, j) >> U64(40)) - np.int32(1 << 23)
        values[j] = np.float32(grid) * np.float32(2.0**-23) * scale


@inlined
def normal(values, key, stream, parameter):
    """Sum of twelve uniforms of 16 bits, centred: variance 1, bounded by 6."""
    start, std = sequence(stream, key), np.float32(parameter)
    for j in range(values.shape[0]):
        total = np.int32(0)
        for k in range(3):
            bits = draw(start, 3 * j + k)
            total += np.int32(bits & U64(0xFFFF)) + np.int32((bits >> U64(16)) & U64(0xFFFF))
            total += np.int32((bits >> U64(32)) & U64(0xFFFF)) + np.int32(bits >> U64(48))
        values[j] = np.float32(2 * total - 12 * 65535) * np.float32(2.0**-17) * std
