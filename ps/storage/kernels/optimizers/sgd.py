"""SGD: w -= lr * (g + l2 * w). As torch.optim.SGD with weight_decay."""

import numpy as np

from ps.storage.kernels.build import inlined

HYPER = ("l2",)


def state_dim(dim):
    return 0


@inlined
def init_state(values, state, learning_rate, hyper):
    pass


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    l2 = np.float32(hyper[0])
    for j in range(values.shape[0]):
        values[j] -= learning_rate * (gradient[j] + l2 * values[j])
