"""A user's module whose row functions name what rows remember: shows, clicks and their last push."""

from dataclasses import dataclass
from typing import ClassVar

import ps


@ps.register("per_show")
class PerShow(ps.RowOptimizer):
    """SGD whose rate falls with the shows of a row before this push."""

    learning_rate: float = 1.0
    fails_from: float = 1e9

    def update(self, values, gradient, learning_rate, shows):
        if shows >= self.fails_from:
            raise ValueError("too many shows")
        for j in range(values.shape[0]):
            values[j] -= learning_rate / (1 + shows) * gradient[j]


@ps.register("what_was_seen")
@dataclass(frozen=True)
class WhatWasSeen(ps.ReadRow):
    out_dim: ClassVar[int] = 3

    def read_row(self, out, shows, clicks, last_seen):
        out[0] = shows
        out[1] = clicks
        out[2] = last_seen


@ps.register("clicks_of_all")
@dataclass(frozen=True)
class ClicksOfAll(ps.FoldRows):
    def start(self):
        return [0.0]

    def fold_row(self, total, clicks):
        total[0] += clicks

    def combine(self, a, b):
        return a + b

    def finish(self, total):
        return float(total[0])


@ps.register("mark_old")
@dataclass(frozen=True)
class MarkOld(ps.UpdateRow):
    before: int = 0

    def update_row(self, values, last_seen):
        if last_seen < self.before:
            values[0] = 9
