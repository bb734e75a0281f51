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
        x = logits[:, task].astype(np.float64)
        if label.score == "sigmoid":  # 0.5 + 0.5 * tanh(0.5 * x), which does not overflow
            x *= 0.5
            np.tanh(x, out=x)
            x *= 0.5
            x += 0.5
        elif label.score == "exp":
            np.exp(np.minimum(x, _GREATEST), out=x)
        scores[:, task] = x
    return scores
