"""The table against a dict of rows: every optimizer and codec, random pulls, pushes, deletes and growth, to the bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.keys import bucket_of
from ps.spec import TableSpec
from ps.storage.table import Table
from tests.ps.storage.oracle import Oracle

LAST = 2**64 - 1


def everything(codecs, state_codec="fp32"):
    """Every optimizer and initializer, odd and even dims, L1 and L2 where there are any."""
    segments = [
        ("sgd", {"name": "sgd", "l2": 0.1}, {"name": "constant", "value": 0.3}),
        ("adagrad", {"name": "adagrad", "initial_accumulator": 0.1, "l2": 0.01}, {"name": "uniform", "scale": 0.2}),
        ("rowwise", {"name": "rowwise_adagrad", "l2": 0.01}, {"name": "normal", "std": 0.1}),
        ("adam", {"name": "adam", "l2": 0.01}, {"name": "normal", "std": 1e-4}),
        ("sweep", {"name": "adam", "l2": 0.01, "sweep": True}, {"name": "uniform", "scale": 1.0}),
        ("ftrl", {"name": "ftrl", "l1": 0.01, "l2": 0.02}, {"name": "normal", "std": 0.1}),
        ("ftrl_zero", {"name": "ftrl", "l1": 0.5}, "zeros"),
        ("adam_per_step", {"name": "adam", "l2": 0.01, "l2_per": "step"}, {"name": "uniform", "scale": 0.5}),
    ]
    dims = [1, 4, 11, 3, 2, 5, 1, 3]
    return TableSpec.model_validate(
        {
            "segments": {
                name: {
                    "dim": dim,
                    "optimizer": optimizer,
                    "initializer": initializer,
                    "codec": codec,
                    "state_codec": "fp32" if name == "adam_per_step" else state_codec,
                }
                for (name, optimizer, initializer), dim, codec in zip(segments, dims, codecs)
            }
        }
    )


SPECS = {
    "fp32": everything(["fp32"] * 8),
    "narrow": everything(["fp16", "bf16", "fp16", "bf16", "fp16", "bf16", "fp32", "bf16"]),
    "least": everything(["int8"] * 8, state_codec="bf16"),
}
RATES = np.linspace(0.05, 0.5, 8).astype(np.float32)


def pair(spec, num_buckets=4, seed=3):
    return Table("user", spec, seed=seed, num_buckets=num_buckets), Oracle("user", spec, seed)


def gradients(rng, keys, spec):
    raw = rng.normal(size=(len(keys), spec.width)).astype(np.float32)
    return np.where(rng.random(raw.shape) < 0.2, np.float32(0), raw)


def same(table, oracle):
    keys = np.array(list(oracle.rows), np.uint64)
    assert table.num_rows == len(oracle.rows) == table.rows_per_bucket.sum()
    assert np.array_equal(table.pull(keys), oracle.pull(keys))
    seen = {}
    for bucket in range(table.num_buckets):
        for block in table.scan(bucket):
            assert (bucket_of(block.keys, table.num_buckets) == bucket).all()
            seen |= dict(zip(block.keys.tolist(), zip(block.values, block.state)))
    assert set(seen) == set(oracle.rows)
    for key, (values, state) in seen.items():
        assert np.array_equal(values, np.concatenate([s.w for s in oracle.rows[key]]))
        assert np.array_equal(state, np.concatenate([s.state for s in oracle.rows[key]]))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_optimizer_to_the_bit(spec):
    table, oracle = pair(spec)
    rng = np.random.default_rng(5)
    for step in range(1, 9):
        keys = rng.choice(40, 20, replace=False).astype(np.uint64)
        g = gradients(rng, keys, spec)
        counts = table.push(keys, g, step=step, learning_rates=RATES)
        assert counts[:3] == (20, oracle.push(keys, g, step, RATES), 0)
        if step % 2 == 0:
            assert sum(table.sweep(b, step=step, learning_rates=RATES) for b in range(4)) == len(oracle.rows)
            oracle.sweep(step, RATES)
        same(table, oracle)


keys_of_a_call = st.lists(
    st.integers(0, 30) | st.sampled_from([LAST, LAST - 1, 1 << 63]), min_size=1, max_size=25, unique=True
)
actions = st.lists(
    st.tuples(st.sampled_from(["push", "push", "pull", "delete", "sweep", "drop"]), keys_of_a_call), max_size=12
)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, num_buckets=st.sampled_from([1, 8]))
def test_random_calls(spec, actions, num_buckets):
    table, oracle = pair(spec, num_buckets)
    rng = np.random.default_rng(len(actions))
    for step, (action, chosen) in enumerate(actions, 1):
        keys = np.array(chosen, np.uint64)
        if action == "push":
            g = gradients(rng, keys, spec)
            table.push(keys, g, step=step, learning_rates=RATES)
            oracle.push(keys, g, step, RATES)
        elif action == "pull":
            repeated = np.concatenate([keys, keys])
            assert np.array_equal(table.pull(repeated), oracle.pull(repeated))
        elif action == "delete":
            assert table.delete(keys) == oracle.delete(keys)
        elif action == "sweep":
            for bucket in range(num_buckets):
                table.sweep(bucket, step=step, learning_rates=RATES)
            oracle.sweep(step, RATES)
        else:
            bucket = int(bucket_of(keys[:1], num_buckets)[0])
            table.drop_bucket(bucket)
            rows = np.array(list(oracle.rows), np.uint64)
            oracle.delete(rows[bucket_of(rows, num_buckets) == bucket])
    same(table, oracle)


SMALL = TableSpec.model_validate(
    {"segments": {"e": {"dim": 4, "optimizer": "adagrad", "initializer": {"name": "uniform", "scale": 0.5}}}}
)
ONE = np.ones(1, np.float32)


def test_growth_and_deletion_of_many_rows_in_one_bucket():
    """20,000 rows of one bucket: tags of 8 bits collide in nearly every search."""
    candidates = np.arange(1_300_000, dtype=np.uint64)
    keys = candidates[bucket_of(candidates, 64) == 17][:20_000]
    table = Table("t", SMALL, seed=0, num_buckets=64)
    rng = np.random.default_rng(0)
    expected = {}
    for step, part in enumerate(np.array_split(keys, 7)):
        g = rng.normal(size=(len(part), 4)).astype(np.float32)
        before = table.pull(part)
        assert table.push(part, g, step=step, learning_rates=ONE).created == len(part)
        after = before - g / (np.sqrt(g * g) + np.float32(1e-10))
        expected |= dict(zip(part.tolist(), after))
    assert table.rows_per_bucket[17] == len(keys) == table.num_rows
    order = rng.permutation(keys)
    assert np.array_equal(table.pull(order), np.array([expected[key] for key in order.tolist()]))
    gone, kept = order[:12_000], order[12_000:]
    assert table.delete(gone) == len(gone)
    assert table.delete(gone) == 0
    assert np.array_equal(table.pull(kept), np.array([expected[key] for key in kept.tolist()]))
    assert np.array_equal(table.pull(gone), Oracle("t", SMALL, 0).pull(gone))
    assert table.push(gone, np.zeros((len(gone), 4), np.float32), step=0, learning_rates=ONE).created == len(gone)


def test_a_missing_row_reads_as_its_initial_value_and_pull_writes_nothing():
    for spec in SPECS.values():
        table, oracle = pair(spec)
        keys = np.array([0, 1, 2, LAST, 0], np.uint64)
        first = table.pull(keys)
        assert np.array_equal(first, oracle.pull(keys))
        assert (table.num_rows, table.memory_bytes) == (0, pair(spec)[0].memory_bytes)
        table.push(keys[:4], np.zeros((4, spec.width), np.float32), step=1, learning_rates=RATES)
        zero_l2 = [spec.columns()[name] for name in ("sweep", "ftrl", "ftrl_zero")]
        for columns in zero_l2:  # the others decay their weights
            assert np.array_equal(table.pull(keys)[:, columns], first[:, columns])


def test_a_zero_gradient_creates_a_row_without_changing_its_value():
    table = Table("t", SMALL, seed=1, num_buckets=2)
    keys = np.arange(100, dtype=np.uint64)
    first = table.pull(keys)
    table.push(keys, np.zeros((100, 4), np.float32), step=1, learning_rates=ONE)
    assert np.array_equal(table.pull(keys), first)
    assert table.num_rows == 100


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_row_does_not_depend_on_the_rest_of_the_message(spec):
    rng = np.random.default_rng(1)
    whole, split = pair(spec, 16)[0], pair(spec, 16)[0]
    for step in range(4):
        keys = rng.choice(500, 300, replace=False).astype(np.uint64)
        g = gradients(rng, keys, spec)
        whole.push(keys, g, step=step, learning_rates=RATES)
        order = rng.permutation(300)
        for part in np.array_split(order, 7):
            split.push(keys[part], g[part], step=step, learning_rates=RATES)
    keys = np.arange(500, dtype=np.uint64)
    assert np.array_equal(whole.pull(keys), split.pull(keys))


def test_seed_table_and_segment_choose_the_initial_values():
    keys = np.arange(8, dtype=np.uint64)
    other = TableSpec(segments={"f": SMALL.segments["e"]})
    variants = [
        Table("t", SMALL, seed=0, num_buckets=1).pull(keys),
        Table("t", SMALL, seed=1, num_buckets=1).pull(keys),
        Table("u", SMALL, seed=0, num_buckets=1).pull(keys),
        Table("t", other, seed=0, num_buckets=1).pull(keys),
    ]
    assert len({v.tobytes() for v in variants}) == 4
    assert np.array_equal(variants[0], Table("t", SMALL, seed=0, num_buckets=64).pull(keys))


def test_a_row_that_would_not_be_finite_stays_and_is_counted():
    table = Table("t", SMALL, seed=0, num_buckets=4)
    keys = np.arange(4, dtype=np.uint64)
    first = table.pull(keys)
    g = np.ones((4, 4), np.float32)
    g[1, 2], g[2, 0], g[3, 3] = np.nan, np.inf, 3e38  # the last one's square overflows
    assert table.push(keys, g, step=1, learning_rates=ONE) == (1, 4, 3, 0)
    assert np.array_equal(table.pull(keys)[1:], first[1:])
    assert not np.array_equal(table.pull(keys)[0], first[0])
    assert table.nonfinite == 3


def test_fp16_saturates_and_counts():
    spec = TableSpec.model_validate({"segments": {"e": {"dim": 3, "optimizer": "sgd", "codec": "fp16"}}})
    table = Table("t", spec, seed=0, num_buckets=1)
    g = np.array([[-1e5, 1e6, 1]], np.float32)
    assert table.push(np.zeros(1, np.uint64), g, step=1, learning_rates=ONE).applied == 1
    assert table.pull(np.zeros(1, np.uint64)).tolist() == [[65504, -65504, -1]]
    assert table.saturated == 2


def test_shapes_are_checked():
    table = Table("t", SMALL, seed=0, num_buckets=1)
    keys = np.zeros(1, np.uint64)
    with pytest.raises(RequestError, match=r"gradients \(1, 3\)"):
        table.push(keys, np.zeros((1, 3), np.float32), step=1, learning_rates=ONE)
    with pytest.raises(RequestError, match="learning rates"):
        table.push(keys, np.zeros((1, 4), np.float32), step=1, learning_rates=np.ones(2, np.float32))
    with pytest.raises(RequestError, match="float32"):
        table.pull(keys, np.empty((1, 4)))
    with pytest.raises(RequestError, match="power of two"):
        Table("t", SMALL, seed=0, num_buckets=3)
    with pytest.raises(RequestError, match="no segment 'x'"):
        next(table.scan(0, "x"))


def test_read_only_inputs():
    table = Table("t", SMALL, seed=0, num_buckets=1)
    keys = np.frombuffer(np.arange(3, dtype=np.uint64).tobytes(), np.uint64)
    g = np.frombuffer(np.ones((3, 4), np.float32).tobytes(), np.float32).reshape(3, 4)
    table.push(keys, g, step=1, learning_rates=np.frombuffer(ONE.tobytes(), np.float32))
    assert table.pull(keys).shape == (3, 4)
