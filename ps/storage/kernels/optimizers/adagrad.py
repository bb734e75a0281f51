"""AdaGrad, Duchi et al. 2011, per element: a += g^2; w -= lr * g / (sqrt(a) + eps). As torch.optim.Adagrad."""

import numpy as np

from ps.storage.kernels.build import inlined

HYPER = ("initial_accumulator", "eps", "l2")


def state_dim(dim):
    return dim


@inlined
def init_state(values, state, learning_rate, hyper):
    for j in range(values.shape[0]):
        state[j] = np.float32(hyper[0])


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    eps, l2 = np.float32(hyper[1]), np.float32(hyper[2])
    for j in range(values.shape[0]):
        g = gradient[j] + l2 * values[j]
        state[j] += g * g
        values[j] -= learning_rate * g / (np.sqrt(state[j]) + eps)
