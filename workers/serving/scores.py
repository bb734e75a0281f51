"""From logits to what is answered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ps.types import Floats
from workers.serving.manifest import ServedLabel


def scores_of(logits: Floats, labels: Mapping[str, ServedLabel]) -> dict[str, Floats]:
    """By label float32 [n], of logits float32 [n, num_tasks]; see ServedLabel. exp stays below infinity."""
    found = {}
    for task, (name, label) in enumerate(labels.items()):
        x = logits[:, task].astype(np.float64)
        if label.score == "sigmoid":
            x = 0.5 + 0.5 * np.tanh(0.5 * x)  # without overflow
        elif label.score == "exp":
            x = np.exp(np.minimum(x, np.log(np.finfo(np.float32).max)))
        found[name] = x.astype(np.float32)
    return found
