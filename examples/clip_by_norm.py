"""Clipping by norm: `client.update("user", ClipByNorm(1.0, segment="embedding"))`, of all rows or of given keys."""

from dataclasses import dataclass

import numpy as np

import ps


@ps.register("clip_by_norm")
@dataclass(frozen=True)
class ClipByNorm(ps.UpdateRow):
    """Shorten every row to at most `limit` in L2 norm; shorter ones stay as they are, to the bit."""

    limit: float

    def update_row(self, values):
        total = np.float32(0)
        for value in values:
            total += value * value
        norm = np.sqrt(total)
        if norm > self.limit:
            for j in range(len(values)):
                values[j] *= self.limit / norm
