"""`weir reshard` and `weir restart` on a long-lived cluster in Ray, while a client pushes."""

import json
import threading

import numpy as np
import pytest

import ps
from ps import actor, ray_resharding
from tests.cluster.conftest import RayCluster, run_here
from tests.workers.training.recipe import write

pytestmark = pytest.mark.cluster

TABLE = ps.TableSpec(segments={"count": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))})
KEYS = np.arange(1, 2001, dtype=np.uint64)
DOWN = np.full((len(KEYS), 2), -1, np.float32)


@pytest.fixture
def cluster(ray_session, tmp_path):
    durability = ps.Durability(mode="journal", directory=str(tmp_path))
    spec = ps.ClusterSpec(tables={"user": TABLE}, num_buckets=32, durability=durability)
    running = RayCluster("moving", spec, 2, cpus_per_shard=0.1)
    yield running
    actor.stop_cluster(running.name, forget=True)


def test_more_and_fewer_shards_and_a_rolling_restart_while_a_client_pushes(cluster):
    with cluster.connect() as client:
        client.push("user", KEYS, DOWN, step=1).wait()
        stop, steps, failed = threading.Event(), [1], []

        def work():
            try:
                while not stop.is_set():
                    client.push("user", KEYS, DOWN, step=steps[0] + 1).wait()
                    steps[0] += 1
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for shards in (3, 2):
            moves = list(ray_resharding.reshard_cluster(cluster.name, shards, cpus_per_shard=0.1))
            assert sum(move.num_rows for move in moves) > 0
            report = actor.cluster_status(cluster.name)
            rows = [shard["tables"]["user"]["rows"] for shard in report["shards"]]
            assert len(rows) == shards
            assert sum(rows) == len(KEYS)
            assert not report["lost"]
        before = cluster.pids()
        assert list(ray_resharding.restart_shards(cluster.name)) == [0, 1]
        assert not set(before) & set(cluster.pids())
        stop.set()
        thread.join()
        assert not failed, failed[0]
        assert (client.pull("user", KEYS) == steps[0]).all()


def test_the_commands_say_what_they_did(join, tmp_path):
    file = write(tmp_path, {"name": "commanded", "cluster.placement": "ray", "cluster.cpus_per_shard": 0.1})
    assert run_here("up", file, "--json").exit_code == 0
    try:
        done = run_here("reshard", file, "--shards", 3, "--json")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["shards"] == 3
        refused = run_here("restart", file, "--json")
        assert refused.exit_code == 2
        assert "keeps no journals" in refused.stderr
    finally:
        assert run_here("down", file).exit_code == 0
