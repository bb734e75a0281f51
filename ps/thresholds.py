"""Which gradient rows are pushed: finite ones, with an L2 norm inside [drop_below, drop_above].

Client and shard share this: with one worker the client judges its own gradients; in the synchronous group the shard
judges the sum over workers. A dropped row is left out, not set to zero: a zero gradient would still decay weights and
move momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels import thresholds as kernels
from ps.types import Gradients


@dataclass(frozen=True)
class Judgement:
    """keep: bool [n], or None where every row is kept. The counts are of dropped rows, each counted once."""

    keep: NDArray[np.bool_] | None = None
    num_nonfinite: int = 0
    num_above: int = 0
    num_below: int = 0


ALL_KEPT = Judgement()


def first_not_finite(gradients: Gradients) -> int:
    """Index of the first row with a NaN or an infinity, or -1. gradients: float32 [n, width], contiguous."""
    flat, width = gradients.reshape(-1), gradients.shape[1]
    pair = int(kernels.first_pair_not_finite(flat[: len(flat) // 2 * 2].view(np.uint64)))
    if pair < 0:
        return len(gradients) - 1 if len(flat) % 2 and not np.isfinite(flat[-1]) else -1
    first = 2 * pair + (1 if np.isfinite(flat[2 * pair]) else 0)
    return first // int(width)


def judge(gradients: Gradients, *, drop_above: float = 0.0, drop_below: float = 0.0) -> Judgement:
    """Keep finite rows with drop_below <= norm <= drop_above; 0 turns one off. gradients: float32 [n, width]."""
    if drop_above == 0 and drop_below == 0 and first_not_finite(gradients) < 0:
        return ALL_KEPT
    squares = np.empty(len(gradients), np.float64)
    kernels.squared_norms(gradients, squares)
    finite = np.isfinite(squares)
    above = finite & (squares > drop_above * drop_above) if drop_above > 0 else np.zeros_like(finite)
    below = finite & (squares < drop_below * drop_below) if drop_below > 0 else np.zeros_like(finite)
    keep = finite & ~above & ~below
    if keep.all():
        return ALL_KEPT
    return Judgement(keep, int((~finite).sum()), int(above.sum()), int(below.sum()))
