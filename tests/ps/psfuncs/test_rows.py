"""Users' row functions: what they see, and that a mistake leaves the table as it was and names the line."""

import numpy as np
import pytest

import ps
from ps.errors import RequestError
from ps.keys import pack
from ps.psfunc import encode_args
from ps.spec import TableSpec
from ps.storage.table import Table
from ps.storage.unique import unique_by_bucket
from tests.ps.driving import NUM_BUCKETS, Driver, call, keys_in
from tests.ps.psfuncs import user_rows

f32 = np.float32
KEYS = keys_in(range(NUM_BUCKETS), each=3)
NEW = keys_in(range(NUM_BUCKETS), each=5)
VICTIM = 0xBEEF  # some key < 2^53, since fields are numbers; it hashes to some bucket among the others
RATES = np.array([0.5, 0.5], f32)


def spec(**fields):
    touchy = {"name": "touchy", **fields}
    return {"segments": {"own": {"dim": 3, "optimizer": touchy}, "other": {"dim": 2, "optimizer": "sgd"}}}


def table_of(check=False, **fields):
    return Table("t", TableSpec.model_validate(spec(**fields)), seed=3, num_buckets=NUM_BUCKETS, check=check)


def everything(table):
    """All that a table holds, in order."""
    return [(k.tolist(), i.tobytes()) for b in range(NUM_BUCKETS) for k, i in table.read_images(b)]


def push(table, keys, value=1.0, step=1):
    gradients = np.full((len(keys), 5), value, f32)
    return table.push(np.sort(keys), gradients, step=step, learning_rates=RATES)


def line_of(mark):
    with open(user_rows.__file__) as file:
        return next(n for n, line in enumerate(file, 1) if line.rstrip().endswith(f"# {mark}"))


def test_an_optimizer_of_ones_own():
    table = table_of()
    assert push(table, KEYS) == (len(KEYS), len(KEYS), 0, 0)
    push(table, KEYS, 2.0)
    expected = np.concatenate([np.full(3, -0.75), np.full(2, -1.5)]).astype(f32)
    np.testing.assert_array_equal(table.pull(KEYS), np.tile(expected, (len(KEYS), 1)))
    blocks = [block.state for b in range(NUM_BUCKETS) for block in table.scan(b, "own")]
    np.testing.assert_array_equal(np.concatenate(blocks), np.full((len(KEYS), 1), 9, f32))
    table.sweep(0, step=3, learning_rates=RATES)
    of_bucket = next(table.read_images(0))[0]
    np.testing.assert_array_equal(table.pull(of_bucket)[:, :3], np.full((len(of_bucket), 3), 0.25, f32))


@pytest.mark.parametrize("victim_exists", [True, False])
def test_a_push_that_raises_changes_nothing_and_names_the_line(victim_exists):
    table = table_of(victim=VICTIM)
    some = np.append(KEYS, np.uint64(VICTIM))
    table.write_values(np.sort(some if victim_exists else KEYS), np.ones((len(some) - (not victim_exists), 5), f32))
    before, rows = everything(table), table.num_rows
    many = np.unique(np.append(NEW, np.uint64(VICTIM)))
    with pytest.raises(RequestError, match=r"optimizer 'touchy' failed at .*ValueError: met the victim") as caught:
        push(table, many)
    assert f"user_rows.py:{line_of('helper')} in halve" in str(caught.value)
    assert everything(table) == before
    assert (table.num_rows, table.created, table.nonfinite) == (rows, len(KEYS) + victim_exists, 0)
    assert push(table, NEW).applied == len(NEW)


def test_a_row_that_cannot_be_born():
    table = table_of(unborn=VICTIM)
    push(table, KEYS)
    before = everything(table)
    for make in (
        lambda: push(table, np.append(NEW, np.uint64(VICTIM))),
        lambda: table.write_values(np.array([VICTIM], np.uint64), np.ones((1, 5), f32)),
    ):
        with pytest.raises(RequestError, match=rf"user_rows\.py:{line_of('init')} in init_state: RuntimeError"):
            make()
        assert everything(table) == before


def test_rows_that_new_ones_take_to_other_memory_are_put_back_there():
    """The first few rows of a bucket move when it gets many, before one of these raises."""
    table = table_of(victim=VICTIM)
    push(table, KEYS)
    before = everything(table)
    many = np.append(keys_in(range(NUM_BUCKETS), each=200), np.uint64(VICTIM))
    with pytest.raises(RequestError, match="met the victim"):
        push(table, many)
    assert everything(table) == before


def test_rows_that_are_not_finite_are_refused_and_counted():
    table = table_of(broken=VICTIM)
    keys = np.append(KEYS, np.uint64(VICTIM))
    assert push(table, keys)[:3] == (len(keys) - 1, len(keys), 1)
    np.testing.assert_array_equal(table.pull(np.array([VICTIM], np.uint64)), np.zeros((1, 5), f32))


def test_bounds_are_checked_where_asked_for():
    table = table_of(check=True, beyond=VICTIM)
    push(table, KEYS)
    before = everything(table)
    with pytest.raises(RequestError, match="IndexError") as caught:
        push(table, np.append(KEYS, np.uint64(VICTIM)))
    assert f"user_rows.py:{line_of('beyond')} in update" in str(caught.value)
    assert "index 3 is out of bounds" in str(caught.value)
    assert everything(table) == before


def driver(**fields):
    cluster = ps.ClusterSpec.model_validate(
        {
            "tables": {"user": spec(**fields)},
            "num_buckets": NUM_BUCKETS,
            "psfunc_modules": ["tests.ps.psfuncs.user_rows"],
        }
    )
    return Driver(cluster)


def run(driver, psfunc, keys=None, payload=None, sequence=9):
    made = call(psfunc.name, args=encode_args(psfunc), keys=keys, payload=payload)
    return driver.do(made, sequence=sequence).results[0]


def test_a_sweep_that_raises_has_changed_no_bucket():
    one = driver(swept=VICTIM)
    # The victim's bucket is not the first: earlier ones would have been swept.
    keys = np.append(KEYS, np.uint64(VICTIM))
    one.table.write_values(keys, np.ones((len(keys), 5), f32))
    before = everything(one.table)
    with pytest.raises(RequestError, match=rf"user_rows\.py:{line_of('sweep')} in sweep: ZeroDivisionError"):
        one.do(call("sweep"), sequence=1)
    assert everything(one.table) == before
    one.table.delete(np.array([VICTIM], np.uint64))
    assert one.do(call("sweep"), sequence=2).results[0].num_applied == len(KEYS)


def test_a_psfunc_on_keys_that_raises_puts_rows_back():
    one = driver()
    one.table.write_values(KEYS, np.ones((len(KEYS), 5), f32))
    before = everything(one.table)
    keys = unique_by_bucket(np.append(NEW, np.uint64(VICTIM)), NUM_BUCKETS)[0]
    payload = np.arange(3 * len(keys), dtype=f32).reshape(-1, 3)
    victim = user_rows.TouchyRow(victim=VICTIM, segment="own")
    with pytest.raises(RequestError, match=rf"psfunc 'touchy_row' failed at .*user_rows\.py:{line_of('row')} in"):
        run(one, victim, keys, payload)
    assert everything(one.table) == before
    result = run(one, user_rows.TouchyRow(broken=VICTIM, segment="own"), keys, payload)
    assert (result.num_applied, result.num_nonfinite) == (len(NEW), 1)
    assert (result.num_created, one.table.num_rows) == (len(NEW) - len(KEYS), len(NEW))
    expected = np.where(np.isin(keys, KEYS)[:, None], f32(1), f32(0)) + payload
    there = keys != VICTIM
    np.testing.assert_array_equal(one.table.pull(keys)[there, :3], expected[there])
    read = user_rows.StateAndSlot([0.0, 0.0, 0.0], segment="own")
    np.testing.assert_array_equal(rows_of(run(one, read, keys[there]))[:, 0], np.full(len(NEW), 8))


def rows_of(result):
    return np.frombuffer(result.payload, f32).reshape(-1, 3)


def test_fields_carry_whole_numbers_exactly_or_not_at_all():
    with pytest.raises(RequestError, match=r"victim is 9007199254740993; whole numbers go up to 2\^53"):
        table_of(victim=(1 << 53) + 1)


def test_a_psfunc_on_all_rows_that_raises_has_changed_none():
    one = driver()
    keys = np.append(KEYS, np.uint64(VICTIM))
    one.table.write_values(keys, np.ones((len(keys), 5), f32))
    before = everything(one.table)
    with pytest.raises(RequestError, match=rf"user_rows\.py:{line_of('table')} in update_row: ValueError: table"):
        run(one, user_rows.TouchyTable(VICTIM))
    assert everything(one.table) == before
    assert run(one, user_rows.TouchyTable(1)).num_applied == len(keys)
    np.testing.assert_array_equal(one.table.pull(keys), np.full((len(keys), 5), 2, f32))


def test_reading_state_and_slot_of_rows_that_exist_or_not():
    one = driver()
    keys = np.sort(np.concatenate([pack(slot, np.arange(1, 21, dtype=np.uint64)) for slot in (0, 4095)]))
    keys = unique_by_bucket(keys, NUM_BUCKETS)[0]
    half = keys[::2]
    one.table.write_values(half, np.full((len(half), 5), 3, f32))
    gradients = np.zeros((len(half), 5), f32)
    one.table.push(half, gradients, step=1, learning_rates=RATES)
    psfunc = user_rows.StateAndSlot([1.0, 10.0, 100.0], segment="own")
    result = run(one, psfunc, keys)
    rows = rows_of(result)
    exists = np.isin(keys, half)
    np.testing.assert_array_equal(rows[:, 0], np.where(exists, 8, 7))
    np.testing.assert_array_equal(rows[:, 1], (keys >> np.uint64(52)).astype(f32))
    np.testing.assert_array_equal(rows[:, 2], np.where(exists, 333, 0))
    assert one.table.num_rows == len(half)


def test_what_the_shard_needs_is_compiled_before_it_is_ready():
    one = driver()
    assert set(one.table.programs._modules) >= {
        user_rows.TouchyRow.code().digest,
        user_rows.TouchyTable.code().digest,
        user_rows.StateAndSlot.code().digest,
    }
