"""Lazy Adam, Kingma and Ba 2015: only pushed rows move; a row counts its own steps.

A row that is pushed at each step moves as torch.optim.Adam moves it.

State: first moments [dim], second moments [dim], step count.
"""

import numpy as np

from ps.storage.kernels.build import inlined

HYPER = ("beta1", "beta2", "eps", "l2")


def state_dim(dim):
    return 2 * dim + 1


@inlined
def power(base, exponent):
    """base ** exponent for a count, by squaring in float64: the same bits everywhere, unlike the C library's pow."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@inlined
def adam_step(values, state, gradient, learning_rate, hyper, l2, step):
    """torch.optim.Adam with weight_decay l2; state: moments [2 * dim], `step` counts from 1."""
    dim = values.shape[0]
    beta2, eps = np.float32(hyper[1]), np.float32(hyper[2])
    rest1, rest2 = np.float32(1.0 - hyper[0]), np.float32(1.0 - hyper[1])
    size = np.float32(np.float64(learning_rate) / (1.0 - power(hyper[0], step)))
    root = np.float32(np.sqrt(1.0 - power(hyper[1], step)))
    for j in range(dim):
        g = gradient[j] + l2 * values[j]
        m = state[j] + rest1 * (g - state[j])
        v = state[dim + j] * beta2 + rest2 * g * g
        state[j] = m
        state[dim + j] = v
        values[j] -= size * m / (np.sqrt(v) / root + eps)


@inlined
def init_state(values, state, learning_rate, hyper):
    for j in range(state.shape[0]):
        state[j] = np.float32(0)


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    count = 2 * values.shape[0]
    # float32 counts exactly to 2^24 and then stays: the bias corrections are 1 long before.
    state[count] += np.float32(1)
    adam_step(values, state, gradient, learning_rate, hyper, np.float32(hyper[3]), np.int64(state[count]))
