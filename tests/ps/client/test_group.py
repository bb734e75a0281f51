"""The synchronous group: the messages of all ranks become one update of the global batch."""

import threading

import numpy as np
import pytest

import ps
from tests.ps.client.conftest import fresh_keys


def run_ranks(functions):
    errors = []

    def guarded(function):
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def open_group(connect, world, *, generation, **options):
    return [connect(group={"generation": generation, "rank": rank, "world": world}, **options) for rank in range(world)]


_GENERATION = iter(range(1, 1000))


@pytest.fixture
def generation():
    return next(_GENERATION)


def test_two_workers_make_the_update_of_the_mean_gradient(connect, generation):
    ranks = open_group(connect, 2, generation=generation)
    keys = fresh_keys(40)
    before = ranks[0].pull("user", keys)
    parts = [keys[:30], keys[20:]]
    generator = np.random.default_rng(2)
    gradients = [generator.normal(size=(len(part), 4)).astype(np.float32) for part in parts]

    def push(rank):
        ranks[rank].push("user", parts[rank], gradients[rank], step=1, learning_rate=1.0).wait()

    run_ranks([lambda rank=rank: push(rank) for rank in range(2)])
    total = np.zeros((40, 4), np.float32)
    total[:30] += gradients[0]
    total[20:] += gradients[1]
    np.testing.assert_allclose(before - ranks[1].pull("user", keys), total / 2, atol=1e-6)


def test_nobody_is_answered_before_the_last_rank_has_come_even_without_keys(connect, generation):
    ranks = open_group(connect, 2, generation=generation)
    keys = fresh_keys(1)  # lives at one shard; the other ones wait for this step as well
    before = ranks[0].pull("user", keys)
    first = ranks[0].push("user", keys, np.ones((1, 4), np.float32), step=1, learning_rate=1.0)
    with pytest.raises(TimeoutError):
        first.wait(0.2)
    ranks[1].push("user", [], np.empty((0, 4), np.float32), step=1, learning_rate=1.0).wait()
    first.wait()
    np.testing.assert_allclose(before - ranks[1].pull("user", keys), 0.5, atol=1e-6)


def test_thresholds_judge_the_sum_at_the_shard(connect, generation):
    ranks = open_group(connect, 2, generation=generation, drop_above=3.0)
    keys = fresh_keys(2)
    before = ranks[0].pull("user", keys)
    opposite = [np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)]
    opposite[0][:, 0], opposite[1][:, 0] = [100.0, 4.0], [-98.0, 4.0]  # the means are 1 and 4
    counts = {}

    def push(rank):
        counts[rank] = ranks[rank].push("user", keys, opposite[rank], step=1, learning_rate=1.0).wait()

    run_ranks([lambda rank=rank: push(rank) for rank in range(2)])
    np.testing.assert_allclose((before - ranks[0].pull("user", keys))[:, 0], [1.0, 0.0], atol=1e-6)
    assert counts[0].dropped_above == 1


def test_a_new_generation_ends_the_steps_of_the_old_one(connect):
    old = open_group(connect, 2, generation=next(_GENERATION))
    keys = fresh_keys(10)
    before = old[0].pull("user", keys)
    waiting = old[0].push("user", keys, np.ones((10, 4), np.float32), step=1, learning_rate=1.0)
    (new,) = open_group(connect, 1, generation=next(_GENERATION))
    new.push("user", keys, np.ones((10, 4), np.float32), step=1, learning_rate=1.0).wait()
    with pytest.raises(ps.ExpiredError, match=r"push of step 1 .* 1 of 2 ranks when generation"):
        waiting.wait(10)
    np.testing.assert_allclose(before - new.pull("user", keys), 1.0, atol=1e-6)


def test_a_group_sweeps_once_a_step(connect, generation):
    ranks = open_group(connect, 2, generation=generation)
    keys = fresh_keys(20)

    def push(rank):
        gradients = np.ones((20, 2), np.float32)
        ranks[rank].push("swept", keys, gradients, step=1, learning_rate=0.5).wait()

    run_ranks([lambda rank=rank: push(rank) for rank in range(2)])
    np.testing.assert_allclose(ranks[0].pull("swept", keys), -0.5, rtol=1e-5)
