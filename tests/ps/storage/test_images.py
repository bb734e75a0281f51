"""Images and blocks: rows leave and return to the bit; psfuncs overwrite values."""

import numpy as np
import pytest

from ps.errors import MemoryLimitError, RequestError
from ps.keys import bucket_of
from ps.storage.kernels import index
from ps.storage.table import Table
from tests.ps.storage import late_oracle
from tests.ps.storage.test_table import RATES, SPECS, gradients, pair, same


def trained(spec, num_buckets=8, num_keys=300, steps=3):
    table = Table("user", spec, seed=3, num_buckets=num_buckets)
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        keys = rng.choice(num_keys, num_keys // 2, replace=False).astype(np.uint64)
        table.push(keys, gradients(rng, keys, spec), step=step, learning_rates=RATES)
    return table


def images_of(table):
    """{key: image bytes} of every row."""
    return {
        key: image.tobytes()
        for bucket in range(table.num_buckets)
        for keys, images in table.read_images(bucket)
        for key, image in zip(keys.tolist(), images)
    }


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_save_load_step_gives_equal_bits(spec):
    table = trained(spec)
    copy = Table("user", spec, seed=3, num_buckets=8)
    assert copy.image_layout() == table.image_layout()
    for bucket in range(8):
        for keys, images in table.read_images(bucket):
            copy.write_images(keys, images)
    assert images_of(copy) == images_of(table)
    rng = np.random.default_rng(9)
    keys = np.arange(200, 400, dtype=np.uint64)
    g = gradients(rng, keys, spec)
    for one in (table, copy):
        one.push(keys, g, step=9, learning_rates=RATES)
        for bucket in range(8):
            one.sweep(bucket, step=9, learning_rates=RATES)
    assert images_of(copy) == images_of(table)


def test_images_of_rows_that_are_there_and_of_new_ones_may_come_together():
    """The first rows of a bucket move when it gets room for the new ones."""
    spec = SPECS["narrow"]
    table = trained(spec, num_keys=2000)
    copy = Table("user", spec, seed=3, num_buckets=8)
    rows = images_of(table)
    for number in (20, 200, len(rows)):
        keys = np.array(list(rows)[:number], np.uint64)
        copy.write_images(keys, np.array([list(rows[key]) for key in keys.tolist()], np.uint8))
        assert copy.num_rows == number
        assert copy.contains(keys).all()
    assert images_of(copy) == rows


def test_images_overwrite_rows_and_survive_reused_memory():
    """Padding bytes are zero even where another row lay before, so equal rows have equal images."""
    spec = SPECS["narrow"]
    table = trained(spec)
    first = images_of(table)
    keys = np.array(list(first), np.uint64)
    for step in range(3):
        table.push(keys, np.ones((len(keys), spec.width), np.float32), step=step, learning_rates=RATES)
    rows = np.array([list(first[key]) for key in keys.tolist()], np.uint8)
    table.write_images(keys, rows)
    assert images_of(table) == first
    table.clear()
    table.write_images(keys[::-1], rows[::-1])
    assert images_of(table) == first


def test_images_of_another_layout_are_refused():
    one, other = (Table("user", SPECS[name], seed=3, num_buckets=1) for name in ("fp32", "narrow"))
    assert one.image_layout() != other.image_layout()
    with pytest.raises(RequestError, match="this layout has uint8"):
        one.write_images(np.zeros(1, np.uint64), np.zeros((1, 3), np.uint8))


@pytest.mark.parametrize("spec", [SPECS["fp32"], SPECS["narrow"]], ids=["fp32", "narrow"])
def test_blocks_of_a_segment(spec):
    table = trained(spec, num_buckets=1)
    keys = np.arange(300, dtype=np.uint64)
    before = table.pull(keys)
    for name, columns in spec.columns().items():
        for block in table.scan(0, name):
            assert np.array_equal(block.values, table.pull(block.keys)[:, columns])
            assert block.write(block.values * np.float32(0.5)) == 0
    rows = np.concatenate([block.keys for block in table.scan(0)])
    halved = before[rows.astype(np.int64)] * np.float32(0.5)
    # Halving is exact but for subnormal fp16 codes, whose distance is 2^-24.
    np.testing.assert_allclose(table.pull(rows), halved, rtol=0, atol=2.0**-25)


@pytest.mark.parametrize("name", ["narrow", "least"])
def test_overwrites_to_the_bit(name):
    """Values from outside go to the nearest codes, and so does state that follows them."""
    table, oracle = pair(SPECS[name], num_buckets=2)
    rng = np.random.default_rng(2)
    keys = np.arange(60, dtype=np.uint64)
    g = gradients(rng, keys, table.spec)
    table.push(keys, g, step=1, learning_rates=RATES)
    oracle.push(keys, g, 1, RATES)
    for segment, columns in [*table.spec.columns().items(), (None, slice(0, table.spec.width))]:
        some = rng.choice(keys, 30, replace=False)
        values = table.pull(some)[:, columns] * rng.choice([0, 0.01, 0.5, 1, 3], size=(30, 1)).astype(np.float32)
        values += np.where(rng.random(values.shape) < 0.3, rng.normal(size=values.shape), 0).astype(np.float32)
        assert table.write_values(some, values, segment) == (30, 0, 0, 0)
        oracle.overwrite(some, values, segment)
        same(table, oracle)


def test_overwritten_ftrl_weights_go_on_from_there():
    """Without a new z the next push would bring the old weight back."""
    spec = SPECS["fp32"]
    table, columns = trained(spec, num_buckets=1), spec.columns()["ftrl"]
    for block in table.scan(0, "ftrl"):
        block.write(np.full_like(block.values, 2))
    keys = np.concatenate([block.keys for block in table.scan(0)])
    tiny = np.full((len(keys), spec.width), 1e-6, np.float32)
    rates = np.array([segment.optimizer.learning_rate for segment in spec.segments.values()], np.float32)
    table.push(keys, tiny, step=10, learning_rates=rates)
    np.testing.assert_allclose(table.pull(keys)[:, columns], 2, rtol=1e-5)


def test_blocks_that_are_not_finite_are_refused_row_by_row():
    table = trained(SPECS["fp32"], num_buckets=1)
    (block,) = table.scan(0)
    values = block.values * 2
    values[3, 1] = np.nan
    assert block.write(values) == 1
    expected = values.copy()
    expected[3] = block.values[3]
    assert np.array_equal(table.pull(block.keys), expected)
    with pytest.raises(RequestError, match="for a block of"):
        block.write(values[:-1])


def test_scan_in_several_blocks():
    spec = SPECS["fp32"]
    table = Table("user", spec, seed=0, num_buckets=1)
    keys = np.arange(9000, dtype=np.uint64)
    table.push(keys, np.ones((9000, spec.width), np.float32), step=1, learning_rates=RATES)
    blocks = list(table.scan(0, "adam"))
    assert [len(block.keys) for block in blocks] == [4096, 4096, 808]
    assert np.array_equal(np.concatenate([block.keys for block in blocks]), keys)


def pieces_of(table):
    return [(b, keys, images) for b in range(table.num_buckets) for keys, images in table.read_images(b)]


def rows_in_order(table):
    return [(b, keys.tolist(), images.tobytes()) for b, keys, images in pieces_of(table)]


@pytest.mark.parametrize("spec", [*SPECS.values(), late_oracle.SPEC], ids=[*SPECS, "late"])
@pytest.mark.parametrize("expected", [0, 40, 1 << 60])
def test_loaded_rows_are_those_that_were_written(spec, expected):
    """In their order, found by their keys, early rows and full ones; in pieces as small as seven rows."""
    table, loaded, written = (Table("user", spec, seed=3, num_buckets=8) for _ in range(3))
    rng, rates = np.random.default_rng(0), np.full(len(spec.segments), 0.1, np.float32)
    for step in range(1, 4):
        keys = rng.choice(300, 150, replace=False).astype(np.uint64)
        table.push(keys, gradients(rng, keys, spec), step=step, learning_rates=rates)
    for bucket, keys, images in pieces_of(table):
        for start in range(0, len(keys), 7):
            some = slice(start, start + 7)
            loaded.load_images(bucket, keys[some], images[some], expected=expected)
            written.write_images(keys[some], images[some])
    assert rows_in_order(loaded) == rows_in_order(written) == rows_in_order(table)
    keys = np.arange(400, dtype=np.uint64)
    np.testing.assert_array_equal(loaded.contains(keys), table.contains(keys))
    np.testing.assert_array_equal(loaded.pull(keys), table.pull(keys))
    for one in (table, loaded):
        one.delete(keys[::3])
        one.push(keys, gradients(np.random.default_rng(1), keys, spec), step=9, learning_rates=rates)
    assert images_of(loaded) == images_of(table)


def test_loaded_keys_that_have_rows_or_are_of_other_buckets_are_right_too():
    spec = SPECS["narrow"]
    table = trained(spec, num_keys=2000)
    other = Table("user", spec, seed=3, num_buckets=8)
    rows = images_of(table)
    keys = np.array(list(rows), np.uint64)  # all buckets, one after another
    images = np.array([list(image) for image in rows.values()], np.uint8)
    other.load_images(int(bucket_of(keys[:1], 8)[0]), keys, images)
    assert images_of(other) == rows
    other.load_images(int(bucket_of(keys[:1], 8)[0]), keys, images[::-1])
    assert images_of(other) == dict(zip(keys.tolist(), (image.tobytes() for image in images[::-1])))


def test_an_index_is_made_once_for_the_rows_that_are_expected_and_never_for_far_more():
    spec, capacities = SPECS["narrow"], []
    for expected in (0, 4000, 1 << 60):
        table = Table("user", spec, seed=3, num_buckets=1)
        keys = np.arange(4000, dtype=np.uint64)
        images = np.zeros((1000, table.image_bytes), np.uint8)
        for start in range(0, 4000, 1000):
            table.load_images(0, keys[start : start + 1000], images, expected=expected)
            capacities.append(int(table._buckets.table[0, index.CAPACITY]))
        assert table.contains(keys).all()
    grown, once, bounded = capacities[:4], capacities[4:8], capacities[8:]
    assert len(set(grown)) == 4
    assert set(once) == set(bounded) == {grown[-1]}


def test_rows_that_find_no_room_are_not_loaded_in_part():
    spec = SPECS["narrow"].model_copy(update={"memory_limit_bytes": 1 << 20})
    table = Table("user", spec, seed=3, num_buckets=1)
    keys = np.arange(1 << 17, dtype=np.uint64)
    table.load_images(0, keys[:100], np.ones((100, table.image_bytes), np.uint8))
    with pytest.raises(MemoryLimitError, match="table 'user'"):
        table.load_images(0, keys[100:], np.zeros((len(keys) - 100, table.image_bytes), np.uint8))
    assert table.num_rows == 100
    with pytest.raises(MemoryLimitError):
        for start in range(100, len(keys), 100):
            table.load_images(0, keys[start : start + 100], np.ones((100, table.image_bytes), np.uint8), expected=10**6)
    rows = table.num_rows
    assert table.memory_bytes > 0.8 * (1 << 20)
    table.load_images(0, keys[:rows], np.full((rows, table.image_bytes), 2, np.uint8))  # they need no room
    assert table.num_rows == rows
    assert set(images_of(table).values()) == {b"\2" * table.image_bytes}
    with pytest.raises(RequestError, match="images uint8"):
        table.load_images(0, keys[:1], np.zeros((1, 3), np.uint8))
