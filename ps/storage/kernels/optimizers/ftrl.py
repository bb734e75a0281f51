"""FTRL-proximal, McMahan et al. 2013, algorithm 1, per coordinate; the learning rate is its alpha.

    s = (sqrt(n + g^2) - sqrt(n)) / alpha;  z += g - s * w;  n += g^2
    w = 0 if |z| <= l1 else -(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)

State: z [dim], n [dim]. The weight is a function of z and n, so a value that came from elsewhere (an initializer, an
overwrite) sets z to what gives that value. A coordinate without gradient keeps its weight to the bit.
"""

import numpy as np

from ps.storage.kernels.build import inlined

HYPER = ("beta", "l1", "l2")


def state_dim(dim):
    return 2 * dim


@inlined
def _dual(w, n, learning_rate, hyper):
    """z for which the weight is w."""
    beta, l1, l2 = np.float32(hyper[0]), np.float32(hyper[1]), np.float32(hyper[2])
    z = -w * ((beta + np.sqrt(n)) / learning_rate + l2)
    return z - l1 if w > 0 else (z + l1 if w < 0 else z)


@inlined
def init_state(values, state, learning_rate, hyper):
    dim = values.shape[0]
    for j in range(dim):
        state[dim + j] = np.float32(0)
        state[j] = _dual(values[j], np.float32(0), learning_rate, hyper)


@inlined
def rebase_state(before, values, state, learning_rate, hyper):
    dim = values.shape[0]
    for j in range(dim):
        if before[j] != values[j]:
            state[j] = _dual(values[j], state[dim + j], learning_rate, hyper)


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    beta, l1, l2 = np.float32(hyper[0]), np.float32(hyper[1]), np.float32(hyper[2])
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
