"""The hot-key cache: ages, bounds, admission by frequency, against a plain dictionary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.cache import HotCache


def keys_of(*values):
    return np.array(values, np.uint64)


def pull(cache, keys, value):
    """One step: read, then admit what was missing with rows that hold `value`. Returns (out, missing)."""
    out = np.full((len(keys), 2), np.nan, np.float32)
    missing, stamp = cache.read(keys, out)
    out[missing] = value
    cache.admit(keys, out, missing, stamp)
    return out, missing


def test_a_row_is_admitted_once_seen_often_enough_and_read_until_it_is_too_old():
    cache = HotCache(64, 2, max_age_steps=2, min_count=2)
    keys = keys_of(7)
    assert len(pull(cache, keys, 1.0)[1]) == 1  # step 1: seen once, not admitted
    assert cache.num_rows == 0
    assert len(pull(cache, keys, 2.0)[1]) == 1  # step 2: admitted
    for _ in (3, 4):
        out, missing = pull(cache, keys, -1.0)
        assert len(missing) == 0
        np.testing.assert_array_equal(out, [[2.0, 2.0]])
    out, missing = pull(cache, keys, 5.0)  # step 5: three steps old
    assert len(missing) == 1
    np.testing.assert_array_equal(pull(cache, keys, -1.0)[0], [[5.0, 5.0]])


def test_key_zero_is_a_key_like_any_other():
    cache = HotCache(8, 2, max_age_steps=9, min_count=1)
    assert not cache.contains(keys_of(0))[0]
    pull(cache, keys_of(0), 3.0)
    assert cache.contains(keys_of(0))[0]


def test_a_frequent_key_takes_the_place_of_a_rare_one_and_not_the_other_way_round():
    cache = HotCache(8, 2, max_age_steps=10**6, min_count=1)  # a single set of eight
    rare, hot, late = np.arange(8, dtype=np.uint64), keys_of(100), keys_of(200)
    pull(cache, rare, 1.0)
    assert cache.contains(rare).all()
    pull(cache, hot, 2.0)
    assert not cache.contains(hot)[0]  # once each: nobody gives way
    pull(cache, hot, 2.0)
    assert cache.contains(hot)[0]
    assert cache.num_rows == 8
    pull(cache, late, 3.0)
    assert not cache.contains(late)[0]
    assert cache.contains(hot)[0]


def test_an_answer_that_arrives_late_neither_overwrites_a_newer_row_nor_revives_an_old_one():
    cache = HotCache(8, 2, max_age_steps=3, min_count=1)
    keys, out = keys_of(5), np.zeros((1, 2), np.float32)
    missing, early = cache.read(keys, out)
    _, late = cache.read(keys, out)
    cache.admit(keys, np.full((1, 2), 2.0, np.float32), missing, late)
    assert cache.admit(keys, np.full((1, 2), 1.0, np.float32), missing, early) == 0
    cache.read(keys, out)
    np.testing.assert_array_equal(out, [[2.0, 2.0]])
    for _ in range(5):
        cache.read(keys_of(6), out)
    cache.clear()
    assert cache.admit(keys, out, missing, early) == 0


def test_hits_come_near_those_of_the_best_fixed_set_of_keys():
    generator = np.random.default_rng(5)
    steps = [np.unique(generator.zipf(1.3, 2000).astype(np.uint64)) for _ in range(120)]
    distinct, counts = np.unique(np.concatenate(steps[60:]), return_counts=True)
    best = np.sort(counts)[-1000:].sum() * (1 - 1 / 50)  # each row is fetched again once in 50 steps
    cache = HotCache(1000, 2, max_age_steps=50)
    hits = 0
    for step, keys in enumerate(steps):
        _, missing = pull(cache, keys, float(step))
        assert cache.num_rows <= cache.max_rows == 1000
        hits += (len(keys) - len(missing)) * (step >= 60)
    assert len(distinct) > 10_000
    assert hits > 0.75 * best


@pytest.mark.parametrize("max_age", [1, 4])
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True), max_size=25))
def test_every_hit_is_what_was_pulled_within_the_age(max_age, steps):
    cache = HotCache(16, 2, max_age_steps=max_age, min_count=1)
    pulled: dict[int, set[int]] = {}
    for step, wanted in enumerate(steps, 1):
        out, missing = pull(cache, np.array(wanted, np.uint64), float(step))
        hit = np.setdiff1d(np.arange(len(wanted)), missing)
        for i in hit:
            assert int(out[i, 0]) in pulled[wanted[i]]
            assert step - int(out[i, 0]) <= max_age
        for i in missing:
            pulled.setdefault(wanted[i], set()).add(step)
