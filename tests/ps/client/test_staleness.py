"""What is seen when: staleness 0, N and -1, the hot-key cache, gradients held back, the bound on unsettled updates."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

import ps
from ps.unsettled import MAX_UNSETTLED
from tests.ps.client.conftest import fresh_keys


def ones(keys):
    return np.ones((len(keys), 4), np.float32)


def unacknowledged(client):
    return sum(not future.done() for _, future in client._unsettled._entries)


def test_at_staleness_0_a_read_sees_every_own_push_without_waiting_for_it(client):
    keys = fresh_keys(3000)
    before = client.pull("user", keys)
    for step in range(1, 11):
        client.push("user", keys, ones(keys), step=step, learning_rate=1.0)
        np.testing.assert_allclose(client.pull("user", keys), before - step, atol=1e-5)
    client.push("user", keys, ones(keys), step=11)
    assert client.get("user", ps.Size(), keys) == 3000


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_settle_leaves_at_most_so_many_on_their_way(connect, bound):
    client = connect(staleness=-1)
    keys = fresh_keys(5000)
    for step in range(1, 15):
        client.push("user", keys, ones(keys), step=step)
        client.settle(bound)
        assert unacknowledged(client) <= bound
    client.flush()
    assert unacknowledged(client) == 0
    assert client.stats()["pushes"] == 14


def test_more_updates_than_a_shard_remembers_wait_for_the_oldest(connect):
    client = connect(staleness=-1)
    keys = fresh_keys(300)
    before = client.pull("user", keys)
    for step in range(1, 3 * MAX_UNSETTLED):
        client.push("user", keys, ones(keys), step=step, learning_rate=1.0)
        assert unacknowledged(client) <= MAX_UNSETTLED
    client.flush()
    np.testing.assert_allclose(before - client.pull("user", keys), 3 * MAX_UNSETTLED - 1, rtol=1e-5)


def test_clients_have_numbers_of_their_own(connect):
    clients = [connect() for _ in range(4)]
    assert len({client._unsettled.client for client in clients}) == 4
    keys = fresh_keys(200)
    before = clients[0].pull("user", keys)

    def train(client):
        for step in range(1, 6):
            client.push("user", keys, ones(keys), step=step, learning_rate=1.0).wait()

    threads = [threading.Thread(target=train, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(before - clients[0].pull("user", keys), 20.0, rtol=1e-5)


def test_a_client_may_be_used_by_several_threads(connect):
    client = connect(staleness=-1)
    keys = fresh_keys(200)
    before = client.pull("user", keys)

    def train():
        for step in range(1, 11):
            client.push("user", keys, ones(keys), step=step, learning_rate=1.0)
            client.pull("user", keys)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.flush()
    np.testing.assert_allclose(before - client.pull("user", keys), 30.0, rtol=1e-5)


def test_cached_rows_are_read_until_they_are_too_old_and_never_updated_here(connect):
    client = connect(staleness=-1, cache={"max_age_steps": 2, "min_count": 1})
    keys = fresh_keys(100)
    start = client.pull("user", keys)
    client.push("user", keys, ones(keys), step=1, learning_rate=1.0).wait()
    sent = client.stats()["bytes_sent"]
    for _ in range(2):
        np.testing.assert_array_equal(client.pull("user", keys), start)
    assert client.stats()["bytes_sent"] == sent
    np.testing.assert_allclose(start - client.pull("user", keys), 1.0, atol=1e-6)
    stats = client.stats()
    assert stats["cache_hit_rate"] == 0.5
    assert stats["bytes_saved"] == 200 * (8 + 4 * 4)


def test_a_fresh_pull_passes_by_the_cache(connect):
    client = connect(staleness=-1, cache={"max_age_steps": 50, "min_count": 1})
    lookup = client.prepare({"user": fresh_keys(10)})
    start = client.start_pull(lookup).wait()["user"]
    client.start_push(lookup, {"user": np.ones_like(start)}, step=1, learning_rates={"user": 1.0}).wait()
    np.testing.assert_array_equal(client.start_pull(lookup).wait()["user"], start)
    np.testing.assert_allclose(start - client.start_pull(lookup, fresh=True).wait()["user"], 1.0, atol=1e-6)


def test_partly_cached_batches_are_put_together(connect):
    cached, plain = connect(staleness=-1, cache={"max_age_steps": 9, "min_count": 1}), connect()
    user, item = fresh_keys(60), fresh_keys(60)
    for keys in (user[:30], user[10:50], user):
        found = cached.start_pull(cached.prepare({"user": keys, "item": item})).wait()
        expected = plain.start_pull(plain.prepare({"user": keys, "item": item})).wait()
        for table in found:
            np.testing.assert_array_equal(found[table], expected[table])
    assert cached.stats()["cache_hits"] > 0


@pytest.mark.parametrize("change", ["update", "delete", "restore"])
def test_what_changes_a_table_otherwise_empties_its_cache(connect, change, tmp_path):
    client = connect(staleness=-1, cache={"max_age_steps": 99, "min_count": 1})
    keys = fresh_keys(20)
    client.save(str(tmp_path))
    start = client.pull("user", keys)
    client.push("user", keys, ones(keys), step=1, learning_rate=1.0).wait()
    client._forget_cached("user")
    pushed = client.pull("user", keys)
    if change == "update":
        client.update("user", ps.Scale(2.0), keys)
        np.testing.assert_array_equal(client.pull("user", keys), 2 * pushed)
    else:
        client.delete("user", keys) if change == "delete" else client.restore(str(tmp_path))
        np.testing.assert_array_equal(client.pull("user", keys), start)


def test_a_cache_takes_its_age_off_the_staleness(connect):
    client = connect(staleness=5, cache={"max_age_steps": 3})
    keys = fresh_keys(4000)
    for step in range(1, 12):
        client.push("user", keys, ones(keys), step=step)
        client.settle(5)
        assert unacknowledged(client) <= 2


def test_hot_gradients_are_summed_here_and_nothing_is_lost(connect):
    cache = {"max_age_steps": 99, "min_count": 1, "aggregate_hot_gradients_steps": 4}
    client, plain = connect(staleness=-1, cache=cache), connect()
    hot, cold = fresh_keys(10), fresh_keys(10)
    start = {name: plain.pull("user", keys) for name, keys in (("hot", hot), ("cold", cold))}
    client.pull("user", hot)

    def moved(name, keys):
        return start[name] - plain.pull("user", keys)

    for step in range(1, 4):
        client.push(
            "user", np.concatenate([hot, cold]), np.ones((20, 4), np.float32), step=step, learning_rate=1.0
        ).wait()
        np.testing.assert_array_equal(moved("hot", hot), 0)
        np.testing.assert_allclose(moved("cold", cold), step, atol=1e-5)
    client.push("user", hot, ones(hot), step=4, learning_rate=1.0).wait()
    np.testing.assert_allclose(moved("hot", hot), 4, atol=1e-5)
    client.push("user", hot, ones(hot), step=5, learning_rate=1.0)
    client.flush()
    np.testing.assert_allclose(moved("hot", hot), 5, atol=1e-5)
    client.push("user", hot, ones(hot), step=6, learning_rate=1.0)
    client.close()
    np.testing.assert_allclose(moved("hot", hot), 6, atol=1e-5)


def test_hot_gradients_pass_the_thresholds_first(connect):
    cache = {"max_age_steps": 99, "min_count": 1, "aggregate_hot_gradients_steps": 3}
    client = connect(staleness=-1, cache=cache, drop_above=3.0)
    keys = fresh_keys(4)
    start = client.pull("user", keys)
    gradients = ones(keys)
    gradients[0] = 100.0
    for step in (1, 2, 3):
        client.push("user", keys, gradients, step=step, learning_rate=1.0).wait()
    moved = (
        start
        - client.start_pull(client.prepare({"user": keys}), fresh=True).wait()["user"][
            client.prepare({"user": keys}).inverse["user"]
        ]
    )
    np.testing.assert_allclose(moved[:, 0], [0, 3, 3, 3], atol=1e-5)
    assert client.stats()["dropped_above"] == 3


def test_an_update_runs_after_own_pushes_however_late_they_leave(connect):
    client, keys = connect(staleness=-1), fresh_keys(50)
    client.push("item", keys, np.ones((50, 2), np.float32), step=1).wait()
    transport = client._connection.transport
    sent = transport.send

    def slowly(address, method, message, timeout_seconds):
        answer = Future()

        def send():
            done = sent(address, method, message, timeout_seconds)
            done.add_done_callback(lambda done: answer.set_result(done.result()))

        threading.Timer(0.3 if message.calls[0].psfunc == "push" else 0.0, send).start()
        return answer

    transport.send = slowly
    try:
        pushed = client.push("item", keys, np.ones((50, 2), np.float32), step=2)
        client.update("item", ps.Fill(7.0), keys)
        pushed.wait()
        assert (client.pull("item", keys) == 7).all()
        pushed = client.push("item", keys, np.ones((50, 2), np.float32), step=3)
        client.delete("item", keys)
        pushed.wait()
        assert client.get("item", ps.Size(), keys) == 0
    finally:
        transport.send = sent
