"""State in bf16: what it costs, what it keeps to the bit, that small steps are not lost, where it is refused.

To the bit it is tested against numpy in test_table.py and test_images.py.
"""

import numpy as np
import pytest
from pydantic import ValidationError

from ps.spec import SegmentSpec, TableSpec
from ps.storage.table import Table

f32 = np.float32


@pytest.fixture(scope="module")
def spec():
    """Every pair of a codec and a state codec that differ, in one row."""
    accumulator = {"name": "adagrad", "initial_accumulator": 100, "eps": 1e-6}
    return TableSpec.model_validate(
        {
            "segments": {
                "adagrad": {"dim": 3, "optimizer": accumulator, "state_codec": "bf16"},
                "ftrl": {"dim": 2, "codec": "int8", "optimizer": {"name": "ftrl", "l1": 0.1}, "state_codec": "bf16"},
                "adam": {"dim": 3, "codec": "bf16", "optimizer": "adam"},
                "rowwise": {"dim": 5, "codec": "int8", "optimizer": "rowwise_adagrad"},
            }
        }
    )


def state_of(table, segment):
    """In the order of the keys."""
    blocks = [block for bucket in range(table.num_buckets) for block in table.scan(bucket, segment)]
    order = np.argsort(np.concatenate([block.keys for block in blocks]))
    return np.concatenate([block.state for block in blocks])[order]


def test_sizes_and_text(spec):
    table = Table("t", spec, seed=0, num_buckets=1)
    values, state = 4 * 3 + 4 + 8 + 8, 8 + 8 + 4 * 7 + 4
    assert table.bytes_per_row == 8 + values + state
    assert table.image_layout() == (
        "image 1: 80 bytes, little-endian\n"
        "'adagrad': 3 fp32 at 0, adagrad 3 bf16 at 32\n"
        "'ftrl': 2 int8 at 12, ftrl 4 bf16 at 40\n"
        "'adam': 3 bf16 at 16, adam 7 fp32 at 48\n"
        "'rowwise': 5 int8 at 24, rowwise_adagrad 1 fp32 at 76"
    )


def test_state_of_one_segment_and_of_all(spec):
    table = Table("t", spec, seed=0, num_buckets=2)
    keys = np.arange(50, dtype=np.uint64)
    g = np.random.default_rng(0).normal(size=(50, spec.width)).astype(f32)
    table.push(keys, g, step=1, learning_rates=np.full(4, 0.1, f32))
    assert np.array_equal(state_of(table, None), np.hstack([state_of(table, name) for name in spec.segments]))
    assert (state_of(table, "adam")[:, 6] == 1).all()
    assert np.allclose(state_of(table, "ftrl")[:, 2:], g[:, 3:5] ** 2, rtol=2**-7)


def test_steps_too_small_for_a_code_add_up(spec):
    """To the nearest, 100 + 0.04 would stay 100 for ever: the codes around it are 0.5 apart."""
    table = Table("t", spec, seed=0, num_buckets=2)
    keys, g = np.arange(300, dtype=np.uint64), np.zeros((300, spec.width), f32)
    g[:, :3] = 0.2
    for step in range(1, 101):
        table.push(keys, g, step=step, learning_rates=np.full(4, 0.1, f32))
    state = state_of(table, "adagrad")
    assert not (state.view(np.uint32) & 0xFFFF).any()
    state = state.astype(np.float64)
    assert abs(state.mean() - 104) < 5 * state.std() / np.sqrt(state.size)
    assert 0 < state.std() < 2


def test_an_ftrl_coordinate_without_gradient_keeps_weight_and_state(spec):
    table = Table("t", spec, seed=0, num_buckets=2)
    keys, columns = np.arange(100, dtype=np.uint64), spec.columns()["ftrl"]
    g = np.random.default_rng(0).normal(size=(100, spec.width)).astype(f32)
    table.push(keys, g, step=1, learning_rates=np.full(4, 0.1, f32))
    weight, state = table.pull(keys)[:, columns][:, 1], state_of(table, "ftrl")
    g[:, columns.start + 1] = 0
    for step in range(2, 12):
        table.push(keys, g * f32(0.01), step=step, learning_rates=np.full(4, 0.1, f32))
    after = state_of(table, "ftrl")
    assert np.array_equal(after[:, [1, 3]], state[:, [1, 3]])
    assert not np.array_equal(after[:, [0, 2]], state[:, [0, 2]])
    # An int8 neighbour may move the scale that they share, and with it the code, by less than a step of a row's range.
    assert np.abs(table.pull(keys)[:, columns][:, 1] - weight).max() <= np.abs(weight).max() / 31


def test_state_that_would_not_be_finite_is_refused(spec):
    table = Table("t", spec, seed=0, num_buckets=1)
    keys, g = np.arange(2, dtype=np.uint64), np.ones((2, spec.width), f32)
    table.push(keys, g, step=1, learning_rates=np.full(4, 0.1, f32))
    before = next(table.read_images(0))[1].copy()
    g[0, 0] = 3e38  # its square overflows
    assert table.push(keys, g, step=2, learning_rates=np.full(4, 0.1, f32)) == (1, 0, 1, 0)
    assert np.array_equal(next(table.read_images(0))[1][0], before[0])


def test_state_that_must_be_exact():
    with pytest.raises(
        ValidationError, match="state of adam with l2_per: step, which holds numbers that must stay exact"
    ):
        SegmentSpec.model_validate({"dim": 2, "state_codec": "bf16", "optimizer": {"name": "adam", "l2_per": "step"}})
    assert SegmentSpec.model_validate({"dim": 2, "state_codec": "bf16", "optimizer": "adam"}).state_codec == "bf16"
    with pytest.raises(ValidationError, match="state_codec"):
        SegmentSpec.model_validate({"dim": 2, "state_codec": "int8"})
