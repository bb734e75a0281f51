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
        x, own = logits[:, task], scores[:, task]
        if label.score == "sigmoid":  # 0.5 + 0.5 * tanh(0.5 * x), which does not overflow
            y = np.tanh(np.multiply(x, 0.5, dtype=np.float64))
            y *= 0.5
            np.add(y, 0.5, out=own, casting="same_kind")
        elif label.score == "exp":
            np.exp(np.minimum(x, _GREATEST, dtype=np.float64), out=own, casting="same_kind")
        else:
            own[:] = x
    return scores
