"""Metrics against pair-by-pair oracles; parts put together give the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import NonFiniteError, RequestError
from workers import metrics


def naive_auc(scores, labels, weights):
    """Every pair of a positive and a negative, one by one."""
    won = total = 0.0
    for s, y, w in zip(scores, labels, weights, strict=True):
        for t, z, v in zip(scores, labels, weights, strict=True):
            if y > 0 and z == 0:
                total += w * v
                won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total if total else math.nan


def naive_gauc(scores, labels, groups, weights):
    values, impressions, skipped = [], [], 0
    for group in sorted(set(groups)):
        inside = [n for n, g in enumerate(groups) if g == group]
        value = naive_auc([scores[n] for n in inside], [labels[n] for n in inside], [weights[n] for n in inside])
        if math.isnan(value):
            skipped += 1
        else:
            values.append(value)
            impressions.append(sum(weights[n] for n in inside))
    mean = sum(v * w for v, w in zip(values, impressions, strict=True)) / sum(impressions) if values else math.nan
    return mean, len(set(groups)), skipped


sample = st.tuples(
    st.integers(-3, 3).map(lambda k: k / 4),  # few values: many ties
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([5, 9, 2**63 + 1, 2**64 - 1]),
)
samples = st.lists(sample, min_size=1, max_size=25)


def arrays(rows):
    scores, labels, weights, groups = zip(*rows, strict=True)
    return (
        np.array(scores, np.float32),
        np.array(labels, np.float32),
        np.array(weights, np.float32),
        np.array(groups, np.uint64),
    )


@given(samples)
def test_auc_counts_pairs_exactly(rows):
    scores, labels, weights, _ = arrays(rows)
    ones = np.ones(len(rows))
    assert metrics.auc(scores, labels) == pytest.approx(naive_auc(scores, labels, ones), rel=1e-15, nan_ok=True)
    expected = naive_auc(scores.tolist(), labels.tolist(), weights.tolist())
    assert metrics.auc(scores, labels, weights) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@given(samples, st.booleans())
def test_gauc_counts_pairs_within_groups(rows, weighted):
    scores, labels, weights, groups = arrays(rows)
    weights = weights if weighted else np.ones_like(weights)
    got = metrics.gauc(scores, labels, groups, weights if weighted else None)
    mean, num_groups, skipped = naive_gauc(scores.tolist(), labels.tolist(), groups.tolist(), weights.tolist())
    assert got.value == pytest.approx(mean, rel=1e-12, nan_ok=True)
    assert (got.num_groups, got.num_skipped) == (num_groups, skipped)


@given(samples, st.randoms(use_true_random=False))
def test_ranking_metrics_have_the_same_bits_in_any_order(rows, random):
    scores, labels, _, groups = arrays(rows)
    shuffled = np.array(random.sample(range(len(rows)), len(rows)))
    for metric, extra in ((metrics.auc, ()), (metrics.gauc, (groups,))):
        whole = metric(scores, labels, *extra)
        mixed = metric(scores[shuffled], labels[shuffled], *(values[shuffled] for values in extra))
        np.testing.assert_equal(mixed, whole)


def test_auc_by_hand():
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    assert metrics.auc(scores, np.array([0.0, 0.0, 1.0, 1.0])) == 3.5 / 4
    assert metrics.auc(scores, np.array([1.0, 1.0, 0.0, 0.0])) == 0.5 / 4
    assert metrics.auc(np.zeros(6), np.array([0.0, 1, 0, 1, 1, 0])) == 0.5
    assert math.isnan(metrics.auc(scores, np.ones(4)))
    assert math.isnan(metrics.auc(scores[:0], scores[:0]))


def test_auc_agrees_with_the_rank_sum_on_many_rows():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5000, 100_000).astype(np.float32)
    labels = (rng.random(100_000) < 0.1 + scores / 20_000).astype(np.float32)
    positive = labels > 0
    exact = scores.astype(np.float64)  # scipy keeps the dtype of its input, and float32 cannot hold its rank sums
    won = stats.mannwhitneyu(exact[positive], exact[~positive]).statistic
    assert metrics.auc(scores, labels) == pytest.approx(won / positive.sum() / (~positive).sum(), rel=1e-14)


def test_auc_difference_by_hand():
    labels = np.array([0.0, 0, 0, 1, 1])
    scores, reference = np.array([0.1, 0.2, 0.4, 0.3, 0.5]), np.array([0.1, 0.5, 0.4, 0.4, 0.5])
    found = metrics.auc_difference(scores, reference, labels)
    # Positives beat 2/3 and 1 of the negatives, for the reference 1.5/3 and 2.5/3; negatives lose to 1, 1, 1/2 of the
    # positives, for the reference 1, 1/4, 3/4.
    of_positives, of_negatives = [2 / 3 - 1 / 2, 1 - 5 / 6], [0, 3 / 4, -1 / 4]
    expected = 1.959964**2 * (np.var(of_positives, ddof=1) / 2 + np.var(of_negatives, ddof=1) / 3)
    assert found == (pytest.approx(1 / 6), pytest.approx(math.sqrt(expected), rel=1e-6))
    assert found.mean == pytest.approx(metrics.auc(scores, labels) - metrics.auc(reference, labels))
    assert metrics.auc_difference(scores, 3 * scores + 1, labels) == (0, 0)  # the order counts
    assert math.isnan(metrics.auc_difference(scores, reference, labels == 5).mean)


def test_the_interval_of_an_auc_difference_covers_what_it_says():
    """Of 400 samples of one population: the true difference lies in about 95 % of their intervals."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        labels = rng.random(600) < 0.3
        common = rng.normal(size=600) + labels
        scores, reference = common + 0.5 * rng.normal(size=600), common + 0.5 * rng.normal(size=600)
        found = metrics.auc_difference(scores, reference, labels)
        covered += abs(found.mean) <= found.half_interval  # both are equally good
    assert 0.92 <= covered / 400 <= 0.98


def test_gauc_by_hand():
    scores = np.array([0.9, 0.1, 0.5, 0.2, 0.7, 0.3])
    labels = np.array([1.0, 0, 0, 1, 1, 1])
    groups = np.array([7, 7, 3, 3, 3, 8], np.uint64)  # AUC 1 (2 rows), 1/2 (3 rows), one class
    got = metrics.gauc(scores, labels, groups)
    assert got == metrics.GAUC(pytest.approx((2 * 1.0 + 3 * 0.5) / 5), 3, 1)
    assert metrics.gauc(scores[:0], labels[:0], groups[:0])[1:] == (0, 0)
    assert math.isnan(metrics.gauc(scores[5:], labels[5:], groups[5:]).value)


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans(), st.floats(0.1, 5)), min_size=1, max_size=20))
def test_logloss_and_calibration_against_loops(rows):
    x, y, w = (np.array(values, np.float64) for values in zip(*rows, strict=True))
    p = [1 / (1 + math.exp(-value)) for value in x]
    losses = [math.log1p(math.exp(-value)) if label else math.log1p(math.exp(value)) for value, label in zip(x, y)]
    assert metrics.logloss(x, y, w) == pytest.approx(np.dot(losses, w) / w.sum(), rel=1e-12)
    assert metrics.logloss(x, y) == pytest.approx(np.mean(losses), rel=1e-12)
    expected = np.dot(p, w) / np.dot(y, w) if y.any() else math.nan
    assert metrics.calibration(x, y, w) == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_extreme_logits_stay_finite():
    logits, labels = np.array([1000.0, -1000.0], np.float32), np.array([0.0, 1.0], np.float32)
    assert metrics.logloss(logits, labels) == 1000.0
    assert metrics.calibration(logits, labels) == 1.0


def test_parts_put_together_give_the_whole():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1000, 1)).astype(np.float32)
    labels = (rng.random((1000, 1)) < 0.3).astype(np.float32)
    groups = rng.integers(0, 50, 1000).astype(np.uint64)
    whole = metrics.evaluate_metrics(logits, labels, ["binary"], groups=groups)
    parts = np.split(np.arange(1000), [100, 640])[::-1]
    joined = [np.concatenate([values[part] for part in parts]) for values in (logits, labels, groups)]
    again = metrics.evaluate_metrics(joined[0], joined[1], ["binary"], groups=joined[2])
    assert again == pytest.approx(whole, rel=1e-14)
    assert set(whole) == {"auc", "logloss", "calibration", "gauc", "gauc_groups", "gauc_skipped"}


def test_tasks_are_masked_and_named():
    nan = math.nan
    logits = np.array([[0.2, 3.0, 0.1], [1.0, 5.0, 0.3], [-2.0, 0.0, -0.5], [0.4, 1.0, 0.0]], np.float32)
    labels = np.array([[0, 2.5, 4], [1, nan, 0], [nan, 0.0, 0], [1, 1.0, 0.5]], np.float32)
    found = metrics.evaluate_metrics(logits, labels, ["binary", "real", "weight"], tasks=["click", "price", "watch"])
    assert found["auc.click"] == 1.0
    assert found["mse.price"] == pytest.approx(0.25 / 3)
    x, y, w = logits[:, 2], labels[:, 2] > 0, np.array([4, 1, 1, 0.5])
    assert found["auc.watch"] == metrics.auc(x, y.astype(np.float32), w)
    assert found["logloss.watch"] == metrics.logloss(x, y.astype(np.float32), w)
    assert set(found) == {
        *(f"{name}.{task}" for name in ("auc", "logloss", "calibration") for task in ("click", "watch")),
        "mse.price",
    }


def test_sample_weights_reach_every_metric():
    logits = np.array([[0.5], [-1.0], [0.1]], np.float32)
    labels = np.array([[1], [1], [0]], np.float32)
    doubled = np.array([0, 0, 1, 2])
    weights = np.array([2, 1, 1], np.float32)
    groups = np.array([1, 1, 1], np.uint64)
    weighted = metrics.evaluate_metrics(logits, labels, ["binary"], weights=weights, groups=groups)
    repeated = metrics.evaluate_metrics(logits[doubled], labels[doubled], ["binary"], groups=groups[doubled])
    assert weighted == pytest.approx(repeated, rel=1e-12)


def test_mistakes_are_named():
    ones = np.ones((3, 1), np.float32)
    with pytest.raises(NonFiniteError, match="task click: 1 of 3 predictions are not finite"):
        metrics.evaluate_metrics(np.array([[1], [np.nan], [2]], np.float32), ones, ["binary"], tasks=["click"])
    with pytest.raises(RequestError, match="do not fit together"):
        metrics.evaluate_metrics(ones, ones, ["binary", "real"])
