"""Which rows are evicted, against a dict of rows; what stays of them; and memory that comes back."""

import itertools
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.keys import pack, slot_of
from ps.spec import TableSpec
from ps.storage.eviction import Evictor
from ps.storage.table import Table
from ps.types import Seen

DAY = 86_400
ONE = np.ones(1, np.float32)
f32 = np.float32


def table_of(eviction, *, num_buckets=4, dim=2, **options):
    spec = {"segments": {"e": {"dim": dim, "optimizer": "adagrad"}}, "eviction": eviction, **options}
    return Table("ads", TableSpec.model_validate(spec), seed=5, num_buckets=num_buckets)


def push(table, keys, *, at, counts=None, value=1.0, step=1):
    gradients = np.full((len(keys), table.spec.width), value, f32)
    counts = None if counts is None else np.asarray(counts, f32)
    return table.push(keys, gradients, step=step, learning_rates=ONE, seen=Seen(at, counts))


def evict(table, *, at):
    evictor = Evictor(table)
    return sum(gone for bucket in range(table.num_buckets) for gone in evictor.evict(bucket, now=at))


def test_age_by_slot():
    table = table_of({"max_age_seconds": 10 * DAY, "slots": {3: 2 * DAY}})
    ids = np.arange(300, dtype=np.uint64)
    long, short = pack(1, ids), pack(3, ids)
    push(table, long, at=DAY)
    push(table, short, at=DAY)
    assert evict(table, at=3 * DAY) == 0
    assert evict(table, at=3 * DAY + 1) == 300
    assert not table.contains(short).any()
    push(table, long[:100], at=5 * DAY)
    push(table, long[:50], at=2 * DAY)  # an older event does not make a row older
    assert evict(table, at=11 * DAY + 1) == 200
    assert table.contains(long).sum() == 100 == table.num_rows
    assert evict(table, at=15 * DAY + 1) == 100


def test_score_decays_by_day():
    table = table_of({"min_score": 1.0}, score={"show": 0.5, "click": 1, "decay": 0.5})
    keys = np.arange(100, dtype=np.uint64)
    push(table, keys, at=10 * DAY, counts=np.tile([8, 0], (100, 1)))  # 4, halved daily
    assert evict(table, at=12 * DAY + DAY - 1) == 0
    assert evict(table, at=13 * DAY) == 100
    push(table, keys, at=10 * DAY, counts=np.tile([8, 0], (100, 1)))
    push(table, keys[:40], at=12 * DAY, counts=np.tile([2, 2], (40, 1)))  # 1 + 2
    assert evict(table, at=13 * DAY) == 60
    assert evict(table, at=14 * DAY) == 40


def test_norm_of_one_segment():
    segments = {"a": {"dim": 1, "optimizer": "sgd"}, "b": {"dim": 2, "optimizer": "sgd"}}
    spec = TableSpec.model_validate(
        {"segments": segments, "eviction": {"min_norm": 5.0, "norm_segment": "b"}, "admission": "always"}
    )
    table = Table("ads", spec, seed=5, num_buckets=2)
    keys = np.arange(3, dtype=np.uint64)
    rows = np.array([[9, 0, 0], [0, 3, 4], [9, 3, 3.9]], f32)
    table.push(keys, -rows, step=1, learning_rates=np.ones(2, f32))
    assert evict(table, at=0) == 2
    assert table.contains(keys).tolist() == [False, True, False]


def test_a_minimum_of_rows_stays():
    table = table_of({"max_age_seconds": 1, "min_rows": 100})
    push(table, np.arange(1000, dtype=np.uint64), at=0)
    evict(table, at=DAY)
    assert table.num_rows == 100
    assert (table.rows_per_bucket == 25).all()


def test_a_row_made_anew_remembers_nothing():
    table, fresh = (table_of({"max_age_seconds": DAY}, keep_counts=True) for _ in range(2))
    keys = np.arange(500, dtype=np.uint64)
    push(table, keys, at=0, counts=np.tile([9, 3], (500, 1)), value=3)
    assert evict(table, at=2 * DAY) == 500
    for each in (table, fresh):
        push(each, keys, at=3 * DAY, counts=np.tile([1, 0], (500, 1)), value=-1)
    for bucket in range(4):
        for (keys_a, images_a), (keys_b, images_b) in zip(table.read_images(bucket), fresh.read_images(bucket)):
            np.testing.assert_array_equal(keys_a, keys_b)
            np.testing.assert_array_equal(images_a, images_b)


events = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "evict", "delete"]),
        st.lists(st.integers(0, 40), min_size=1, max_size=30, unique=True),
        st.integers(0, 9 * DAY),
        st.integers(0, 3),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(events)
def test_against_a_dict_of_rows(calls):
    table = table_of(
        {"max_age_seconds": 4 * DAY, "slots": {1: DAY}, "min_score": 0.5},
        score={"show": 0.25, "click": 2, "decay": 0.75},
        num_buckets=2,
    )
    rows = {}
    for action, chosen, at, clicks in calls:
        keys = pack(0, np.array(chosen, np.uint64)) | (np.array(chosen, np.uint64) % np.uint64(2) << np.uint64(52))
        if action == "push":
            push(table, keys, at=at, counts=np.tile([clicks + 1, clicks], (len(keys), 1)))
            for key in keys.tolist():
                last, shows, kicks = rows.get(key, (at, f32(0), f32(0)))
                factor = f32(0.75 ** max(0, at // DAY - last // DAY))
                rows[key] = (max(last, at), shows * factor + f32(clicks + 1), kicks * factor + f32(clicks))
        elif action == "delete":
            table.delete(keys)
            rows = {key: row for key, row in rows.items() if key not in keys.tolist()}
        else:
            kept = {}
            for key, (last, shows, kicks) in rows.items():
                factor = f32(0.75 ** max(0, at // DAY - last // DAY))
                shows_now, kicks_now = float(shows * factor), float(kicks * factor)
                old = at - last > (DAY if slot_of(np.array([key], np.uint64))[0] == 1 else 4 * DAY)
                if not old and 0.25 * (shows_now - kicks_now) + 2 * kicks_now >= 0.5:
                    kept[key] = (last, shows, kicks)
            assert evict(table, at=at) == len(rows) - len(kept)
            rows = kept
        present = np.array(list(rows), np.uint64)
        assert table.contains(present).all()
        assert table.num_rows == len(rows)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_memory_of_evicted_rows_goes_back_to_the_system():
    table, keys = table_of({"max_age_seconds": DAY}, dim=16, num_buckets=64), np.arange(400_000, dtype=np.uint64)
    before = resident_bytes()
    push(table, keys, at=0)
    push(table, keys[:40_000], at=2 * DAY)
    full, full_resident = table.memory_bytes, resident_bytes() - before
    kept = table.pull(keys[:40_000])
    assert evict(table, at=2 * DAY) == 360_000
    assert table.memory_bytes < 0.2 * full
    assert resident_bytes() - before < full_resident - 0.7 * full
    np.testing.assert_array_equal(table.pull(keys[:40_000]), kept)
    for step in range(3):  # and again: nothing leaks
        push(table, keys, at=(3 + 2 * step) * DAY, step=step)
        assert table.memory_bytes < 1.1 * full
        evict(table, at=(5 + 2 * step) * DAY)
    assert table.num_rows == 0
    assert table.memory_bytes < 1 << 20


@pytest.mark.parametrize("order", ["oldest", "lowest_score"])
def test_room_is_made_by_evicting_the_least_worthy(order):
    table = table_of({"when_full": order}, memory_limit_bytes=4 << 20, num_buckets=8)
    evictor, rng = Evictor(table), np.random.default_rng(0)
    best = np.arange(2000, dtype=np.uint64)
    for day in range(1, 60):
        keys = np.unique(rng.integers(1 << 20, 1 << 50, 2000).astype(np.uint64))
        push(table, best, at=day * DAY, counts=np.tile([5, 1], (2000, 1)))
        push(table, keys, at=day * DAY, counts=np.tile([1, 0], (len(keys), 1)))
        running = evictor.make_room(np.arange(8))
        for _ in running or ():
            pass
        assert table.memory_bytes < 4 << 20
    assert 20_000 < table.num_rows < 110_000
    assert table.evicted > 5000
    assert table.contains(best).all()


def test_room_is_not_made_below_the_minimum():
    table = table_of({"when_full": "oldest", "min_rows": 1 << 20}, memory_limit_bytes=1 << 20, num_buckets=8)
    evictor, added = Evictor(table), itertools.count()
    with pytest.raises(Exception, match="memory_limit_bytes"):
        while True:
            push(table, np.arange(1000, dtype=np.uint64) + np.uint64(1000 * next(added)), at=DAY)
    assert evictor.make_room(np.arange(8)) is None
    assert not evictor.ask_for_room(np.arange(8))
