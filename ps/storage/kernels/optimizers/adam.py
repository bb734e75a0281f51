"""Lazy Adam, Kingma and Ba 2015: only pushed rows move; a row counts its own steps.

A row that is pushed at each step moves as torch.optim.Adam moves it.

State: first moments [dim], second moments [dim], step count.
"""

import numpy as np


def state_dim(hyper, dim):
    return 2 * dim + 1


def power(base, exponent):
    """base ** exponent for a count, by squaring in float64: the same bits everywhere, unlike the C library's pow."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def adam_step(hyper, values, state, gradient, learning_rate, l2, step):
    """torch.optim.Adam with weight_decay l2; state: moments [2 * dim], `step` counts from 1."""
    dim = values.shape[0]
    beta2, eps = np.float32(hyper.beta2), hyper.eps
    rest1, rest2 = np.float32(1.0 - hyper.beta1), np.float32(1.0 - hyper.beta2)
    size = np.float32(np.float64(learning_rate) / (1.0 - power(hyper.beta1, step)))
    root = np.float32(np.sqrt(1.0 - power(hyper.beta2, step)))
    for j in range(dim):
        g = gradient[j] + l2 * values[j]
        m = state[j] + rest1 * (g - state[j])
        v = state[dim + j] * beta2 + rest2 * g * g
        state[j] = m
        state[dim + j] = v
        values[j] -= size * m / (np.sqrt(v) / root + eps)


def update(hyper, values, state, gradient, learning_rate):
    count = 2 * values.shape[0]
    # float32 counts exactly to 2^24 and then stays: the bias corrections are 1 long before.
    state[count] += np.float32(1)
    adam_step(hyper, values, state, gradient, learning_rate, np.float32(hyper.l2), np.int64(state[count]))
