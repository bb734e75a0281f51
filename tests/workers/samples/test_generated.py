"""The generated click log: a function of seed and row, labels drawn from the probability that comes along."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.keys import mix
from tests.workers.samples.making import COLUMNS, assert_same, config
from workers.config import Generated
from workers.samples.batch import Batch
from workers.samples.chunk import Chunk
from workers.samples.generated import GeneratedSource, uniforms, zipf_ranks
from workers.samples.open import open_splits
from workers.samples.rows import join
from workers.samples.teacher import GOLDEN, Draws, Teacher, normals, salt

FIELDS = {"user": "categorical", "tags": "multi", "position": "categorical", "price": "numeric"}
SMALL = Generated(train_rows=3000, valid_rows=500, test_rows=500)


def whole(log: Generated, chunk_rows: int = 1 << 15) -> Chunk:
    (chunk,) = GeneratedSource(log, "train", chunk_rows=chunk_rows).chunks([(0, log.train_rows)])
    return chunk


@given(st.integers(0, 2999), st.integers(1, 400), st.integers(1, 300))
def test_any_block_can_be_made_at_once(start: int, size: int, chunk_rows: int) -> None:
    everything = whole(SMALL)
    chunks = GeneratedSource(SMALL, "train", chunk_rows=chunk_rows).chunks([(start, start + size)])
    at = start
    for chunk in chunks:
        expected = everything.slice(at, at + chunk.size)
        assert chunk.first_row == at
        np.testing.assert_array_equal(chunk.probability, expected.probability)
        for name, column in chunk.columns.items():
            assert column.equals(expected.columns[name]), name
        at += chunk.size
    assert at == min(start + size, 3000)


def test_splits_follow_one_another_in_time() -> None:
    data = {"format": "generated", "batch_size": 1000, "shuffle": "none", "generated": SMALL.model_dump()}
    splits = open_splits(config(data, FIELDS, event_time="event_time", group="user"))
    samples = {name: join(list(split.batches())) for name, split in splits.items()}
    assert {name: batch.size for name, batch in samples.items()} == {"train": 3000, "valid": 500, "test": 500}
    times = np.concatenate([samples[name].event_time for name in ("train", "valid", "test")])
    assert (np.diff(times) > 0).all()
    assert times[-1] - times[0] == pytest.approx(SMALL.days * 86400)
    for name in COLUMNS[1:]:
        if name != "weights":
            assert getattr(samples["train"], name) is not None


def test_seeds_make_other_logs() -> None:
    first, second = whole(SMALL), whole(SMALL.model_copy(update={"seed": 2}))
    for name in ("user", "tags", "position", "price", "click"):
        assert not first.columns[name].equals(second.columns[name]), name


def test_clicks_are_drawn_from_the_probability() -> None:
    log = SMALL.model_copy(update={"train_rows": 30_000})
    chunk = whole(log)
    assert chunk.probability is not None
    click = chunk.columns["click"].to_numpy()
    for low in np.arange(0, 1, 0.1):
        inside = (chunk.probability >= low) & (chunk.probability < low + 0.1)
        if inside.sum() > 500:
            own = chunk.probability[inside]
            deviation = np.sqrt((own * (1 - own)).sum()) / inside.sum()
            assert abs(click[inside].mean() - own.mean()) < 4.5 * deviation


def test_positions_are_uniform_and_their_propensity_is_known() -> None:
    log = SMALL.model_copy(update={"train_rows": 20_000, "positions": 4, "position_bias": 1.0})
    chunk = whole(log)
    position = chunk.columns["position"].to_numpy()
    counts = np.bincount(position, minlength=4)
    assert (abs(counts - 5000) < 300).all()
    np.testing.assert_allclose(chunk.columns["propensity"].to_numpy(), 1 / (1 + position))


def cross(seed: int, first: str, first_key: int, second: str, second_key: int) -> float:
    """The weight of a pair of values."""
    both = (int(mix(np.array([first_key], np.uint64) + GOLDEN)[0]) + second_key) % (1 << 64)
    return float(normals(np.array([both], np.uint64), salt("cross", seed, first, second), 1)[0, 0])


def test_the_teacher_is_its_formula() -> None:
    """Written out for one row, with loops."""
    log = Generated(keys={"user": 9, "item": 9, "a": 5, "b": 5, "c": 70_000}, drift=0.7, noise=0.1, dim=3)
    teacher = Teacher(log)
    keys = {"user": 3, "item": 8, "a": 2, "b": 4, "c": 69_999}
    tags, log_price, position, time = [5, 7], 0.3, 2, 0.25

    def own(name: str, key: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        both = normals(np.array([key], np.uint64), salt("teacher", log.seed, name), 8)[0]
        angle = log.drift * time * np.pi / 2
        return np.asarray(np.cos(angle) * both[:4] + np.sin(angle) * both[4:])

    rows = {name: own(name, key) for name, key in keys.items()}
    rows["tags"] = (own("tags", 5) + own("tags", 7)) / np.sqrt(2)
    scale = {name: 1.0 if name in ("user", "item") else 0.5 for name in rows}
    names = list(rows)
    linear = sum(row[0] for row in rows.values()) / np.sqrt(len(rows))
    pairs, variance = 0.0, 0.0
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pairs += scale[first] * scale[second] * float(rows[first][1:] @ rows[second][1:])
            variance += (scale[first] * scale[second]) ** 2 * log.dim
    arrays = {name: np.array([key]) for name, key in keys.items()}
    crosses = sum(cross(log.seed, a, keys[a], b, keys[b]) for a, b in [("a", "b"), ("b", "c")]) / np.sqrt(2)
    hump = (log_price**2 - 1) / np.sqrt(2)
    logit = (
        log.bias
        + log.linear * linear
        + log.pairs * pairs / np.sqrt(variance)
        + log.crosses * crosses
        + log.numeric * hump
    )
    expected = 0.9 * 3**-log.position_bias / (1 + np.exp(-logit)) + 0.05
    draws = Draws(arrays, np.array(tags), np.array([2]), np.array([log_price]), np.array([position]), np.array([time]))
    assert teacher.probability(draws)[0] == pytest.approx(expected, rel=1e-12)


def test_kept_and_hashed_parameters_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = whole(SMALL).probability
    monkeypatch.setattr("workers.samples.teacher.TABLE_KEYS", 0)
    np.testing.assert_array_equal(kept, whole(SMALL).probability)


def test_drift_turns_the_teacher() -> None:
    still = SMALL.model_copy(update={"drift": 0.0})
    moved = SMALL.model_copy(update={"drift": 1.0})
    first, second = whole(still).probability, whole(moved).probability
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first[:5], second[:5], atol=5e-3)  # time 0
    late = np.corrcoef(first[-1000:], second[-1000:])[0, 1]
    early = np.corrcoef(first[:300], second[:300])[0, 1]
    assert late < 0.7
    assert early > 0.95


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.3])
def test_ranks_follow_the_power_law(exponent: float) -> None:
    ranks = zipf_ranks(uniforms(np.arange(200_000, dtype=np.uint64), 1, "x"), 50, exponent)
    counts = Counter(ranks.tolist())
    assert set(counts) == set(range(50))
    borders = np.arange(1, 52, dtype=np.float64)
    law = np.log(borders) if exponent == 1 else borders ** (1 - exponent) / (1 - exponent)
    expected = np.diff(law) / (law[-1] - law[0]) * 200_000
    for rank in range(50):
        assert abs(counts[rank] - expected[rank]) < 5 * np.sqrt(expected[rank])


def test_ranks_of_huge_key_spaces_stay_inside() -> None:
    edge = np.array([0.0, 0.5, 1 - 2.0**-53])
    for size in (2, 10**7, 1 << 40):
        for exponent in (0.0, 1.0, 1.1, 3.0):
            ranks = zipf_ranks(edge, size, exponent)
            assert ranks[0] == 0
            assert (ranks < size).all()


def test_normals_are_standard() -> None:
    values = normals(np.arange(20_000, dtype=np.uint64), salt("x"), 5)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs(np.corrcoef(values.T) - np.eye(5)).max() < 0.03


def test_a_log_without_tags_and_crosses() -> None:
    log = Generated(train_rows=100, valid_rows=1, test_rows=1, keys={"user": 5, "item": 5}, tag_keys=0)
    chunk = whole(log)
    assert "tags" not in chunk.columns
    assert chunk.probability is not None
    assert ((chunk.probability > 0) & (chunk.probability < 1)).all()


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    positives = labels.sum()
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def test_the_best_possible_auc_of_the_default_log() -> None:
    data = {"format": "generated", "batch_size": 50_000}
    split = open_splits(config(data, FIELDS))["test"]
    (batch,) = list(islice(split.batches(), 1))
    assert isinstance(batch, Batch)
    assert batch.probability is not None
    assert 0.80 < auc(batch.labels[:, 0], batch.probability[:, 0]) < 0.87
    assert 0.15 < batch.labels.mean() < 0.4


def test_epochs_resume() -> None:
    data = {"format": "generated", "batch_size": 300, "shuffle": 600, "generated": SMALL.model_dump()}
    split = open_splits(config(data, FIELDS))["train"]
    for first, second in zip(islice(split.batches(3), 4, None), split.batches(3, start_batch=4), strict=True):
        assert_same(first, second)
