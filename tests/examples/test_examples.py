"""The examples against numpy, through a client, on shards in this process and in processes of their own."""

from pathlib import Path

import numpy as np
import pytest

import ps
from examples.click_through_rate import ClickThroughRate, CountClicks
from examples.clip_by_norm import ClipByNorm
from examples.group_ftrl import GroupFTRL
from examples.slot_learning_rates import SlotAdaGrad
from examples.top_norms import TopNorms
from ps.keys import pack, slot_of

f32 = np.float32
MODULES = tuple(
    f"examples.{name}"
    for name in ("clip_by_norm", "click_through_rate", "group_ftrl", "slot_learning_rates", "top_norms")
)
LASSO = {"name": "group_ftrl", "learning_rate": 0.1, "l1": 0.01, "l2": 0.5, "group": 0.4}
RATES = {"name": "slot_adagrad", "learning_rate": 0.05, "slots": [3, 7], "factors": [0.1, 2.0]}
SPEC = ps.ClusterSpec.model_validate(
    {
        "psfunc_modules": MODULES,
        "num_buckets": 8,
        "tables": {
            "user": {
                "segments": {
                    "lasso": {"dim": 4, "optimizer": LASSO},
                    "embedding": {"dim": 3, "optimizer": RATES, "initializer": {"name": "normal", "std": 0.5}},
                    "counts": {"dim": 2, "optimizer": "sgd"},
                }
            }
        },
    }
)
KEYS = np.concatenate([pack(slot, np.arange(1, 31, dtype=np.uint64)) for slot in (3, 5, 7)])


@pytest.fixture(scope="module", params=["in-process", "process"])
def client(request):
    with ps.LocalCluster(SPEC, shards=2, placement=request.param) as cluster, cluster.connect() as client:
        yield client


@pytest.fixture(autouse=True)
def empty(client):
    client.clear("user")


def group_ftrl(w, z, n, g, o):
    """One row, as Yue et al. write it."""
    a, squares = f32(o.learning_rate), n + g * g
    z = z + (g - (np.sqrt(squares) - np.sqrt(n)) / a * w)
    s = np.where(np.abs(z) > f32(o.l1), z - np.sign(z) * f32(o.l1), f32(0))
    total = f32(0)
    for each in s:
        total += each * each
    norm, limit = np.sqrt(total), f32(o.group) * np.sqrt(f32(len(w)))
    kept = f32(1) - limit / norm if norm > limit else f32(0)
    return -kept * s / ((f32(o.beta) + np.sqrt(squares)) / a + f32(o.l2)), z, squares


def test_group_lasso_ftrl(client):
    optimizer, rng = GroupFTRL.model_validate(LASSO), np.random.default_rng(0)
    w, z, n = (np.zeros((len(KEYS), 4), f32) for _ in range(3))
    for step in range(1, 6):
        gradients = np.zeros((len(KEYS), 9), f32)
        gradients[:, :4] = rng.normal(size=(len(KEYS), 4)) * np.where(np.arange(len(KEYS)) % 2, 0.2, 2.0)[:, None]
        client.push("user", KEYS, gradients, step=step).wait()
        for i in range(len(KEYS)):
            w[i], z[i], n[i] = group_ftrl(w[i], z[i], n[i], gradients[i, :4], optimizer)
    np.testing.assert_array_equal(client.pull("user", KEYS)[:, :4], w)
    zero = (w == 0).all(axis=1)
    assert 10 < zero.sum() < 80
    assert (w[~zero] != 0).any(axis=1).all()


def test_learning_rates_of_slots(client):
    start, rng = client.pull("user", KEYS)[:, 4:7], np.random.default_rng(1)
    optimizer = SlotAdaGrad.model_validate(RATES)
    factors = dict(zip(optimizer.slots, optimizer.factors))
    w, a = start.copy(), np.zeros(len(KEYS), f32)
    for step in (1, 2, 3):
        gradients = np.zeros((len(KEYS), 9), f32)
        gradients[:, 4:7] = rng.normal(size=(len(KEYS), 3))
        client.push("user", KEYS, gradients, step=step).wait()
        for i, slot in enumerate(slot_of(KEYS).tolist()):
            rate = f32(0.05) * f32(factors.get(slot, 1.0))
            g = gradients[i, 4:7]
            a[i] += ((g[0] * g[0] + g[1] * g[1]) + g[2] * g[2]) / f32(3)
            w[i] -= rate / (np.sqrt(a[i]) + f32(1e-8)) * g
    np.testing.assert_array_equal(client.pull("user", KEYS)[:, 4:7], w)


@pytest.mark.parametrize("keys", [None, KEYS])
def test_clip_by_norm(client, keys):
    client.update("user", ps.Scale(1.0), KEYS)  # makes the rows
    before = client.pull("user", KEYS)
    expected = before.copy()
    for row in expected[:, 4:7]:
        norm = np.sqrt((row[0] * row[0] + row[1] * row[1]) + row[2] * row[2])
        if norm > f32(0.6):
            row *= f32(0.6) / norm
    counts = client.update("user", ClipByNorm(0.6, segment="embedding"), keys)
    assert (counts.applied, counts.created, counts.nonfinite) == (len(KEYS), 0, 0)
    np.testing.assert_array_equal(client.pull("user", KEYS), expected)
    assert 0 < (before != expected).any(axis=1).sum() < len(KEYS)


def test_click_through_rate(client):
    rng = np.random.default_rng(2)
    shows = rng.integers(0, 50, (2, len(KEYS))).astype(f32)
    clicks = np.floor(shows * f32(0.3))
    for number in range(2):
        payload = np.stack([shows[number], clicks[number]], axis=1)
        counts = client.update("user", CountClicks(0.5, segment="counts"), KEYS, payload)
        assert (counts.applied, counts.created) == (len(KEYS), 0 if number else len(KEYS))
    total_shows, total_clicks = (f32(0.5) * first + second for first, second in (shows, clicks))
    np.testing.assert_array_equal(client.pull("user", KEYS)[:, 7:], np.stack([total_shows, total_clicks], axis=1))
    asked = np.concatenate([KEYS[::-1], pack(9, np.arange(4, dtype=np.uint64))])  # the last ones have no row
    rates = client.get("user", ClickThroughRate(0.02, 10.0, segment="counts"), asked)
    prior = f32(10.0) * f32(0.02)
    expected = (np.append(total_clicks[::-1], np.zeros(4, f32)) + prior) / (
        np.append(total_shows[::-1], np.zeros(4, f32)) + f32(10.0)
    )
    np.testing.assert_array_equal(rates[:, 0], expected)
    with pytest.raises(ps.RequestError, match=r"click_through_rate\.py:\d+ in update_row: ValueError: more clicks"):
        client.update("user", CountClicks(segment="counts"), KEYS, np.full((len(KEYS), 2), [1, 2], f32))


def test_top_norms_of_a_slot(client):
    client.update("user", ps.Scale(1.0), KEYS)
    rows = client.pull("user", KEYS)[:, 4:7].astype(np.float64)
    norms = np.sqrt((rows[:, 0] ** 2 + rows[:, 1] ** 2) + rows[:, 2] ** 2)
    of_slot = [(int(key) & ((1 << 52) - 1), norm) for key, norm in zip(KEYS, norms) if int(key) >> 52 == 5]
    for k in (1, 7, 40):
        expected = sorted(of_slot, key=lambda pair: (-pair[1], pair[0]))[:k]
        assert client.get("user", TopNorms(slot=5, k=k, segment="embedding")) == expected
    assert client.get("user", TopNorms(slot=9, segment="embedding")) == []
    some = KEYS[slot_of(KEYS) == 5][:5]
    assert len(client.get("user", TopNorms(slot=5, segment="embedding"), some)) == 5


def test_the_examples_in_the_docs_are_the_tested_ones():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "psfuncs.md").read_text()
    clip = (root / "examples" / "clip_by_norm.py").read_text()
    assert clip[clip.index("@ps.register") :].strip() in page
    rates = (root / "examples" / "slot_learning_rates.py").read_text()
    update = rates[rates.index("    def update") : rates.index("        total =")]
    assert update in page
