"""Row-wise AdaGrad with a learning rate for each slot: features of some fields learn slower than others.

In YAML: `optimizer: {name: slot_adagrad, learning_rate: 0.05, slots: [3, 7], factors: [0.1, 2.0]}` and
`psfunc_modules: [examples.slot_learning_rates]`.
"""

import numpy as np
from pydantic import model_validator

import ps


@ps.register("slot_adagrad")
class SlotAdaGrad(ps.RowOptimizer):
    """factors[i] times the learning rate for keys of slots[i]; other slots learn at the learning rate itself."""

    eps: float = 1e-8
    slots: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _pairs(self):
        if len(self.slots) != len(self.factors):
            raise ValueError(f"{len(self.factors)} factors for {len(self.slots)} slots")
        return self

    def state_dim(self, dim):
        return 1

    def update(self, values, state, gradient, learning_rate, slot):
        rate = learning_rate
        for i in range(len(self.slots)):
            if self.slots[i] == slot:
                rate *= np.float32(self.factors[i])
        total = np.float32(0)
        for g in gradient:
            total += g * g
        state[0] += total / np.float32(len(gradient))
        for j in range(len(values)):
            values[j] -= rate / (np.sqrt(state[0]) + self.eps) * gradient[j]
