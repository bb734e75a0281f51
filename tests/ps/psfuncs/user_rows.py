"""Row functions of users that go wrong in every way, and one that does not."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import ps


def halve(value, victim, key):
    """A helper, so that lines inside helpers are told as well."""
    if key == np.uint64(victim):
        raise ValueError("met the victim")  # helper
    return value * np.float32(0.5)


@ps.register("touchy")
class Touchy(ps.RowOptimizer):
    """SGD at half the gradient. Raises, or reads beyond the end, or gives NaN, where a key is one of its victims."""

    victim: int = 0
    beyond: int = 0
    broken: int = 0
    unborn: int = 0
    swept: int = 0

    def state_dim(self, dim):
        return 1

    def init_state(self, state, key):
        if key == np.uint64(self.unborn):
            raise RuntimeError("not to be born")  # init
        state[0] = 7

    def update(self, values, state, gradient, learning_rate, key, step):
        end = len(values)
        if key == np.uint64(self.beyond):
            end += 1
        state[0] += 1
        for j in range(end):
            values[j] -= learning_rate * halve(gradient[j], self.victim, key)  # beyond
        if key == np.uint64(self.broken):
            values[0] = np.nan

    def sweep(self, values, state, key, step):
        if key == np.uint64(self.swept):
            raise ZeroDivisionError("in the sweep")  # sweep
        state[0] += 100
        for j in range(len(values)):
            values[j] += 1


@ps.register("touchy_row")
@dataclass(frozen=True)
class TouchyRow(ps.UpdateRow):
    """Adds the payload and counts in the state; raises on a victim."""

    victim: int = 0
    broken: int = 0

    def update_row(self, values, state, payload, key):
        for j in range(len(values)):
            values[j] += payload[j]
        state[0] += 1
        if key == np.uint64(self.victim):
            raise ValueError("row")  # row
        if key == np.uint64(self.broken):
            values[0] = np.inf


@ps.register("touchy_table")
@dataclass(frozen=True)
class TouchyTable(ps.UpdateRow):
    """Doubles rows; raises on a victim."""

    victim: int = 0

    def update_row(self, values, key):
        for j in range(len(values)):
            values[j] *= 2
        if key == np.uint64(self.victim):
            raise ValueError("table")  # table


@ps.register("add_to_state")
@dataclass(frozen=True)
class AddToState(ps.UpdateRow):
    """Adds to every number of state; the values stay."""

    amount: float

    def update_row(self, state):
        for j in range(len(state)):
            state[j] += self.amount


@ps.register("state_and_slot")
@dataclass(frozen=True)
class StateAndSlot(ps.ReadRow):
    """The first number of state, the slot, and the sum of the values weighted by a list."""

    weights: list[float]
    out_dim: ClassVar[int] = 3

    def read_row(self, out, values, state, slot):
        out[0] = state[0]
        out[1] = slot
        for j in range(len(values)):
            out[2] += np.float32(self.weights[j]) * values[j]


@ps.register("infinite_first")
@dataclass(frozen=True)
class InfiniteFirst(ps.UpdateRow):
    """Infinity in the first value and in the first number of state, 5 in the rest."""

    def update_row(self, values, state):
        for j in range(len(values)):
            values[j] = np.inf if j == 0 else 5
        state[0] = np.inf
