"""Predictions over a split, spread over the workers, and their exact metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from workers.training.feed import Feed
from workers.training.scorer import Scorer
from workers.training.world import World


@dataclass(frozen=True)
class Predictions:
    """What a split's metrics are computed from; all arrays share the order of samples.

    logits, labels: float32 [n, num_tasks]; weights: float32 [n]; groups: uint64 [n]; probability: float64 [n, num_tasks]. A
    column that the data does not have is None.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    groups: NDArray[np.uint64] | None
    probability: NDArray[np.float64] | None


def predict(scorer: Scorer, feeds: Iterable[Feed], world: World) -> Predictions:
    """Score this worker's share and gather everybody's. Neither rows nor tower change."""
    columns: dict[str, list[NDArray]] = {"logits": [], "labels": [], "weights": [], "groups": [], "probability": []}
    scorer.model.eval()
    with torch.inference_mode():
        for feed in feeds:
            logits, _ = scorer.score(feed, train=False)
            columns["logits"].append(logits.numpy())
            for name in ("labels", "weights", "groups", "probability"):
                value = getattr(feed.batch, name)
                if value is not None:
                    columns[name].append(value)
    gathered = {name: _gather(parts, world) for name, parts in columns.items()}
    return Predictions(**gathered)


def _gather(parts: list[NDArray], world: World) -> NDArray | None:
    # Every worker has at least one batch of every split, so either all have the column or none.
    return world.gather(np.concatenate(parts)) if parts else None
