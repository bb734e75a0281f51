"""Shard processes that die, freeze, come back empty or are busy: one clear error in bounded time, never silence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ps
from ps.placement import ShardProcess
from tests.ps.client.conftest import SPEC, fresh_keys

WIDTH = 4


def start():
    return ps.LocalCluster(SPEC, shards=2, placement="process", name="doomed")


@pytest.fixture
def running():
    """A cluster for this test alone."""
    with start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def healthy():
    """A cluster that every test leaves as it found it."""
    with start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def wounded():
    """A cluster whose shard 0 was killed."""
    with start() as cluster:
        cluster.processes[0].process.kill()
        cluster.processes[0].process.wait()
        yield cluster


def options(**retry):
    return ps.ClientOptions(staleness=-1, retry=ps.RetryOptions(**{"unavailable_seconds": 1.0, **retry}))


def freeze(pid):
    """Stop a process, and wait until each of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)
    while any(
        (task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in Path(f"/proc/{pid}/task").iterdir()
    ):
        time.sleep(0.001)


def push(client, keys, step):
    return client.push("user", keys, np.ones((len(keys), WIDTH), np.float32), step=step)


def test_a_dead_shard_is_named_with_the_remedy(wounded):
    client = wounded.connect(options())
    keys = fresh_keys(2000)
    started = time.monotonic()
    address = wounded.addresses[0]
    expected = (
        rf"push of step 2 to table 'user': shard 0 of cluster 'doomed' at {address} cannot be reached after \d+ tries"
    )
    with pytest.raises(ps.UnavailableError, match=expected + r".* restore a checkpoint"):
        push(client, keys, 2).wait()
    assert time.monotonic() - started < 8
    assert client.stats()["retries"] > 1
    with pytest.raises(ps.UnavailableError, match=r"pull from table 'user': shard 0 .* cannot be reached"):
        client.pull("user", keys)
    client.close()


def test_a_shard_killed_in_the_middle_of_pushes_fails_those_and_raises_at_the_next_call(running):
    client = running.connect(options())
    keys = fresh_keys(20_000)
    push(client, keys, 1).wait()
    freeze(running.processes[0].pid)  # so that none of them is through before the end
    pushes = [push(client, keys, step) for step in range(2, 12)]
    running.processes[0].process.kill()
    deadline = time.monotonic() + 10
    while not all(each.done() for each in pushes):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for step in range(2, 12):
        with pytest.raises(ps.UnavailableError, match=rf"push of step {step} .* shard 0 of cluster 'doomed'"):
            client.settle(-1)
    client.close()


def test_a_failed_push_that_nobody_waited_for_raises_at_close(wounded):
    client = wounded.connect(options())
    keys = fresh_keys(100)
    push(client, keys, 2)
    with pytest.raises(ps.UnavailableError, match="push of step 2"):
        client.close()
    client.close()


def test_a_failed_push_that_was_waited_for_does_not_raise_again(wounded):
    client = wounded.connect(options())
    keys = fresh_keys(100)
    failed = push(client, keys, 2)
    for _ in range(2):
        with pytest.raises(ps.UnavailableError):
            failed.wait()
    client.settle(0)
    client.close()


def test_a_frozen_shard_times_out(healthy):
    client = healthy.connect(options(timeout_seconds=1.0))
    keys = fresh_keys(100)
    push(client, keys, 1).wait()
    freeze(healthy.processes[0].pid)
    started = time.monotonic()
    with pytest.raises(
        ps.UnavailableError, match=r"shard 0 of cluster 'doomed' at .* is frozen or overloaded: no answer within 1 s"
    ):
        client.pull("user", keys)
    assert time.monotonic() - started < 5
    os.kill(healthy.processes[0].pid, signal.SIGCONT)
    assert client.pull("user", keys).shape == (100, WIDTH)
    client.close()


def test_a_shard_that_pauses_for_less_than_the_timeout_is_only_slow(healthy):
    client = healthy.connect(options(timeout_seconds=20.0))
    keys = fresh_keys(100)
    freeze(healthy.processes[0].pid)
    future = push(client, keys, 1)
    with pytest.raises(TimeoutError, match=r"no answer yet after 0.2 s"):
        future.wait(0.2)
    os.kill(healthy.processes[0].pid, signal.SIGCONT)
    assert future.wait().applied == 100
    client.close()


def test_a_shard_that_came_back_empty_is_not_trained_on_until_restored(running, tmp_path):
    client, other = running.connect(options(unavailable_seconds=30.0)), running.connect(options())
    keys = fresh_keys(500)
    push(client, keys, 1).wait()
    rows = client.pull("user", keys)
    client.save(str(tmp_path))
    port = int(running.addresses[1].rpartition(":")[2])
    running.processes[1].process.kill()
    running.processes[1].process.wait()
    unnoticed = push(client, keys, 2)  # is on its way while the process is started anew
    running.processes[1].stop()
    running.processes[1] = ShardProcess(port=port)
    assert running.processes[1].address == running.addresses[1]
    lost = rf"shard 1 of cluster 'doomed' at {running.addresses[1]} lost its rows .* client.restore\(directory\)"
    with pytest.raises(ps.RowsLostError, match=lost):
        unnoticed.wait()
    with pytest.raises(ps.RowsLostError, match=lost):
        other.pull("user", keys)
    with pytest.raises(ps.RowsLostError, match=lost):
        running.connect()
    assert client.restore(str(tmp_path)).rows == 500
    np.testing.assert_array_equal(client.pull("user", keys), rows)
    np.testing.assert_array_equal(other.pull("user", keys), rows)
    client.close()
    other.close()


def test_a_restored_cluster_takes_pushes_of_the_same_steps_again(healthy, tmp_path):
    client = healthy.connect(options())
    keys = fresh_keys(50)
    client.save(str(tmp_path))
    push(client, keys, 1).wait()
    expected = client.pull("user", keys)
    client.restore(str(tmp_path))
    assert client.get("user", ps.Size(), keys) == 0
    assert push(client, keys, 1).wait().applied == 50
    np.testing.assert_array_equal(client.pull("user", keys), expected)
    client.close()


def test_closing_ends_rounds_that_are_being_retried(wounded):
    client = wounded.connect(options(unavailable_seconds=60.0))
    keys = fresh_keys(100)
    waiting = push(client, keys, 2)
    time.sleep(0.3)
    client._connection.close()
    with pytest.raises(ps.UnavailableError, match="the client was closed before it answered"):
        waiting.wait(5)


def test_nobody_listens_at_the_address():
    started = time.monotonic()
    with pytest.raises(ps.UnavailableError, match=r"no shard answers at 127\.0\.0\.1:1;"):
        ps.connect("127.0.0.1:1")
    assert time.monotonic() - started < 8


def test_a_shard_without_a_cluster():
    shard = ShardProcess()
    try:
        with pytest.raises(ps.RequestError, match="has no cluster yet"):
            ps.connect(shard.address)
    finally:
        shard.stop()


def test_a_port_in_use_is_said_by_the_shard_and_noticed_by_the_parent(healthy):
    taken = int(healthy.addresses[0].rpartition(":")[2])
    shard = ShardProcess(port=taken)
    with pytest.raises(ps.UnavailableError, match="a shard process ended with status 2"):
        shard.address  # noqa: B018


def test_shards_end_with_the_process_that_started_them():
    code = (
        "import ps, os, time\n"
        "from tests.ps.client.conftest import SPEC\n"
        "cluster = ps.LocalCluster(SPEC, shards=1, placement='process')\n"
        "print(cluster.processes[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the shard outlived its parent"
        time.sleep(0.05)
