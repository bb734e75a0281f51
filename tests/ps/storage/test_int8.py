"""The int8 codec: its scale doubles, halves, saturates and stays; rounding; rows of a table in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.spec import TableSpec
from ps.storage.kernels import codecs
from ps.storage.table import Table
from tests.ps.storage.called import called
from tests.ps.storage.oracle import Oracle, fitted, nearest, stochastic

f32 = np.float32
int8 = called(codecs.int8)
STREAM = np.uint64(12345)
ONE = np.ones(1, f32)


def scale_of(codes):
    exponent = int(codes[0]) & 0xFF
    return 2.0 ** (exponent - 127) if exponent else 0.0


def codes_of(values, scale=0.0):
    """Codes with this scale, and room for as many values."""
    codes = np.full(len(values) + 1, 99, np.int8)  # of another row, but for the scale
    codes[0] = np.uint8(127 + np.log2(scale) if scale else 0).view(np.int8)
    return codes


def decoded(codes):
    values = np.empty(len(codes) - 1, f32)
    int8.decode(codes, values)
    return values


def both_encoders(values, codes, step=0):
    """(values, scale, saturated) of either, from the same codes."""
    for encode, *rest in ((int8.encode_nearest,), (int8.encode_stochastic, STREAM, np.uint64(7), step)):
        stored = codes.copy()
        saturated = encode(values, stored, *rest)
        yield decoded(stored), scale_of(stored), saturated


exponents = st.none() | st.integers(-126, 121)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(numbers | st.floats(-4, 4, width=32), min_size=1, max_size=20), exponents, st.integers(0, 99))
def test_against_the_oracle(values, exponent, step):
    values, before = np.array(values, f32), 0.0 if exponent is None else 2.0**exponent
    after = fitted(values, before)
    expected = [nearest(values, "int8", after), stochastic(values, "int8", int(STREAM), 7, step, after)]
    for (row, scale, _), wanted in zip(both_encoders(values, codes_of(values, before), step), expected, strict=True):
        assert scale == after
        assert np.array_equal(row, wanted)


@given(st.floats(-127, 127, width=32), st.integers(-120, 100))
def test_a_trip_costs_half_a_step_or_one(value, exponent):
    scale = 2.0**exponent
    values = np.array([value * scale, 127 * scale], f32)
    (near, *_), (random, *_) = both_encoders(values, codes_of(values))
    assert abs(float(near[0]) - float(values[0])) <= scale / 2
    assert abs(float(random[0]) - float(values[0])) < scale


def test_every_code_at_every_scale_returns():
    for exponent in range(1, 249):
        codes = np.concatenate([[np.uint8(exponent).view(np.int8)], np.arange(-127, 128)]).astype(np.int8)
        values = decoded(codes)
        assert np.array_equal(values, (np.arange(-127, 128) * 2.0 ** (exponent - 127)).astype(f32))
        assert np.isfinite(values).all()
        for step in range(2):
            for row, scale, saturated in both_encoders(values, codes, step):
                assert (scale, saturated) == (scale_of(codes), 0)
                assert np.array_equal(row, values)


@pytest.mark.parametrize(
    ("greatest", "before", "after"),
    [
        (127, 1, 1),
        (np.nextafter(f32(127), f32(128)), 1, 2),
        (508, 1, 4),
        (31.75, 1, 1),
        (np.nextafter(f32(31.75), f32(0)), 1, 1 / 2),
        (1, 1, 1 / 32),
        (127, 0, 1),
        (64, 0, 1),
        (63.5, 0, 1 / 2),
        (0, 4, 4),
        (0, 0, 0),
        (2.0**-149, 1, 2.0**-126),
    ],
)
def test_the_scale_doubles_and_halves(greatest, before, after):
    values = np.array([0, -greatest, greatest / 3], f32)
    assert fitted(values, before) == after
    for _, scale, saturated in both_encoders(values, codes_of(values, before)):
        assert (scale, saturated) == (after, 0)


def test_beyond_the_greatest_scale_values_saturate_and_are_counted():
    top = f32(127 * 2.0**121)
    most = np.finfo(f32).max
    values = np.array([most, -most, top, 0, -1e30], f32)
    for row, scale, saturated in both_encoders(values, codes_of(values, 1.0)):
        assert (scale, saturated) == (2.0**121, 2)
        assert row[:4].tolist() == [top, -top, top, 0]


def test_elements_that_do_not_change_keep_their_codes():
    """At an equal scale to the code; after a halving to the value; after a doubling to a neighbouring code."""
    rng = np.random.default_rng(0)
    codes, seen = np.zeros(33, np.int8), set()
    int8.encode_nearest(rng.normal(size=32).astype(f32), codes)
    for step in range(300):
        before, row = codes.copy(), decoded(codes)
        greatest, noise = np.abs(row).max(), rng.normal(size=32).astype(f32)
        if step % 3 == 0:  # many move a little
            still = (rng.random(32) < 0.5) | (np.abs(row) == greatest)
            moved = np.where(still, row, row + noise * greatest / f32(50))
        elif step % 3 == 1:  # the large ones shrink
            still = np.abs(row) < greatest / 5
            moved = np.where(still, row, row / f32(40))
        else:  # a few grow
            still = rng.random(32) < 0.8
            moved = np.where(still, row, noise * greatest * f32(4))
        int8.encode_stochastic(moved, codes, STREAM, np.uint64(3), step)
        old, new = scale_of(before), scale_of(codes)
        seen.add(float(np.sign(new - old)))
        if new == old:
            assert np.array_equal(codes[1:][still], before[1:][still])
        elif new < old:
            assert np.array_equal(decoded(codes)[still], row[still])
        else:
            assert (np.abs(decoded(codes) - row)[still] < new).all()
    assert seen == {-1, 0, 1}


@pytest.mark.parametrize("value", [0.3, -1.2345, 1e-3, -88.01])
def test_stochastic_rounding_is_unbiased(value):
    """Over 40,000 draws the mean lies within five standard errors of the value; so does each element's own."""
    values, drawn = np.full(9, value, f32), []
    values[8] = 127  # the scale is 1
    for key in range(1000):
        for step in range(5):
            codes = np.zeros(10, np.int8)
            int8.encode_stochastic(values, codes, STREAM, np.uint64(key), step)
            drawn.append(decoded(codes)[:8])
    drawn = np.array(drawn, np.float64)
    assert len(np.unique(drawn)) == 2
    assert abs(drawn.mean() - float(values[0])) < 5 * drawn.std() / np.sqrt(drawn.size)
    assert np.abs(drawn.mean(axis=0) - float(values[0])).max() < 6 * drawn.std() / np.sqrt(len(drawn))


@pytest.fixture(scope="module")
def layout():
    return TableSpec.model_validate(
        {
            "segments": {
                "w": {
                    "dim": 6,
                    "codec": "int8",
                    "initializer": {"name": "normal", "std": 0.1},
                    "optimizer": "rowwise_adagrad",
                    "state_codec": "bf16",
                }
            }
        }
    )


def test_a_missing_row_reads_the_same_after_any_other(layout):
    """Its code is made where that of another row with another scale lay."""
    table = Table("t", layout, seed=0, num_buckets=1)
    keys = np.arange(200, dtype=np.uint64)
    rows = table.pull(keys)
    assert np.array_equal(rows, np.concatenate([table.pull(keys[i : i + 1]) for i in range(200)]))
    assert np.array_equal(rows[::-1], table.pull(keys[::-1]))
    assert np.array_equal(rows, Oracle("t", layout, 0).pull(keys))
    assert len({fitted(row, 0) for row in rows}) > 1
    table.push(keys, np.zeros((200, 6), f32), step=1, learning_rates=ONE)
    assert np.array_equal(table.pull(keys), rows)


def test_bytes_of_a_row(layout):
    """Key, exponent and six codes in two words, one bf16 in one."""
    assert Table("t", layout, seed=0, num_buckets=1).bytes_per_row == 8 + 8 + 4


def test_a_row_that_would_not_be_finite_keeps_its_codes_and_scale(layout):
    table = Table("t", layout, seed=0, num_buckets=1)
    keys = np.arange(3, dtype=np.uint64)
    g = np.ones((3, 6), f32)
    table.push(keys, g, step=1, learning_rates=ONE)
    before = next(table.read_images(0))[1].copy()
    g[1, 4] = np.nan
    assert table.push(keys, g, step=2, learning_rates=ONE) == (2, 0, 1, 0)
    after = next(table.read_images(0))[1]
    assert np.array_equal(after[1], before[1])
    assert not np.array_equal(after[[0, 2]], before[[0, 2]])


def test_draws_depend_on_key_and_step_only(layout):
    """The same rows and gradients: another step or another key rounds otherwise, another table around it does not."""
    keys, start, g = np.arange(64, dtype=np.uint64), np.full((64, 6), 0.5, f32), np.full((64, 6), 0.03, f32)

    def after(step, keys, num_buckets):
        table = Table("t", layout, seed=0, num_buckets=num_buckets)
        table.write_values(keys, start)
        table.push(keys, g, step=step, learning_rates=np.full(1, 0.001, f32))
        return table.pull(np.sort(keys))

    one = after(1, keys, 1)
    assert np.array_equal(one, after(1, keys[::-1].copy(), 16))
    assert not np.array_equal(one, after(2, keys, 1))
    assert not np.array_equal(one[0], one[1])
