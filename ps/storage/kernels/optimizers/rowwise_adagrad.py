"""AdaGrad with one accumulator a row: a += mean(g^2); w -= lr / (sqrt(a) + eps) * g. As FBGEMM's EXACT_ROWWISE_ADAGRAD.

The sum of squares is taken in eight lanes (element j goes to lane j mod 8), added as ((0+4)+(2+6)) + ((1+5)+(3+7)).
"""

import numpy as np


def state_dim(hyper, dim):
    return 1


def _square(values, gradient, l2, j):
    if j >= values.shape[0]:
        return np.float32(0)
    g = gradient[j] + l2 * values[j]
    return g * g


def update(hyper, values, state, gradient, learning_rate):
    eps, l2 = hyper.eps, hyper.l2
    zero = np.float32(0)
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    for j in range(0, values.shape[0], 8):
        s0 += _square(values, gradient, l2, j)
        s1 += _square(values, gradient, l2, j + 1)
        s2 += _square(values, gradient, l2, j + 2)
        s3 += _square(values, gradient, l2, j + 3)
        s4 += _square(values, gradient, l2, j + 4)
        s5 += _square(values, gradient, l2, j + 5)
        s6 += _square(values, gradient, l2, j + 6)
        s7 += _square(values, gradient, l2, j + 7)
    total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
    state[0] += total / np.float32(values.shape[0])
    rate = learning_rate / (np.sqrt(state[0]) + eps)
    for j in range(values.shape[0]):
        values[j] -= rate * (gradient[j] + l2 * values[j])
