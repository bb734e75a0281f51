"""Norms of gradient rows and the search for a row that is not finite, in one pass each."""

import numpy as np

from ps.storage.kernels.build import kernel


@kernel
def squared_norms(gradients, out):
    """out[i] = sum of squares of gradients[i] in float64, four lanes in a fixed order. float32 [n, width] -> float64 [n].

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
def first_not_finite(bits, width):
    """Row of the first NaN or infinity in float32 [n, width] given as its int32 bits [n * width], or -1."""
    magnitude, infinity = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
    block = 1024
    for start in range(0, bits.shape[0], block):
        end = min(start + block, bits.shape[0])
        greatest = np.int32(0)
        for i in range(start, end):  # without a branch, so that it becomes vector code
            greatest = max(greatest, bits[i] & magnitude)
        if greatest >= infinity:
            for i in range(start, end):
                if bits[i] & magnitude >= infinity:
                    return i // width
    return -1
