"""Dense Adam for a sparse table: a push only accumulates; one sweep a step moves every row, as torch.optim.Adam would.

State: first moments [dim], second moments [dim], gradients since the last sweep [dim].
"""

import numpy as np

from ps.storage.kernels.optimizers.adam import adam_step
from ps.storage.kernels.views import part


def state_dim(hyper, dim):
    return 3 * dim


def update(hyper, values, state, gradient):
    pending = 2 * values.shape[0]
    for j in range(values.shape[0]):
        state[pending + j] += gradient[j]


def sweep(hyper, values, state, learning_rate, step):
    dim = values.shape[0]
    pending = part(state, 2 * dim, dim)
    adam_step(hyper, values, state, pending, learning_rate, np.float32(hyper.l2), step)
    for j in range(dim):
        pending[j] = np.float32(0)
