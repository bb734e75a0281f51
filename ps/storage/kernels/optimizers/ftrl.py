"""FTRL-proximal, McMahan et al. 2013, algorithm 1, per coordinate; the learning rate is its alpha.

    s = (sqrt(n + g^2) - sqrt(n)) / alpha;  z += g - s * w;  n += g^2
    w = 0 if |z| <= l1 else -(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)

State: z [dim], n [dim]. The weight is a function of z and n, so a value that came from elsewhere (an initializer, an
overwrite) sets z to what gives that value. A coordinate without gradient keeps its weight to the bit.
"""

import numpy as np


def state_dim(hyper, dim):
    return 2 * dim


def _dual(hyper, w, n, learning_rate):
    """z for which the weight is w."""
    l1 = hyper.l1
    z = -w * ((hyper.beta + np.sqrt(n)) / learning_rate + hyper.l2)
    return z - l1 if w > 0 else (z + l1 if w < 0 else z)


def init_state(hyper, values, state, learning_rate):
    dim = values.shape[0]
    for j in range(dim):
        state[dim + j] = np.float32(0)
        state[j] = _dual(hyper, values[j], np.float32(0), learning_rate)


def rebase_state(hyper, before, values, state, learning_rate):
    dim = values.shape[0]
    for j in range(dim):
        if before[j] != values[j]:
            state[j] = _dual(hyper, values[j], state[dim + j], learning_rate)


def update(hyper, values, state, gradient, learning_rate):
    beta, l1, l2 = hyper.beta, hyper.l1, hyper.l2
    dim = values.shape[0]
    for j in range(dim):
        g = gradient[j]
        if g == 0:
            continue
        squares = state[dim + j] + g * g
        sigma = (np.sqrt(squares) - np.sqrt(state[dim + j])) / learning_rate
        z = state[j] + g - sigma * values[j]
        state[j] = z
        state[dim + j] = squares
        shrunk = z - l1 if z > l1 else (z + l1 if z < -l1 else np.float32(0))
        values[j] = np.float32(0) if shrunk == 0 else -shrunk / ((beta + np.sqrt(squares)) / learning_rate + l2)
