"""Which keys earn a row, against exact counters; and what a refused push leaves behind: nothing but its shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.keys import bucket_of, pack
from ps.spec import TableSpec
from ps.storage.table import Table
from ps.types import Seen

ONE = np.ones(1, np.float32)
KEYS = np.unique(np.random.default_rng(1).integers(0, 1 << 52, 400).astype(np.uint64))


def table_of(admission, *, num_buckets=4, **options):
    spec = {"segments": {"e": {"dim": 2, "optimizer": "sgd"}}, "admission": admission, **options}
    return Table("ads", TableSpec.model_validate(spec), seed=5, num_buckets=num_buckets)


def push(table, keys, counts=None, step=1, value=1.0, event_time=0):
    gradients = np.full((len(keys), 2), value, np.float32)
    counts = None if counts is None else np.asarray(counts, np.float32)
    return table.push(keys, gradients, step=step, learning_rates=ONE, seen=Seen(event_time, counts))


def test_a_key_is_admitted_at_its_third_show_and_learns_from_then_on():
    table = table_of({"name": "count", "threshold": 3})
    for step in (1, 2):
        assert push(table, KEYS, step=step) == (0, 0, 0, len(KEYS))
        assert (table.pull(KEYS) == 0).all()
    assert push(table, KEYS, step=3) == (len(KEYS), len(KEYS), 0, 0)
    np.testing.assert_array_equal(table.pull(KEYS), np.full((len(KEYS), 2), -1, np.float32))
    assert (table.refused, table.created) == (2 * len(KEYS), len(KEYS))


def test_shows_of_one_push_count_together():
    table = table_of({"name": "count", "threshold": 5})
    shows = np.column_stack([np.arange(len(KEYS)) % 9, np.zeros(len(KEYS))])
    counts = push(table, KEYS, shows)
    np.testing.assert_array_equal(table.contains(KEYS), shows[:, 0] >= 5)
    assert counts.created == (shows[:, 0] >= 5).sum() == counts.applied


def test_slots_have_thresholds_of_their_own():
    table = table_of({"name": "count", "threshold": 2, "slots": {7: 1, 9: 4}})
    ids = np.arange(50, dtype=np.uint64)
    for step, admitted in enumerate([{7}, {7, 8}, {7, 8}, {7, 8, 9}], 1):
        for slot in (7, 8, 9):
            push(table, pack(slot, ids), step=step)
            assert table.contains(pack(slot, ids)).all() == (slot in admitted)
            assert table.contains(pack(slot, ids)).any() == (slot in admitted)


def test_a_score_counts_clicks_more_than_shows():
    table = table_of({"name": "score", "threshold": 2}, score={"show": 0.25, "click": 1})
    shown, clicked = KEYS[:100], KEYS[100:200]
    push(table, shown, np.tile([4, 0], (100, 1)))  # 1.0
    push(table, clicked, np.tile([4, 2], (100, 1)))  # 2.5
    assert not table.contains(shown).any()
    assert table.contains(clicked).all()
    push(table, shown, np.tile([4, 0], (100, 1)))
    assert table.contains(shown).all()


def test_chance_is_a_function_of_key_and_step():
    keys = np.arange(20_000, dtype=np.uint64)
    one, other = (table_of({"name": "chance", "probability": 0.3}, num_buckets=n) for n in (4, 16))
    created = push(one, keys, step=8).created
    assert abs(created / len(keys) - 0.3) < 0.02
    for part in np.array_split(keys[::-1], 7):
        push(other, np.ascontiguousarray(part), step=8)
    np.testing.assert_array_equal(one.contains(keys), other.contains(keys))
    absent = keys[~one.contains(keys)]
    assert abs(push(one, absent, step=9).created / len(absent) - 0.3) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    pushes=st.lists(st.dictionaries(st.integers(0, 60), st.integers(1, 5), min_size=1), max_size=12),
    threshold=st.integers(1, 9),
)
def test_never_later_than_an_exact_counter_says(pushes, threshold):
    """The sketch may take a key for more than it is, never for less; with room for all it is exact here."""
    table, exact = table_of({"name": "count", "threshold": threshold}), {}
    for step, shows in enumerate(pushes, 1):
        keys = np.array(list(shows), np.uint64)
        push(table, keys, np.column_stack([list(shows.values()), np.zeros(len(shows))]), step=step)
        for key, count in shows.items():
            exact[key] = exact.get(key, 0) + count
        keys = np.array(list(exact), np.uint64)
        earned = np.array([exact[key] >= threshold for key in keys.tolist()])
        np.testing.assert_array_equal(table.contains(keys), earned)


def test_a_full_sketch_forgets_keys_seen_once_and_keeps_its_size():
    table = table_of({"name": "count", "threshold": 2, "sketch_bytes": 1 << 14}, num_buckets=1)
    size = None
    for first in range(0, 200_000, 10_000):  # far more keys than its 8,192 counters
        push(table, np.arange(first, first + 10_000, dtype=np.uint64))
        size = size or table.admission.memory_bytes
        assert table.admission.memory_bytes == size == 1 << 14
    assert table.num_rows < 20_000  # those whose counters others had filled; without forgetting it were nearly all
    again = np.arange(10**6, 10**6 + 500, dtype=np.uint64)
    push(table, again)
    push(table, again)
    assert table.contains(again).all()


def test_keyed_updates_make_rows_of_admitted_keys_only():
    table = table_of({"name": "count", "threshold": 2})
    values = np.ones((len(KEYS), 2), np.float32)
    assert table.write_values(KEYS, values) == (0, 0, 0, len(KEYS))
    assert table.write_values(KEYS, values) == (len(KEYS), len(KEYS), 0, 0)


def test_what_keys_gathered_is_saved_and_dropped_with_their_bucket():
    table, copy = (table_of({"name": "count", "threshold": 2}) for _ in range(2))
    push(table, KEYS)
    for bucket in (0, 2):
        copy.admission.load(bucket, table.admission.save(bucket))
    assert copy.admission.save(1) == b""
    push(copy, KEYS)
    np.testing.assert_array_equal(copy.contains(KEYS), np.isin(bucket_of(KEYS, 4), (0, 2)))
    table.drop_bucket(3)
    push(table, KEYS)
    np.testing.assert_array_equal(table.contains(KEYS), bucket_of(KEYS, 4) != 3)
    table.clear()
    assert push(table, KEYS).created == 0
    with pytest.raises(RequestError, match="damaged"):
        table.admission.load(0, b"no zlib")


def test_a_table_that_is_full_refuses_or_says_so():
    limit = {"memory_limit_bytes": 1 << 20, "when_full": "refuse"}
    table, added = table_of("always", **limit), 0
    for first in range(0, 60_000, 2000):
        added += push(table, np.arange(first, first + 2000, dtype=np.uint64)).created
    assert 10_000 < added == table.num_rows < 60_000
    assert table.turned_away == 60_000 - added
    assert table.memory_bytes <= 1 << 20
    assert push(table, np.arange(1000, dtype=np.uint64), step=2).applied == 1000
