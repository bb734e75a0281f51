"""The shard as a state machine: races as lists of events, exactly once, places in the routing, groups."""

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.errors import ExpiredError, RequestError, WrongEpochError
from ps.keys import bucket_of
from ps.request import check_request
from ps.shard import Shard
from ps.wire import weir_pb2 as pb
from tests.ps.driving import NUM_BUCKETS, TWO_TABLES, Driver, call, keys_in, keys_of, message, push, steps

KEYS = keys_in(range(NUM_BUCKETS))


def test_a_repeated_push_is_applied_once():
    driver = Driver()
    before = driver.pull(KEYS)
    first = driver.do(push(KEYS, 0.25), sequence=1).results[0]
    again = driver.do(push(KEYS, 0.25), sequence=1).results[0]
    assert (first.num_applied, first.num_created, first.num_skipped) == (32, 32, 0)
    assert (again.num_applied, again.num_created, again.num_skipped) == (0, 0, 32)
    np.testing.assert_array_equal(driver.pull(KEYS), before - np.float32(0.25))


def test_a_repeat_that_meets_the_running_one_runs_after_it_and_skips():
    driver = Driver(TWO_TABLES)
    driver.do(push(KEYS, 1.0, table="item", width=2), sequence=1)
    request = message(call("sweep", table="item"), sequence=2)
    first = driver.send(request)
    assert driver.shard.run_slice()  # one bucket of it
    second = driver.send(request)
    driver.run()
    assert first.result(0).results[0].num_applied == 32
    assert (second.result(0).results[0].num_applied, second.result(0).results[0].num_skipped) == (0, NUM_BUCKETS)


def test_only_the_buckets_that_lack_an_update_take_it():
    driver = Driver()
    half, rest = keys_in([0, 1, 2]), keys_in([3, 4])
    driver.do(push(half, 1.0), sequence=5)
    result = driver.do(push(np.concatenate([half, rest]), 1.0), sequence=5).results[0]
    assert (result.num_applied, result.num_skipped) == (4, 6)
    result = driver.do(call("scale", args=b"\x81\xa6factor\x02"), sequence=5).results[0]
    assert (result.num_applied, result.num_skipped) == (0, 5)  # buckets 0..4 had sequence 5, the others have no rows


def test_too_old_an_update_is_refused_whole():
    driver = Driver()
    driver.do(push(keys_in([1]), 1.0), sequence=100)
    before = driver.pull(KEYS)
    with pytest.raises(ExpiredError, match="update 36 of client"):
        driver.do(push(KEYS, 1.0), sequence=36)
    np.testing.assert_array_equal(driver.pull(KEYS), before)
    driver.do(push(KEYS, 1.0), sequence=37)


events = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.booleans()), min_size=1, max_size=25
)


@settings(max_examples=25)
@given(events)
def test_duplicated_and_reordered_messages_end_as_if_each_came_once(history):
    """(client, sequence, which quarter of the buckets, run a slice now): any order, any repeats."""
    driver = Driver()
    parts = [keys_in(range(4 * quarter, 4 * quarter + 4)) for quarter in range(4)]
    start, answers = driver.pull(KEYS), []
    for client, sequence, quarter, run in history:
        gradient = 2.0 ** -(client * 4 + sequence)
        answers.append(driver.send(message(push(parts[quarter], gradient), client=client, sequence=sequence)))
        if run:
            driver.shard.run_slice()
    driver.run()
    for answer in answers:
        assert answer.result(0).results[0].num_applied + answer.result(0).results[0].num_skipped == 8
    moved = (start - driver.pull(KEYS)).reshape(4, 8, 3)
    for quarter in range(4):
        distinct = {(client, sequence) for client, sequence, q, _ in history if q == quarter}
        total = sum(2.0 ** -(client * 4 + sequence) for client, sequence in distinct)
        np.testing.assert_allclose(moved[quarter], total, atol=1e-6)


def test_pulls_overtake_a_sweep_that_is_acknowledged_only_at_its_end():
    driver = Driver(TWO_TABLES)
    swept = keys_in(range(NUM_BUCKETS))
    update = driver.send(message(push(swept, 1.0, table="item", width=2), call("sweep", table="item"), sequence=1))
    pulls = []
    while not update.done():
        pulls.append(driver.send(message(call("pull", keys=KEYS))))
        driver.shard.run_slice()
    assert sum(pull.done() for pull in pulls) >= 4
    driver.run()
    assert all(pull.done() for pull in pulls)
    assert update.result(0).results[1].num_applied == len(swept)


def test_messages_with_another_epoch_or_foreign_buckets_are_refused_whole():
    driver = Driver(shards=2, shard=0, epoch=3)
    own, foreign = keys_in(range(8)), keys_in([8])
    with pytest.raises(WrongEpochError, match="routing epoch 2 at shard 0, now at 3"):
        driver.do(push(own), sequence=1, epoch=2)
    with pytest.raises(WrongEpochError, match="bucket 8 is not owned by shard 0"):
        driver.do(push(np.concatenate([own, foreign])), sequence=1, epoch=3)
    assert driver.table.num_rows == 0
    assert driver.do(push(own), sequence=1, epoch=3).results[0].num_applied == 16


def test_an_assign_waits_for_running_updates_and_those_behind_it_see_the_new_epoch():
    driver = Driver()
    running = driver.send(message(call("scale", args=b"\x81\xa6factor\x02"), sequence=1))
    driver.shard.run_slice()
    moved = Future()
    routing = driver.shard.holding.routing
    driver.shard.assign(driver.spec, type(routing)(2, routing.owners, routing.addresses), 0, moved)
    behind = driver.send(message(call("size"), epoch=1))
    driver.run()
    assert running.exception() is None
    assert moved.exception() is None
    with pytest.raises(WrongEpochError):
        behind.result(0)


def test_places():
    shard = Shard(clock=steps())
    answer = Future()
    shard.receive(check_request(message(call("size")), TWO_TABLES), answer)
    with pytest.raises(WrongEpochError, match="no place in a cluster yet"):
        answer.result(0)
    driver = Driver(epoch=5)
    driver.place(epoch=5)  # the same once more
    with pytest.raises(WrongEpochError, match="at routing epoch 5; 4 is older"):
        driver.place(epoch=4)
    with pytest.raises(RequestError, match="another routing has epoch 5"):
        driver.place(epoch=5, shards=2)
    driver.spec = TWO_TABLES
    with pytest.raises(RequestError, match="another spec"):
        driver.place(epoch=6)


def test_a_bucket_that_moves_away_is_dropped_with_what_was_applied():
    driver = Driver()
    driver.do(push(KEYS), sequence=1)
    driver.place(shards=2, epoch=2)
    assert driver.table.num_rows == 16
    driver.place(shards=1, epoch=3)
    result = driver.do(push(KEYS), sequence=1, epoch=3).results[0]
    assert (result.num_applied, result.num_skipped) == (16, 16)


def grouped(rank, *calls, step=1, generation=1, world=2, sequence=None, epoch=1):
    return message(
        *calls, client=10 + rank, sequence=sequence or step, step=step, group=(generation, rank, world), epoch=epoch
    )


def test_two_ranks_of_a_batch_equal_one_of_twice_the_batch():
    single, double = Driver(), Driver()
    left, right = keys_of(1, 2, 3, 4), keys_of(3, 4, 5, 6)
    everything = keys_of(*range(1, 7))
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        a, b = rng.normal(size=(2, 4, 3)).astype(np.float32)
        sums = {key: np.zeros(3, np.float32) for key in everything.tolist()}
        for keys, rows in ((left, a), (right, b)):
            for key, row in zip(keys.tolist(), rows):
                sums[key] += row
        means = np.array([sums[key] for key in everything.tolist()]) / np.float32(2)
        single.do(push(everything, means), sequence=step, step=step)
        answers = [
            double.send(grouped(1, push(right, b), step=step)),
            double.send(grouped(0, push(left, a), step=step)),
        ]
        double.run()
        for answer, keys in zip(answers, (right, left)):
            assert answer.result(0).results[0].num_applied == len(everything), keys
    np.testing.assert_array_equal(single.pull(everything), double.pull(everything))


def test_a_group_waits_for_its_last_rank_and_repeats_are_skipped():
    driver = Driver()
    first = driver.send(grouped(0, push(KEYS, 2.0)))
    again = driver.send(grouped(0, push(KEYS, 2.0)))
    driver.run()
    assert not first.done()
    assert driver.shard.num_waiting_for_ranks == 1
    assert driver.table.num_rows == 0
    last = driver.send(grouped(1))  # has no keys here
    driver.run()
    assert first.result(0) is again.result(0)
    assert len(last.result(0).results) == 0
    after = driver.pull(KEYS)
    late = [driver.send(grouped(0, push(KEYS, 2.0))), driver.send(grouped(1))]
    driver.run()
    assert late[0].result(0).results[0].num_skipped == len(KEYS)
    assert len(late[1].result(0).results) == 0
    np.testing.assert_array_equal(driver.pull(KEYS), after)


def test_a_repeat_that_meets_the_running_group_gets_its_answer():
    driver = Driver(TWO_TABLES)
    parts = [(push(KEYS, 1.0, table="item", width=2), call("sweep", table="item"))] * 2
    answers = [driver.send(grouped(rank, *parts[rank])) for rank in (0, 1)]
    assert driver.shard.run_slice()
    again = driver.send(grouped(1, *parts[1]))
    driver.run()
    assert again.result(0) is answers[1].result(0)
    assert driver.shard.num_waiting_for_ranks == 0


def test_a_new_generation_fails_those_who_wait_for_a_missing_rank():
    driver = Driver()
    waiting = driver.send(grouped(0, push(KEYS), step=7))
    fresh = [driver.send(grouped(rank, push(KEYS, 1.0), step=7, generation=2, sequence=8)) for rank in (0, 1)]
    driver.run()
    with pytest.raises(ExpiredError, match="step 7 of generation 1 had 1 of 2 ranks when generation 2 began"):
        waiting.result(0)
    assert all(answer.result(0).results[0].num_applied == len(KEYS) for answer in fresh)
    ghost = driver.send(grouped(1, push(KEYS), step=7, sequence=9))
    driver.run()
    with pytest.raises(ExpiredError, match="the group was restarted"):
        ghost.result(0)


def test_a_moved_routing_fails_those_who_wait_so_that_they_send_again():
    driver = Driver()
    waiting = driver.send(grouped(0, push(KEYS)))
    driver.place(epoch=2)
    with pytest.raises(WrongEpochError, match="moved to epoch 2"):
        waiting.result(0)
    answers = [driver.send(grouped(rank, push(KEYS, 1.0), epoch=2)) for rank in (0, 1)]
    driver.run()
    assert [answer.result(0).results[0].num_applied for answer in answers] == [len(KEYS)] * 2


def test_group_thresholds_and_sweeps():
    driver = Driver(TWO_TABLES)
    keys = keys_of(1, 2, 3)
    rows = np.array([[30, 40], [0.01, 0], [1, 1]], np.float32)
    answers = [
        driver.send(
            grouped(
                rank,
                push(keys, rows, table="item", width=2, drop_above=45, drop_below=0.1),
                call("sweep", table="item"),
            )
        )
        for rank in (0, 1)
    ]
    driver.run()
    for answer in answers:
        pushed, swept = answer.result(0).results
        assert (pushed.num_dropped_above, pushed.num_dropped_below, pushed.num_applied) == (1, 1, 1)
        assert swept.num_applied == 1
    counts = driver.shard.holding.counts
    assert (counts.dropped_above, counts.dropped_below, counts.applied) == (1, 1, 2)


def test_a_group_whose_rows_are_all_dropped_is_applied_all_the_same():
    driver = Driver()
    for _ in range(2):
        answers = [driver.send(grouped(rank, push(KEYS, 50.0, drop_above=1.0))) for rank in (0, 1)]
        driver.run()
    assert [answer.result(0).results[0].num_skipped for answer in answers] == [len(KEYS)] * 2
    assert driver.table.num_rows == 0


def test_ranks_that_disagree_are_told():
    driver = Driver()
    answers = [driver.send(grouped(0, push(KEYS))), driver.send(grouped(1, push(KEYS, learning_rates=[1, 2])))]
    driver.run()
    for answer in answers:
        with pytest.raises(RequestError, match="rank 1 gives push on table 'user' other learning rates"):
            answer.result(0)
    assert driver.table.num_rows == 0


def test_one_shard_or_four_give_the_same_rows():
    one, four = Driver(), [Driver(shards=4, shard=number) for number in range(4)]
    rng = np.random.default_rng(1)
    for step in range(1, 4):
        rows = rng.normal(size=(len(KEYS), 3)).astype(np.float32)
        one.do(push(KEYS, rows), sequence=step, step=step)
        for number, driver in enumerate(four):
            own = bucket_of(KEYS, NUM_BUCKETS) // 4 == number
            driver.do(push(KEYS[own], rows[own]), sequence=step, step=step)
    apart = np.concatenate([d.pull(KEYS[bucket_of(KEYS, NUM_BUCKETS) // 4 == n]) for n, d in enumerate(four)])
    np.testing.assert_array_equal(one.pull(KEYS), apart)


def test_the_observer_hears_of_every_kind():
    heard = []
    driver = Driver(observe=lambda kind, seconds: heard.append((kind, seconds > 0)))
    driver.do(push(KEYS), sequence=1)
    driver.pull(KEYS)
    driver.do(call("size"))
    assert heard == [("apply", True), ("pull", True), ("other", True)]


def test_clients_expire_by_idle_time():
    driver = Driver(max_idle_seconds=10.0)
    driver.do(push(KEYS), sequence=1)
    for _ in range(100):
        driver.shard.run_slice()
    with pytest.raises(ExpiredError, match="quiet for too long"):
        driver.do(push(KEYS), sequence=2)
    assert driver.do(push(KEYS), client=2, sequence=1).results[0].num_applied == len(KEYS)


def test_pull_answers_in_the_dtype_asked_for():
    driver = Driver()
    rows = driver.pull(KEYS)
    reply = driver.do(call("pull", keys=KEYS, dtype=pb.FLOAT16))
    np.testing.assert_array_equal(
        np.frombuffer(reply.results[0].payload, "<f2").reshape(-1, 3), rows.astype(np.float16)
    )
