"""Norms of gradient rows and the search for a row that is not finite, in one pass each."""

import numpy as np

from ps.storage.kernels.build import kernel

U64 = np.uint64


@kernel
def squared_norms(gradients, out):
    """out[i] = sum of squares of gradients[i] in float64, four lanes in a fixed order. float32 [n, width] -> float64
    [n].

    Squares of float32 cannot overflow a float64, so out[i] is not finite exactly where the row is not.
    """
    width = gradients.shape[1]
    whole = width - width % 4
    for i in range(gradients.shape[0]):
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for j in range(0, whole, 4):
            v0, v1 = np.float64(gradients[i, j]), np.float64(gradients[i, j + 1])
            v2, v3 = np.float64(gradients[i, j + 2]), np.float64(gradients[i, j + 3])
            a += v0 * v0
            b += v1 * v1
            c += v2 * v2
            d += v3 * v3
        for j in range(whole, width):
            v0 = np.float64(gradients[i, j])
            a += v0 * v0
        out[i] = (a + b) + (c + d)


@kernel
def first_pair_not_finite(pairs):
    """Index of the first pair of float32, as uint64 [n] patterns, that holds a NaN or an infinity; or -1.

    Adding one to the exponent of both halves reaches their sign bits, which were cleared, exactly where all its bits
    were set.
    """
    magnitudes, one, signs = U64(0x7FFFFFFF7FFFFFFF), U64(0x0080000000800000), U64(0x8000000080000000)
    block = 512
    for start in range(0, pairs.shape[0], block):
        end = min(start + block, pairs.shape[0])
        found = U64(0)
        for i in range(start, end):  # without a branch, so that it becomes vector code
            found |= (pairs[i] & magnitudes) + one
        if found & signs:
            for i in range(start, end):
                if ((pairs[i] & magnitudes) + one) & signs:
                    return i
    return -1
