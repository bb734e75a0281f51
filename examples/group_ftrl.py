"""Group-lasso FTRL: FTRL-proximal that sets whole rows to zero, so that useless features cost no capacity.

Yue et al. 2021, "Adaptive Optimizers with Sparse Group Lasso for Neural Networks in CTR Prediction", with the row as
the group. In YAML: `optimizer: {name: group_ftrl, learning_rate: 0.05, group: 0.1}` and
`psfunc_modules: [examples.group_ftrl]`.
"""

import numpy as np
from pydantic import Field

import ps


def shrink(z, l1):
    """z moved towards zero by l1."""
    if z > l1:
        return z - l1
    return z + l1 if z < -l1 else np.float32(0)


@ps.register("group_ftrl")
class GroupFTRL(ps.RowOptimizer):
    """s = shrink(z, l1); a row is zero while |s| <= group * sqrt(dim), and else FTRL's, shortened by that much.

    State: z [dim], n [dim]. Rows start at zero: give the segment the initializer zeros.
    """

    learning_rate: float = Field(0.05, gt=0)
    beta: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)
    group: float = Field(0.1, ge=0)

    def state_dim(self, dim):
        return 2 * dim

    def update(self, values, state, gradient, learning_rate):
        dim = len(values)
        total = np.float32(0)
        for j in range(dim):
            g, n = gradient[j], state[dim + j]
            squares = n + g * g
            state[j] += g - (np.sqrt(squares) - np.sqrt(n)) / learning_rate * values[j]
            state[dim + j] = squares
            s = shrink(state[j], self.l1)
            total += s * s
        norm, limit = np.sqrt(total), self.group * np.sqrt(np.float32(dim))
        kept = np.float32(1) - limit / norm if norm > limit else np.float32(0)
        for j in range(dim):
            scale = (self.beta + np.sqrt(state[dim + j])) / learning_rate + self.l2
            values[j] = -kept * shrink(state[j], self.l1) / scale
