"""Lazy Adam whose L2 counts the steps since a row's last push: g + l2 * elapsed * w.

Whole-table L2 pulls every row towards zero at every step; lazy L2 only when a row is pushed, so a feature seen once
in a hundred steps is regularised a hundred times less, and overfits. Multiplying by the elapsed steps makes the
expected pull per step that of whole-table L2 while only the batch's rows are touched (as inverse-probability
weighting does).

State: as lazy Adam, then the step of the last push (a float32: exact to 2^24 steps).
"""

import numpy as np

from ps.storage.kernels.optimizers.adam import adam_step


def state_dim(hyper, dim):
    return 2 * dim + 2


def update(hyper, values, state, gradient, learning_rate, step):
    count = 2 * values.shape[0]
    last = np.int64(state[count + 1])
    # A new row has missed nothing; a step that does not move forward counts as one.
    elapsed = max(np.int64(1), step - last) if state[count] > 0 else np.int64(1)
    state[count] += np.float32(1)
    state[count + 1] = np.float32(step)
    l2 = np.float32(hyper.l2 * np.float64(elapsed))
    adam_step(hyper, values, state, gradient, learning_rate, l2, np.int64(state[count]))
