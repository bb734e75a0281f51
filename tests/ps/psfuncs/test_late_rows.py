"""Late segments under users' row functions: what these see of a row without them, and that an error leaves rows of both
sizes as they were, in their order.
"""

import numpy as np
import pytest

import ps
from ps.errors import RequestError
from ps.spec import TableSpec
from ps.storage.table import Table
from ps.storage.unique import unique_by_bucket
from ps.types import NOTHING_SEEN, Seen
from tests.ps.driving import NUM_BUCKETS, Driver, keys_in
from tests.ps.psfuncs import user_rows
from tests.ps.psfuncs.test_rows import VICTIM, everything, line_of, rows_of, run

f32 = np.float32
KEYS = keys_in(range(NUM_BUCKETS), each=6)
FULL, EARLY = KEYS[::2], KEYS[1::2]
WITH_VICTIM = unique_by_bucket(np.append(KEYS, np.uint64(VICTIM)), NUM_BUCKETS)[0]
RATES = np.array([0.5, 0.5, 0.5], f32)


def spec(own=(), always=(), late=1e9):
    """own, always: fields of the two optimizers."""
    return {
        "segments": {
            "own": {
                "dim": 3,
                "late": late,
                "optimizer": {"name": "touchy", **dict(own)},
                "initializer": {"name": "constant", "value": 2.0},
            },
            "always": {"dim": 2, "optimizer": {"name": "touchy", **dict(always)}},
            "plain": {"dim": 1, "optimizer": "sgd"},
        }
    }


def push(table, keys, step=1, seen=NOTHING_SEEN):
    return table.push(keys, np.ones((len(keys), 6), f32), step=step, learning_rates=RATES, seen=seen)


def filled(table, keys=KEYS, full=FULL):
    """Rows with the initial values, and 1 in `plain`; no function of `own` or `always` has run but the first."""
    table.write_values(keys, np.ones((len(keys), 1), f32), "plain")
    assert table.num_early == len(keys)
    assert table.promote(full) == len(full)
    return table


def table_of(**fields):
    return Table("t", TableSpec.model_validate(spec(**fields)), seed=3, num_buckets=NUM_BUCKETS)


@pytest.fixture
def one():
    cluster = {
        "tables": {"user": spec()},
        "num_buckets": NUM_BUCKETS,
        "psfunc_modules": ["tests.ps.psfuncs.user_rows"],
    }
    return Driver(ps.ClusterSpec.model_validate(cluster))


@pytest.mark.parametrize("segment", ["own", "always"])
def test_a_push_that_raises_puts_rows_of_both_sizes_back(segment):
    table = table_of(**{segment: {"victim": VICTIM}})
    full = np.append(FULL, np.uint64(VICTIM)) if segment == "own" else FULL
    filled(table, WITH_VICTIM, full)
    push(table, KEYS)
    before = everything(table)
    with pytest.raises(RequestError, match="met the victim"):
        push(table, np.append(keys_in(range(NUM_BUCKETS), each=9), np.uint64(VICTIM)), step=2)
    assert everything(table) == before
    assert push(table, KEYS, step=2).applied == len(KEYS)


@pytest.mark.parametrize("fields", [{"victim": VICTIM}, {"unborn": VICTIM}], ids=str)
@pytest.mark.parametrize("victim_exists", [True, False])
def test_a_push_that_raises_where_a_row_has_grown_puts_everything_back(fields, victim_exists):
    """Rows that grow, new ones that grow at once, and new ones that stay early, among rows of both sizes."""
    table = filled(table_of(own=fields, late=0.3), WITH_VICTIM if victim_exists else KEYS)
    push(table, FULL[::2])  # 0.1 a show
    push(table, EARLY[::2])
    before, totals = everything(table), (table.num_rows, table.num_early, table.created, table.nonfinite)
    keys = unique_by_bucket(np.append(keys_in(range(NUM_BUCKETS), each=40), np.uint64(VICTIM)), NUM_BUCKETS)[0]
    shown = np.zeros((len(keys), 2), f32)
    shown[:, 0] = np.where((np.arange(len(keys)) % 3 == 0) | (keys == np.uint64(VICTIM)), 3, 2)
    with pytest.raises(RequestError, match="ValueError: met the victim" if "victim" in fields else "not to be born"):
        push(table, keys, step=2, seen=Seen(0, shown))
    assert everything(table) == before
    assert (table.num_rows, table.num_early, table.created, table.nonfinite) == totals
    rest = keys != np.uint64(VICTIM)
    assert push(table, keys[rest], step=2, seen=Seen(0, shown[rest])).applied == np.count_nonzero(rest)
    early = np.isin(keys, FULL, invert=True) & (shown[:, 0] + np.isin(keys, EARLY[::2]) < 3) & rest
    assert table.num_early == np.count_nonzero(early) + victim_exists


def test_the_gradient_of_what_is_not_there_meets_no_function():
    table = filled(table_of(own={"victim": VICTIM}), WITH_VICTIM)
    assert push(table, WITH_VICTIM).applied == len(WITH_VICTIM)


def test_a_late_segment_that_cannot_be_born():
    table = filled(table_of(own={"unborn": VICTIM}), WITH_VICTIM)
    before = everything(table)
    for make in (
        lambda: table.promote(WITH_VICTIM),
        lambda: table.write_values(WITH_VICTIM, np.ones((len(WITH_VICTIM), 3), f32), "own"),
        lambda: [list(table.scan(bucket)) for bucket in range(NUM_BUCKETS)],
    ):
        with pytest.raises(RequestError, match=rf"user_rows\.py:{line_of('init')} in init_state: RuntimeError"):
            make()
        assert everything(table) == before
    assert table.promote(EARLY) == len(EARLY)


def test_a_sweep_passes_over_what_is_not_there():
    table = filled(table_of())
    before = table.pull(KEYS)
    assert sum(table.sweep(b, step=2, learning_rates=RATES) for b in range(NUM_BUCKETS)) == len(KEYS)
    np.testing.assert_array_equal(table.pull(FULL), before[::2] + np.array([1, 1, 1, 1, 1, 0], f32))
    np.testing.assert_array_equal(table.pull(EARLY), before[1::2] + np.array([0, 0, 0, 1, 1, 0], f32))


def test_functions_see_initial_values_and_state(one):
    filled(one.table)
    push(one.table, KEYS)
    seen = rows_of(run(one, user_rows.StateAndSlot([1.0, 10.0, 100.0], segment="own"), KEYS))
    np.testing.assert_array_equal(seen[:, 0], np.tile(f32([8, 7]), len(FULL)))  # one more by a push
    np.testing.assert_array_equal(seen[:, 2], np.tile(f32([1.75 * 111, 2 * 111]), len(FULL)))
    seen = rows_of(run(one, user_rows.StateAndSlot([1.0, 0.0, 0.0, 10.0, 0.0, 100.0]), KEYS))
    np.testing.assert_array_equal(seen[:, 2], np.tile(f32([1.75 - 2.5 + 50, 2 - 2.5 + 50]), len(FULL)))


def test_a_keyed_update_that_names_the_segment_makes_it(one):
    filled(one.table)
    keys = unique_by_bucket(np.append(keys_in(range(NUM_BUCKETS), each=8), np.uint64(VICTIM)), NUM_BUCKETS)[0]
    payload = np.arange(3 * len(keys), dtype=f32).reshape(-1, 3)
    before = everything(one.table)
    with pytest.raises(RequestError, match="ValueError: row"):
        run(one, user_rows.TouchyRow(victim=VICTIM, segment="own"), keys, payload)
    assert everything(one.table) == before
    assert run(one, user_rows.TouchyRow(segment="own"), keys, payload).num_applied == len(keys)
    assert one.table.num_early == 0
    np.testing.assert_array_equal(one.table.pull(keys)[:, :3], payload + 2)


def test_a_row_that_is_refused_does_not_grow(one):
    filled(one.table, WITH_VICTIM)
    payload = np.ones((len(WITH_VICTIM), 3), f32)
    refusing = user_rows.TouchyRow(broken=VICTIM, segment="own")
    assert run(one, refusing, WITH_VICTIM, payload).num_nonfinite == 1
    assert one.table.num_early == 1
    victim = np.array([VICTIM], np.uint64)
    np.testing.assert_array_equal(one.table.pull(victim), f32([[2, 2, 2, 0, 0, 1]]))
    # What it would write into a segment that is not there is dropped, so nothing speaks against the rest.
    assert run(one, user_rows.InfiniteFirst(), WITH_VICTIM, sequence=10).num_nonfinite == len(KEYS)
    np.testing.assert_array_equal(one.table.pull(victim), f32([[2, 2, 2, 5, 5, 5]]))


def test_a_table_wide_update_writes_what_is_there(one):
    filled(one.table)
    push(one.table, KEYS)
    before = one.table.pull(KEYS)
    assert run(one, user_rows.TouchyTable(1, segment="own")).num_applied == len(FULL)
    assert run(one, user_rows.TouchyTable(1), sequence=10).num_applied == len(KEYS)
    assert one.table.num_early == len(EARLY)
    np.testing.assert_array_equal(one.table.pull(FULL), before[::2] * f32([4, 4, 4, 2, 2, 2]))
    np.testing.assert_array_equal(one.table.pull(EARLY), before[1::2] * f32([1, 1, 1, 2, 2, 2]))
