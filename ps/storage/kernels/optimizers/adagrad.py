"""AdaGrad, Duchi et al. 2011, per element: a += g^2; w -= lr * g / (sqrt(a) + eps). As torch.optim.Adagrad."""

import numpy as np


def state_dim(hyper, dim):
    return dim


def init_state(hyper, state):
    for j in range(state.shape[0]):
        state[j] = hyper.initial_accumulator


def update(hyper, values, state, gradient, learning_rate):
    for j in range(values.shape[0]):
        g = gradient[j] + hyper.l2 * values[j]
        state[j] += g * g
        values[j] -= learning_rate * g / (np.sqrt(state[j]) + hyper.eps)
