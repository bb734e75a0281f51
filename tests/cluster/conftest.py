"""One small Ray for the whole session, and one cluster of two shards in it."""

import pytest
import ray

import ps
from ps import actor
from tests.ps.client.conftest import SPEC, client, connect  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def ray_session():
    """Ray on this machine with two CPUs."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


class RayCluster:
    """A cluster of shard actors, as LocalCluster is one of processes."""

    def __init__(self, name, spec, shards):
        self.name, self.spec = name, spec
        self.directory = actor.start_cluster(spec, shards, name)

    def connect(self, options=None) -> ps.Client:
        return actor.connect_cluster(self.name, options)

    def pids(self):
        return [shard["pid"] for shard in actor.cluster_status(self.name)["shards"]]

    def close(self):
        actor.stop_cluster(self.name)


@pytest.fixture(scope="session")
def cluster(ray_session):
    running = RayCluster("session", SPEC, 2)
    yield running
    running.close()
