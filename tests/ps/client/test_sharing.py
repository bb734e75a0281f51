"""Clients of shards on the same machine: the same rows through shared memory as through bytes, and what happens when
memory cannot be shared or a shard answers too late.
"""

import errno
import os
import signal
import sys
import time

import numpy as np
import pytest

import ps
from tests.ps.client.conftest import SPEC, fresh_keys
from tests.ps.client.test_faults import freeze

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous files in memory are Linux's")


@pytest.fixture(scope="module")
def shards():
    with ps.LocalCluster(SPEC, shards=2, placement="process") as running:
        yield running


def open_client(shards, share_from_bytes, **options):
    return shards.connect(ps.ClientOptions(share_from_bytes=share_from_bytes, **options))


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("num_keys", [1, 300, 5000])
def test_rows_are_the_same(shards, wire, num_keys):
    keys = fresh_keys(num_keys)
    gradients = np.random.default_rng(0).standard_normal((num_keys, 4), np.float32)
    with open_client(shards, 0, wire=wire) as shared, open_client(shards, None, wire=wire) as plain:
        assert (shared.pull("user", keys) == plain.pull("user", keys)).all()
        shared.push("user", keys, gradients, step=1).wait()
        first = plain.pull("user", keys)
        plain.delete("user", keys)
        plain.push("user", keys, gradients, step=1).wait()
        assert (shared.pull("user", keys) == first).all()
        assert shared.stats()["bytes_shared"] > 0
        assert plain.stats()["bytes_shared"] == 0
        assert shared.stats()["retries"] == 0


def test_small_messages_are_sent_as_bytes(shards):
    with open_client(shards, 65_536) as client:
        client.pull("user", fresh_keys(10))
        assert client.stats()["bytes_shared"] == 0
        client.pull("user", fresh_keys(20_000))
        assert client.stats()["bytes_shared"] >= 20_000 * (8 + 16)


def test_without_a_descriptor_left_bytes_travel(shards, monkeypatch):
    keys = fresh_keys(100)

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with open_client(shards, 0) as client:
        monkeypatch.setattr("ps.shared_memory.os.memfd_create", refuse)
        client.push("user", keys, np.ones((100, 4), np.float32), step=1).wait()
        assert client.pull("user", keys).shape == (100, 4)
        assert client.stats()["bytes_shared"] == 0
        monkeypatch.undo()
        client.pull("user", keys)
        assert client.stats()["bytes_shared"] > 0


def test_a_shard_that_cannot_reach_the_memory_gets_bytes(shards, monkeypatch):
    keys = fresh_keys(100)
    with open_client(shards, 0) as client:
        monkeypatch.setattr("ps.shared_memory.os.getpid", lambda: 1)  # as from another pid namespace
        client.push("user", keys, np.ones((100, 4), np.float32), step=1).wait()
        shared = client.stats()["bytes_shared"]
        assert client.stats()["retries"] == 2  # each shard said so once
        before = client.pull("user", keys)
        client.push("user", keys, np.ones((100, 4), np.float32), step=2).wait()
        assert client.stats()["bytes_shared"] == shared
        assert (client.pull("user", keys) < before).all()


def test_a_push_that_was_given_up_is_applied_whole_or_not_at_all():
    """The shard was frozen with the message in its hands: what it applies when it wakes must be those gradients."""
    keys, ones = fresh_keys(3000), np.ones((3000, 4), np.float32)
    with ps.LocalCluster(SPEC, shards=1, placement="process") as cluster:
        client = open_client(cluster, 0, staleness=-1, retry=ps.RetryOptions(timeout_seconds=0.4))
        initial = client.pull("user", keys)
        client.push("user", keys, ones, step=1).wait()  # its buffer is mapped now, and back in the pool
        first = client.pull("user", keys)
        freeze(cluster.processes[0].pid)
        for step, size in ((2, 2), (3, 1000)):
            with pytest.raises(ps.UnavailableError, match="frozen"):
                client.push("user", keys, size * ones, step=step).wait()
        os.kill(cluster.processes[0].pid, signal.SIGCONT)
        moved = first - initial
        allowed = [first + times * moved for times in (0, 2, 1000, 1002)]
        with open_client(cluster, 0) as other:
            for _ in range(10):
                rows = other.pull("user", keys)
                assert any(np.allclose(rows, each, rtol=1e-3, atol=1e-6) for each in allowed)
                time.sleep(0.05)
        client.close()
