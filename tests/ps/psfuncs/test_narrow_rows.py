"""Row functions on int8 values and bf16 state: they see float32, and leave the nearest codes."""

import ml_dtypes
import numpy as np
import pytest

import ps
from ps.errors import RequestError
from ps.psfunc import encode_args
from ps.storage.unique import unique_by_bucket
from tests.ps.driving import NUM_BUCKETS, Driver, call, keys_in
from tests.ps.psfuncs import user_rows
from tests.ps.storage.oracle import fitted, nearest

f32 = np.float32
VICTIM = 0xBEEF
KEYS = unique_by_bucket(np.append(keys_in(range(NUM_BUCKETS), each=3), np.uint64(VICTIM)), NUM_BUCKETS)[0]
FEW = KEYS[: len(KEYS) // 2]


@pytest.fixture
def driver():
    narrow = {"codec": "int8", "state_codec": "bf16"}
    segments = {
        "first": {"dim": 3, "optimizer": "rowwise_adagrad", "initializer": {"name": "normal", "std": 1}, **narrow},
        "own": {"dim": 3, "optimizer": {"name": "touchy", "victim": VICTIM}, **narrow},
        "exact": {"dim": 2, "optimizer": "adagrad"},
    }
    return Driver(
        ps.ClusterSpec.model_validate(
            {
                "tables": {"user": {"segments": segments}},
                "num_buckets": NUM_BUCKETS,
                "psfunc_modules": ["tests.ps.psfuncs.user_rows"],
            }
        )
    )


def run(driver, psfunc, keys=None, payload=None, sequence=9):
    made = call(psfunc.name, args=encode_args(psfunc), keys=keys, payload=payload)
    return driver.do(made, sequence=sequence).results[0]


def seen(driver, keys, segment):
    """float32 [n, 3]: first number of state, slot, sum of the values."""
    width = 8 if segment is None else 3
    result = run(driver, user_rows.StateAndSlot([1.0] * width, segment=segment), keys)
    return np.frombuffer(result.payload, f32).reshape(-1, 3)


def state_of(driver, keys, segment):
    """float32 [n, state_dim]"""
    blocks = [block for bucket in range(NUM_BUCKETS) for block in driver.table.scan(bucket, segment)]
    rows = dict(zip(np.concatenate([b.keys for b in blocks]).tolist(), np.concatenate([b.state for b in blocks])))
    return np.array([rows[key] for key in keys.tolist()])


def written(values):
    """int8 rows of a zero row, after values were stored."""
    return np.array([nearest(row, "int8", fitted(row, 0)) for row in values])


def test_reading_a_segment_or_all_of_a_row_that_exists_or_not(driver):
    driver.table.write_values(FEW, np.full((len(FEW), 3), 0.3, f32), "own")
    columns = driver.table.spec.columns()
    own, whole = seen(driver, KEYS, "own"), seen(driver, KEYS, None)
    assert (own[:, 0] == 7).all()
    np.testing.assert_array_equal(own[:, 2], driver.table.pull(KEYS)[:, columns["own"]].sum(axis=1))
    assert (whole[:, 0] == 0).all()  # of the first segment
    np.testing.assert_array_equal(
        seen(driver, KEYS, "first")[:, 2], summed(driver.table.pull(KEYS)[:, columns["first"]])
    )
    np.testing.assert_array_equal(whole[:, 2], summed(driver.table.pull(KEYS)))
    assert driver.table.num_rows == len(FEW)


def summed(rows):
    total = np.zeros(len(rows), f32)
    for column in rows.T:
        total += column
    return total


def test_updating_values_and_state(driver):
    payload = np.random.default_rng(0).normal(size=(len(KEYS), 3)).astype(f32)
    result = run(driver, user_rows.TouchyRow(segment="own"), KEYS, payload)
    assert (result.num_applied, result.num_created) == (len(KEYS), len(KEYS))
    own = driver.table.spec.columns()["own"]
    np.testing.assert_array_equal(driver.table.pull(KEYS)[:, own], written(payload))
    assert (state_of(driver, KEYS, "own") == 8).all()
    assert (state_of(driver, KEYS, "first") == 0).all()
    run(driver, user_rows.AddToState(1 / 3), sequence=10)
    for segment, before in (("first", 0), ("own", 8), ("exact", 0)):
        state = state_of(driver, KEYS, segment)
        exact = (np.full(state.shape, before, f32) + f32(1 / 3)).astype(f32)
        expected = exact if segment == "exact" else exact.astype(ml_dtypes.bfloat16).astype(f32)
        np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(driver.table.pull(KEYS)[:, own], written(payload))


def test_a_mistake_puts_codes_back_and_the_state_is_seen_by_the_blame(driver):
    driver.table.write_values(KEYS, np.full((len(KEYS), 8), 0.7, f32))
    before = [(k.tolist(), i.tobytes()) for b in range(NUM_BUCKETS) for k, i in driver.table.read_images(b)]
    gradients = np.ones((len(KEYS), 8), f32)
    with pytest.raises(RequestError, match="met the victim"):
        driver.table.push(KEYS, gradients, step=1, learning_rates=np.ones(3, f32))
    with pytest.raises(RequestError, match="row"):
        run(driver, user_rows.TouchyRow(victim=VICTIM, segment="own"), KEYS, gradients[:, :3].copy())
    assert [(k.tolist(), i.tobytes()) for b in range(NUM_BUCKETS) for k, i in driver.table.read_images(b)] == before
