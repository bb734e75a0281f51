"""Exact metrics of a whole split, from gathered arrays: AUC, GAUC, logloss, calibration, mean squared error.

Nothing is binned or sampled. Workers evaluate parts of a split; their arrays put together (`np.concatenate`, any order)
give the metrics of the whole. Ranking metrics with unit weights count pairs: the same to the last bit in any order.
All take scores [n] (float32 or float64, larger = likelier), labels [n] (positive where > 0), weights float [n] or None
(ones). A metric that its data leave undefined (AUC of one class, calibration without positives) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.errors import NonFiniteError, RequestError
from ps.types import Floats, Keys

Array: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]
LabelKind: TypeAlias = Literal["binary", "weight", "real"]
_NORMAL_975 = 1.959963984540054  # quantile of the normal distribution


class GAUC(NamedTuple):
    """`value`: mean of the groups' AUC, weighted by impressions. Groups of one class have none: skipped and counted."""

    value: float
    num_groups: int
    num_skipped: int


class Difference(NamedTuple):
    """`mean` and half of its 95 % interval."""

    mean: float
    half_interval: float


def auc(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """P(score of a positive > score of a negative), ties count half (midranks). A pair weighs the product of both."""
    order = np.argsort(scores)
    pairs = _pairs(scores[order], None, *_class_weights(labels, weights, order))
    return float((pairs.won / (pairs.positives * pairs.negatives))[0]) if pairs.valid.all() and len(scores) else np.nan


def auc_difference(scores: Array, reference: Array, labels: Array) -> Difference:
    """AUC of `scores` less that of `reference`, of the same samples, so that what both have in common cancels out.

    The interval is of the sampling of rows: DeLong's, for correlated curves (DeLong, DeLong and Clarke-Pearson,
    Biometrics 1988). NaN with fewer than two samples of a class.
    """
    positive = labels > 0
    if min(np.count_nonzero(positive), np.count_nonzero(~positive)) < 2:
        return Difference(np.nan, np.nan)
    of_positives, of_negatives = (
        own - others for own, others in zip(_placements(scores, positive), _placements(reference, positive))
    )
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    return Difference(float(of_positives.mean()), _NORMAL_975 * float(np.sqrt(variance)))


def gauc(scores: Array, labels: Array, groups: Keys, weights: Array | None = None) -> GAUC:
    """AUC within each group (uint64 [n], say users), averaged by the groups' total weight (Zhu et al., KDD 2017)."""
    if not len(scores):
        return GAUC(np.nan, 0, 0)
    order = _order_by_group(scores, groups)
    pairs = _pairs(scores[order], groups[order], *_class_weights(labels, weights, order))
    valid, impressions = pairs.valid, pairs.positives + pairs.negatives
    value = np.nan
    if valid.any():
        within = pairs.won[valid] / (pairs.positives[valid] * pairs.negatives[valid])
        value = float(np.average(within, weights=impressions[valid]))
    return GAUC(value, len(valid), int(np.count_nonzero(~valid)))


def logloss(logits: Array, labels: Array, weights: Array | None = None) -> float:
    """Weighted mean of -log p of what happened, from logits: log(1 + e^x) - y x neither overflows nor rounds."""
    x = np.asarray(logits, np.float64)
    return _mean(np.logaddexp(0.0, x) - np.where(labels > 0, x, 0.0), weights)


def calibration(logits: Array, labels: Array, weights: Array | None = None) -> float:
    """Predicted clicks over clicks: sum of probabilities / sum of labels. 1 is right, above 1 predicts too much."""
    predicted = 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float64))  # the sigmoid, without overflow
    clicks = _mean((labels > 0).astype(np.float64), weights)
    return _mean(predicted, weights) / clicks if clicks > 0 else np.nan


def mse(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """Weighted mean of squared errors of real labels."""
    return _mean(np.square(np.asarray(predictions, np.float64) - labels), weights)


def evaluate_metrics(
    logits: Floats,
    labels: Floats,
    kinds: Sequence[LabelKind],
    *,
    weights: Floats | None = None,
    groups: Keys | None = None,
    tasks: Sequence[str] = (),
) -> dict[str, float]:
    """All metrics of a split, by name.

    logits, labels: [n, num_tasks], NaN labels are masked; kinds: one per task; weights: [n]; groups: uint64 [n].
    binary and weight labels give auc, logloss, calibration, and with groups gauc, gauc_groups, gauc_skipped; a weight
    label v > 0 is a positive of weight v, as in the loss. real labels give mse. With several tasks the names end in the
    task's: "auc.income".
    Raises NonFiniteError for a prediction that is NaN or infinite.
    """
    if logits.shape != labels.shape or logits.shape[1:] != (len(kinds),):
        raise RequestError(
            f"logits {logits.shape}, labels {labels.shape} and {len(kinds)} label kinds do not fit together"
        )
    metrics: dict[str, float] = {}
    for task, kind in enumerate(kinds):
        present = ~np.isnan(labels[:, task])
        x, y = logits[present, task], labels[present, task]
        w = None if weights is None else weights[present]
        if not np.isfinite(x).all():
            bad = int(np.count_nonzero(~np.isfinite(x)))
            name = tasks[task] if tasks else task
            raise NonFiniteError(f"task {name}: {bad} of {len(x)} predictions are not finite; training has diverged")
        found = _of_task(x, y, kind, w, None if groups is None else groups[present])
        suffix = f".{tasks[task] if tasks else task}" if len(kinds) > 1 else ""
        metrics.update({name + suffix: value for name, value in found.items()})
    return metrics


def _of_task(x: Array, y: Array, kind: LabelKind, w: Array | None, groups: Keys | None) -> dict[str, float]:
    if kind == "real":
        return {"mse": mse(x, y, w)}
    if kind == "weight":
        importance = np.where(y > 0, y, 1.0)
        w = importance if w is None else importance * w
    found = {"auc": auc(x, y, w), "logloss": logloss(x, y, w), "calibration": calibration(x, y, w)}
    if groups is not None:
        grouped = gauc(x, y, groups, w)
        found |= {"gauc": grouped.value, "gauc_groups": grouped.num_groups, "gauc_skipped": grouped.num_skipped}
    return found


class _Pairs(NamedTuple):
    """Per group, float64 [num_groups]: weight of pairs that a positive wins (ties half), of positives, of negatives."""

    won: Doubles
    positives: Doubles
    negatives: Doubles

    @property
    def valid(self) -> NDArray[np.bool_]:
        return (self.positives > 0) & (self.negatives > 0)


def _placements(scores: Array, positive: NDArray[np.bool_]) -> tuple[Doubles, Doubles]:
    """Of each positive the share of negatives below it, of each negative that of positives above it; ties half."""
    positives, negatives = np.sort(scores[positive]), np.sort(scores[~positive])

    def below(sorted_scores: Array, asked: Array) -> Doubles:
        """The share of sorted scores below those asked for."""
        twice = np.searchsorted(sorted_scores, asked, "left") + np.searchsorted(sorted_scores, asked, "right")
        share: Doubles = twice / (2 * len(sorted_scores))
        return share

    return below(negatives, scores[positive]), 1 - below(positives, scores[~positive])


def _pairs(scores: Array, groups: Keys | None, positives: Doubles, negatives: Doubles) -> _Pairs:
    """Arrays sorted by group, then score; `positives`, `negatives`: a sample's weight in its class, 0 in the other."""
    if not len(scores):
        return _Pairs(*np.zeros((3, 1)))
    group_starts = np.zeros(1, np.int64) if groups is None else _starts(groups[1:] != groups[:-1])
    changes = scores[1:] != scores[:-1]
    changes[group_starts[1:] - 1] = True
    tie_starts = _starts(changes)
    tied_positives, tied_negatives = np.add.reduceat(positives, tie_starts), np.add.reduceat(negatives, tie_starts)
    first_ties = np.searchsorted(tie_starts, group_starts)
    below = np.cumsum(tied_negatives) - tied_negatives  # negatives of all earlier ties, of earlier groups too
    below -= np.repeat(below[first_ties], np.diff(first_ties, append=len(tie_starts)))
    won = tied_positives * (below + 0.5 * tied_negatives)
    return _Pairs(*(np.add.reduceat(values, first_ties) for values in (won, tied_positives, tied_negatives)))


def _starts(changes: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.flatnonzero(changes) + 1))


def _order_by_group(scores: Array, groups: Keys) -> NDArray[np.int64]:
    """A permutation that sorts by group, then score. Three plain sorts: one lexsort takes twice as long."""
    by_score = np.argsort(scores)
    ranks = np.empty(len(scores), np.uint64)
    ranks[by_score] = np.arange(len(scores), dtype=np.uint64)
    _, dense = np.unique(groups, return_inverse=True)
    return np.argsort(dense.astype(np.uint64) * np.uint64(len(scores)) + ranks)


def _class_weights(labels: Array, weights: Array | None, order: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    positive = labels[order] > 0
    if weights is None:
        return positive.astype(np.float64), (~positive).astype(np.float64)
    own = weights[order].astype(np.float64)
    return np.where(positive, own, 0.0), np.where(positive, 0.0, own)


def _mean(values: Doubles, weights: Array | None) -> float:
    if not len(values):
        return np.nan
    if weights is None:
        return float(values.mean())
    total = float(np.sum(weights, dtype=np.float64))
    return float(np.sum(values * weights)) / total if total > 0 else np.nan
