"""Synchronous groups: which messages make a step, which are dropped, and the sum of the global batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import ExpiredError, RequestError
from ps.synchronous import Groups, Place, RankPart, global_batch
from tests.ps.driving import NUM_BUCKETS, keys_of


def place(rank, *, generation=1, step=1, world=3):
    return Place(generation, step, rank, world)


@given(st.permutations(range(3)))
def test_a_step_is_complete_with_its_last_rank_and_in_rank_order(order):
    groups = Groups()
    for rank in order[:-1]:
        assert groups.add(place(rank), f"m{rank}").complete is None
    assert groups.num_waiting == 2
    assert groups.add(place(order[-1]), f"m{order[-1]}").complete == ["m0", "m1", "m2"]
    assert groups.num_waiting == 0


def test_steps_do_not_mix():
    groups = Groups()
    groups.add(place(0, step=1, world=2), "a")
    groups.add(place(0, step=2, world=2), "b")
    assert groups.waiting(place(0, step=2, world=2)) == "b"
    assert groups.waiting(place(1, step=2, world=2)) is None
    assert groups.add(place(1, step=2, world=2), "c").complete == ["b", "c"]
    assert groups.num_waiting == 1


def test_a_new_generation_drops_incomplete_steps_and_refuses_the_old():
    groups = Groups()
    groups.add(place(2, step=4), "late")
    groups.add(place(0, step=5), "later")
    arrival = groups.add(place(0, generation=2, step=4), "new")
    assert [message for message, _ in arrival.dropped] == ["late", "later"]
    assert "step 4 of generation 1 had 1 of 3 ranks" in str(arrival.dropped[0][1])
    with pytest.raises(ExpiredError, match="the group was restarted"):
        groups.add(place(1, step=4), "ghost")
    assert groups.waiting(place(0, step=5)) is None
    assert groups.clear() == ["new"]


def test_contradictions():
    groups = Groups()
    groups.add(place(0), "a")
    with pytest.raises(RequestError, match="rank 1 says world 2, other ranks say 3"):
        groups.add(place(1, world=2), "b")
    with pytest.raises(RequestError, match="two messages of rank 0"):
        groups.add(place(0), "c")


ranks = st.lists(st.dictionaries(st.integers(1, 12), st.floats(-8, 8, width=32), max_size=8), min_size=1, max_size=4)


@given(ranks)
def test_global_batch_sums_in_rank_order(parts):
    built = []
    for part in parts:
        keys = keys_of(*part)
        by_key = {int(keys_of(number)[0]): value for number, value in part.items()}
        built.append(RankPart(keys, np.array([[by_key[int(key)]] * 2 for key in keys], np.float32).reshape(-1, 2)))
    batch = global_batch(built, world=len(parts), num_buckets=NUM_BUCKETS)
    expected = {}
    for part in built:
        for key, gradient in zip(part.keys.tolist(), part.gradients):
            expected[key] = expected.get(key, np.zeros(2, np.float32)) + gradient
    assert set(batch.keys.tolist()) == set(expected)
    assert len(batch.keys) == len(expected)
    for key, gradient in zip(batch.keys.tolist(), batch.gradients):
        np.testing.assert_array_equal(gradient, expected[key] / np.float32(len(parts)))
    np.testing.assert_array_equal(batch.keys, keys_of_raw(batch.keys))


def keys_of_raw(keys):
    from ps.storage.unique import unique_by_bucket

    return unique_by_bucket(keys, NUM_BUCKETS)[0]


def test_thresholds_judge_the_mean():
    keys = keys_of(1, 2, 3)
    parts = [
        RankPart(keys, np.array([[3, 4], [0.1, 0], [1, 1]], np.float32)),
        RankPart(keys, np.array([[3, 4], [0, 0], [1, 1]], np.float32)),
    ]
    batch = global_batch(parts, world=2, num_buckets=NUM_BUCKETS, drop_above=4.5, drop_below=0.1)
    assert (batch.num_above, batch.num_below, batch.num_nonfinite) == (1, 1, 0)
    assert batch.keys.tolist() == [keys[2]]
    np.testing.assert_array_equal(batch.gradients, [[1, 1]])
