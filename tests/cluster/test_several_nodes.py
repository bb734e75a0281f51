"""Pairs over several nodes of Ray, of which one dies: both processes of no pair lie on it, and updates go on.

In a process of its own, for the driver joins a Ray of several nodes there: `python -m tests.cluster.test_several_nodes
FOLDER`.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.conftest import ROOT, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

SHARDS = 2
KEYS = np.arange(1, 500, dtype=np.uint64)
DOWN = np.full((len(KEYS), 2), -1, np.float32)


def test_a_node_dies_and_updates_go_on(tmp_path):
    command = [sys.executable, "-m", "tests.cluster.test_several_nodes", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, failed = process.communicate(timeout=380)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nodes, too, where it could not end them
    assert process.returncode == 0, failed[-6000:]
    assert "every update is there once" in said


def placed():
    """By shard, the nodes on which Ray has its two processes."""
    from ray._private import state  # the public one asks the dashboard, which does not run

    from ps.actor import actor_name

    living = [each for each in state.actors().values() if each["State"] == "ALIVE"]
    nodes = {each["Name"]: each["Address"]["NodeID"] for each in living}
    return [[nodes.get(actor_name(shard, place)) for place in (0, 1)] for shard in range(SHARDS)]


def shards_of(name, seconds=90.0):
    """What the coordinator says of the shards. It may have lain on the node that died: Ray starts it anew."""
    from ps import actor
    from ps.errors import UnavailableError

    deadline = time.monotonic() + seconds
    while True:
        try:
            found = actor.cluster_status(name)["shards"]
            if len(found) == SHARDS:
                return found
        except UnavailableError:
            assert time.monotonic() < deadline
        time.sleep(0.2)


def scenario(folder):
    """Raises what is not as it should be."""
    import ray
    from ray.cluster_utils import Cluster

    import ps
    from ps import actor

    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    workers = [nodes.add_node(num_cpus=1, resources={"ps": 4.0}, object_store_memory=80_000_000) for _ in range(3)]
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    name, table = "nodes", ps.TableSpec(segments={"count": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))})
    durability = ps.Durability(mode="replicated", directory=str(folder), standby_seconds=2.0)
    spec = ps.ClusterSpec(tables={"user": table}, num_buckets=16, durability=durability)
    actor.start_cluster(spec, SHARDS, name, cpus_per_shard=0.2, on_loopback=True)
    try:
        options = ps.ClientOptions(retry=ps.RetryOptions(unavailable_seconds=120.0))
        with actor.connect_cluster(name, options) as client:

            def count(step):
                client.push("user", KEYS, DOWN, step=step).wait()

            def is_whole():
                shards = shards_of(name)
                roles = [sorted(str(each.get("role")) for each in shard["pair"]) for shard in shards]
                return roles == [["primary", "standby"]] * SHARDS

            count(1)
            wait_for(is_whole, "the pairs are whole")
            count(2)
            before = placed()
            print("placed", before, flush=True)
            assert all(len(set(pair)) == 2 for pair in before), before
            first = shards_of(name)[0]
            dies = before[0][[each.get("role") for each in first["pair"]].index("primary")]
            (victim,) = [node for node in workers if node.node_id == dies]
            nodes.remove_node(victim, allow_graceful=False)
            step, deadline = 2, time.monotonic() + 120
            while shards_of(name)[0]["pid"] == first["pid"]:
                assert time.monotonic() < deadline, "no standby took over"
                step += 1
                count(step)
            print(f"taken over at step {step}", flush=True)
            wait_for(is_whole, "the pairs are whole again, on the nodes that are left", 120)
            assert victim.node_id not in {node for pair in placed() for node in pair}
            count(step + 1)
            count(step + 2)
            assert (client.pull("user", KEYS) == step + 2).all()
        with actor.connect_cluster(name) as other:
            assert (other.pull("user", KEYS) == step + 2).all()
        print("every update is there once", flush=True)
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    scenario(Path(sys.argv[1]))
