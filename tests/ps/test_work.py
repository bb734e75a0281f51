"""The one thread of work: overload, long work between short, the end, many callers at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_all

import numpy as np
import pytest

from ps.errors import OverloadedError, RequestError, UnavailableError, WrongEpochError
from ps.routing import Routing
from ps.shard import Shard
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats
from ps.work import WorkThread
from tests.ps.driving import NUM_BUCKETS, SPEC, TWO_TABLES, call, keys_in, keys_of, message, push

KEYS = keys_in(range(NUM_BUCKETS))


def assigned(spec=SPEC, *, slice_seconds=0.005, **options):
    thread = WorkThread(Shard(slice_seconds=slice_seconds), **options)
    routing = Routing.initial(spec.num_buckets, ["a:1"]).to_message()
    request = pb.AssignRequest(cluster_spec=spec.model_dump_json().encode(), routing=routing)
    thread.assign(request).result(120)
    return thread


@pytest.fixture
def thread():
    started = assigned()
    yield started
    started.close()


def hold(thread):
    """Keeps the thread of work busy until the event is set."""
    release = threading.Event()
    thread._inbox.put(release.wait)
    while thread._inbox.qsize():
        time.sleep(0.001)
    return release


def test_a_full_queue_refuses_and_recovers():
    thread = assigned(capacity=3)
    release = hold(thread)
    taken = [thread.execute(message(push(KEYS), sequence=number)) for number in (1, 2, 3)]
    with pytest.raises(OverloadedError, match="shard 0 has 3 messages waiting; back off"):
        thread.execute(message(push(KEYS), sequence=4))
    assert (thread.num_overloaded, thread.queue_depth) == (1, 3)
    assert thread.status().queue_depth == 3
    release.set()
    assert [answer.result(10).results[0].num_applied for answer in taken] == [len(KEYS)] * 3
    assert thread.execute(message(push(KEYS), sequence=4)).result(10).results[0].num_applied == len(KEYS)
    thread.close()


def test_those_who_wait_for_ranks_do_not_fill_the_queue():
    thread = assigned(capacity=2)
    ranks = [
        thread.execute(message(push(KEYS), client=rank + 1, sequence=1, group=(1, rank, 5)))
        for rank in range(4)
        if wait_until(lambda: thread.queue_depth == 0)
    ]
    assert wait_until(lambda: thread.shard.num_waiting_for_ranks == 4)
    thread.execute(message(push(KEYS), client=5, sequence=1, group=(1, 4, 5)))
    assert {answer.result(10).results[0].num_applied for answer in ranks} == {len(KEYS)}
    thread.close()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_the_end_answers_whoever_waits():
    thread = assigned()
    waiting = thread.execute(message(push(KEYS), sequence=1, group=(1, 0, 2)))
    thread.close()
    with pytest.raises(UnavailableError, match="was stopped"):
        waiting.result(1)
    with pytest.raises(UnavailableError, match="was stopped"):
        thread.execute(message(call("size")))


def test_before_an_assign(thread):
    fresh = WorkThread(Shard())
    with pytest.raises(WrongEpochError, match="no place in a cluster yet"):
        fresh.execute(message(call("size")))
    assert fresh.status().cluster_spec == b""
    with pytest.raises(RequestError, match="cluster spec cannot be read"):
        fresh.assign(pb.AssignRequest(cluster_spec=b"{}"))
    with pytest.raises(RequestError, match="no whole number of int32"):
        bad = pb.Routing(owners=b"123")
        fresh.assign(pb.AssignRequest(cluster_spec=SPEC.model_dump_json().encode(), routing=bad))
    fresh.close()


def test_status(thread):
    thread.execute(message(push(KEYS), sequence=1)).result(10)
    status = thread.status()
    assert status.routing.epoch == 1
    assert b"user" in status.tables
    assert status.uptime_seconds > 0


def test_a_pull_sees_every_push_acknowledged_before_it(thread):
    """Many callers at once, each reading its own writes; in the end every push has been applied exactly once."""
    num_callers, num_pushes = 8, 20
    start = rows_of(thread, KEYS)

    def caller(number):
        own = keys_of(number + 10_000)
        expected = rows_of(thread, own)
        for sequence in range(1, num_pushes + 1):
            request = message(push(KEYS, 0.125), client=number + 1, sequence=sequence)
            thread.execute(request).result(30)
            thread.execute(request).result(30)
            mine = message(push(own, 1.0), client=100 + number, sequence=sequence)
            thread.execute(mine).result(30)
            expected = expected - np.float32(1)
            np.testing.assert_array_equal(rows_of(thread, own), expected)

    with ThreadPoolExecutor(num_callers) as pool:
        for done in wait_all([pool.submit(caller, number) for number in range(num_callers)]).done:
            done.result()
    np.testing.assert_allclose(rows_of(thread, KEYS), start - num_callers * num_pushes * 0.125, atol=1e-4)


def rows_of(thread, keys):
    reply = thread.execute(message(call("pull", keys=keys))).result(30)
    return decode_floats(reply.results[0].payload, pb.FLOAT32, 3)


def test_reads_and_updates_go_on_during_a_save(thread, tmp_path):
    thread.execute(message(push(KEYS, 1.0), sequence=1)).result(10)
    before = rows_of(thread, KEYS)
    saving = threading.Thread(target=thread.save, args=(str(tmp_path),))
    saving.start()
    thread.execute(message(push(KEYS, 1.0), sequence=2)).result(30)
    np.testing.assert_array_equal(rows_of(thread, KEYS), before - 1)
    saving.join(30)
    assert list(tmp_path.glob("*.weir"))


def test_a_long_sweep_lets_pulls_through():
    """With slices of one bucket: a pull that comes behind a sweep is answered before it."""
    thread = assigned(TWO_TABLES, slice_seconds=0.0)
    thread.execute(message(push(KEYS, 1.0, table="item", width=2), sequence=1)).result(60)
    release, order = hold(thread), []
    sweep = thread.execute(message(call("sweep", table="item"), sequence=2))
    pull = thread.execute(message(call("pull", keys=KEYS)))
    for name, answer in (("sweep", sweep), ("pull", pull)):
        answer.add_done_callback(lambda _, name=name: order.append(name))
    release.set()
    assert sweep.result(30).results[0].num_applied == len(KEYS)
    assert order == ["pull", "sweep"]
    thread.close()
