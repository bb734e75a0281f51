"""Dense Adam for a sparse table: a push only accumulates; one sweep a step moves every row, as torch.optim.Adam would.

State: first moments [dim], second moments [dim], gradients since the last sweep [dim].
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.optimizers.adam import adam_step
from ps.storage.kernels.views import part

HYPER = ("beta1", "beta2", "eps", "l2")


def state_dim(dim):
    return 3 * dim


@inlined
def init_state(values, state, learning_rate, hyper):
    for j in range(state.shape[0]):
        state[j] = np.float32(0)


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    pending = 2 * values.shape[0]
    for j in range(values.shape[0]):
        state[pending + j] += gradient[j]


@inlined
def sweep(values, state, learning_rate, hyper, step):
    dim = values.shape[0]
    pending = part(state, 2 * dim, dim)
    adam_step(values, state, pending, learning_rate, hyper, np.float32(hyper[3]), step)
    for j in range(dim):
        pending[j] = np.float32(0)
