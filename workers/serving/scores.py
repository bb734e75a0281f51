"""From logits to what is answered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ps.types import Floats
from workers.serving.manifest import ServedLabel

_GREATEST = np.log(np.finfo(np.float32).max)


def scores_of(logits: Floats, labels: Mapping[str, ServedLabel]) -> Floats:
    """float32 [n, num_tasks], of logits of that shape, in the order of the labels; see ServedLabel. exp stays below
    infinity.
    """
    scores = np.empty(logits.shape, np.float32)
    for task, label in enumerate(labels.values()):
        score, x = label.score, logits[:, task]
        if score == "sigmoid":  # 0.5 + 0.5 * tanh(0.5 * x), which does not overflow
            y = x.astype(np.float64)
            y *= 0.5
            np.tanh(y, y)
            y *= 0.5
            y += 0.5
            scores[:, task] = y
        elif score == "exp":
            scores[:, task] = np.exp(np.minimum(x, _GREATEST, dtype=np.float64))
        else:
            scores[:, task] = x
    return scores
