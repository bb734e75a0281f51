"""Predictions over a split, spread over the workers, and their exact metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.training.feed import Feed
from workers.training.scorer import Scorer
from workers.training.world import World


@dataclass(frozen=True)
class Predictions:
    """What a split's metrics are computed from; all arrays share the order of samples.

    logits, labels: float32 [n, num_tasks]; weights: float32 [n]; groups: uint64 [n]; probability: float64 [n,
    num_tasks]. A column that the data does not have is None.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    groups: NDArray[np.uint64] | None
    probability: NDArray[np.float64] | None


def predict(scorer: Scorer, feeds: Iterable[Feed], world: World) -> Predictions:
    """Score this worker's share and gather everybody's. Neither rows nor tower change."""
    columns: dict[str, list[NDArray[Any]]] = {field.name: [] for field in fields(Predictions)}
    scorer.model.eval()
    with torch.inference_mode():
        for feed in feeds:
            logits, _ = scorer.score(feed, train=False)
            columns["logits"].append(logits.numpy())
            for name in columns.keys() - {"logits"}:
                value = getattr(feed.batch, name)
                if value is not None:
                    columns[name].append(value)
    # Every worker has at least one batch of every split, so either all have a column or none.
    gathered: dict[str, Any] = {
        name: world.gather(np.concatenate(parts)) if parts else None for name, parts in sorted(columns.items())
    }
    return Predictions(**gathered)
