"""Lazy Adam whose L2 counts the steps since a row's last push: g + l2 * elapsed * w.

Whole-table L2 pulls every row towards zero at every step; lazy L2 only when a row is pushed, so a feature seen once
in a hundred steps is regularised a hundred times less, and overfits. Multiplying by the elapsed steps makes the
expected pull per step that of whole-table L2 while only the batch's rows are touched (as inverse-probability
weighting does).

State: as lazy Adam, then the step of the last push (a float32: exact to 2^24 steps).
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.optimizers.adam import adam_step

HYPER = ("beta1", "beta2", "eps", "l2")


def state_dim(dim):
    return 2 * dim + 2


@inlined
def init_state(values, state, learning_rate, hyper):
    for j in range(state.shape[0]):
        state[j] = np.float32(0)


@inlined
def update(values, state, gradient, learning_rate, hyper, step):
    count = 2 * values.shape[0]
    last = np.int64(state[count + 1])
    # A new row has missed nothing; a step that does not move forward counts as one.
    elapsed = max(np.int64(1), step - last) if state[count] > 0 else np.int64(1)
    state[count] += np.float32(1)
    state[count + 1] = np.float32(step)
    l2 = np.float32(hyper[3] * np.float64(elapsed))
    adam_step(values, state, gradient, learning_rate, hyper, l2, np.int64(state[count]))
