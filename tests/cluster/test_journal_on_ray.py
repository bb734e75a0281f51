"""Shards with journals on Ray: kill -9 of their processes loses nothing, and clients only wait."""

import os
import signal

import numpy as np
import pytest

import ps
from ps import actor
from tests.cluster.conftest import RayCluster

pytestmark = pytest.mark.cluster

TABLE = ps.TableSpec(segments={"count": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))})


@pytest.fixture
def cluster(ray_session, tmp_path):
    durability = ps.Durability(mode="journal", directory=str(tmp_path))
    running = RayCluster("journaled", ps.ClusterSpec(tables={"user": TABLE}, num_buckets=16, durability=durability), 2)
    yield running
    actor.stop_cluster(running.name)


def test_a_killed_shard_comes_back_with_every_acknowledged_update(cluster):
    keys = np.arange(1, 500, dtype=np.uint64)
    down = np.full((len(keys), 2), -1, np.float32)
    with cluster.connect() as client:
        for step in range(1, 7):
            if step in (3, 5):
                victim = cluster.pids()[step % 2]
                os.kill(victim, signal.SIGKILL)
            client.push("user", keys, down, step=step).wait()
        assert (client.pull("user", keys) == 6).all()
        epoch = client.routing.epoch
    with cluster.connect() as other:
        assert (other.pull("user", keys) == 6).all()
        assert other.routing.epoch == epoch  # the same place, another address
    report = actor.cluster_status(cluster.name)
    assert not report["lost"]
    assert [shard["state"] for shard in report["shards"]] == ["serving", "serving"]


def test_a_cluster_that_was_ended_begins_with_what_it_had(cluster):
    keys = np.arange(1, 500, dtype=np.uint64)
    with cluster.connect() as client:
        client.push("user", keys, np.full((len(keys), 2), -1, np.float32), step=1).wait()
    actor.stop_cluster(cluster.name)
    again = RayCluster(cluster.name, cluster.spec, 2)
    with again.connect() as client:
        assert (client.pull("user", keys) == 1).all()
    actor.stop_cluster(cluster.name, forget=True)
    fresh = RayCluster(cluster.name, cluster.spec, 2)
    with fresh.connect() as client:
        assert (client.pull("user", keys) == 0).all()
