"""The loss of a batch: per task binary cross-entropy or squared error, over the labels that are there.

Label kinds:
    binary   0 or 1.
    weight   0 = negative of weight 1; v > 0 = positive of weight v. Weighted logistic regression: with watch time as v
             the odds estimate expected watch time (Covington, Adams and Sargin, RecSys 2016, section 4.2).
    real     any finite number; squared error of the logit itself.

A NaN label is masked. A task's loss is sum(weight * loss) / (number of its unmasked labels), 0 where all are masked:
weights scale gradients and do not renormalise them. Tasks are summed with their task weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.metrics import LabelKind


def loss(
    logits: Tensor,
    labels: Tensor,
    kinds: Sequence[LabelKind],
    *,
    sample_weights: Tensor | None = None,
    task_weights: Sequence[float] | None = None,
) -> Tensor:
    """A scalar. logits, labels: float [n, num_tasks]; sample_weights: float [n]; task_weights: default 1 each."""
    total = logits.new_zeros(())
    for task, kind in enumerate(kinds):
        task_loss = _task_loss(logits[:, task], labels[:, task], kind, sample_weights)
        total = total + task_loss * (1.0 if task_weights is None else task_weights[task])
    return total


def _task_loss(logits: Tensor, labels: Tensor, kind: LabelKind, sample_weights: Tensor | None) -> Tensor:
    present = ~labels.isnan()
    labels = labels.nan_to_num(0.0).to(logits.dtype)
    weights = present.to(logits.dtype)
    if kind == "weight":
        weights = weights * torch.where(labels > 0, labels, 1.0)
        labels = (labels > 0).to(logits.dtype)
    if sample_weights is not None:
        weights = weights * sample_weights.to(logits.dtype)
    if kind == "real":
        losses = F.mse_loss(logits, labels, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return torch.dot(losses, weights) / present.sum().clamp(min=1)
