"""A shard with a standby on Ray: whichever process dies or freezes, every acknowledged update is there once."""

import os
import signal
import time

import numpy as np
import pytest

import ps
from ps import actor
from ps.ray_resharding import restart_shards
from tests.cluster.conftest import RayCluster, wait_for

pytestmark = pytest.mark.cluster

TABLE = ps.TableSpec(segments={"count": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))})
KEYS = np.arange(1, 500, dtype=np.uint64)
DOWN = np.full((len(KEYS), 2), -1, np.float32)


@pytest.fixture
def cluster(ray_session, tmp_path):
    durability = ps.Durability(mode="replicated", directory=str(tmp_path), standby_seconds=2.0)
    running = RayCluster("paired", ps.ClusterSpec(tables={"user": TABLE}, num_buckets=16, durability=durability), 1)
    yield running
    actor.stop_cluster(running.name, forget=True)


def roles(cluster):
    return [each.get("role") for each in actor.cluster_status(cluster.name)["shards"][0]["pair"]]


def wait_until_whole(cluster):
    wait_for(lambda: sorted(map(str, roles(cluster))) == ["primary", "standby"], "the pair is whole")


def freeze_until_replaced(cluster):
    frozen, began = cluster.pids()[0], time.monotonic()
    os.kill(frozen, signal.SIGSTOP)
    wait_for(lambda: cluster.pids()[0] != frozen, "the standby took over")
    assert time.monotonic() - began < 20
    os.kill(frozen, signal.SIGCONT)


def test_a_standby_takes_over_and_a_new_one_is_filled(cluster):
    with cluster.connect() as client:
        for step in range(1, 9):
            if step in (3, 5):
                wait_until_whole(cluster)
                os.kill(cluster.pids()[0], signal.SIGKILL)
            if step == 7:
                wait_until_whole(cluster)
                freeze_until_replaced(cluster)
            client.push("user", KEYS, DOWN, step=step).wait()
        assert (client.pull("user", KEYS) == 8).all()
        wait_until_whole(cluster)
        assert list(restart_shards(cluster.name)) == [0]
        client.push("user", KEYS, DOWN, step=9).wait()
    with cluster.connect() as other:
        assert (other.pull("user", KEYS) == 9).all()
    assert not actor.cluster_status(cluster.name)["lost"]
