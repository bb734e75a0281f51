"""A replica that follows the files of real shard processes: its age tells a dead shard from a quiet one."""

import signal
import time

import numpy as np
import pytest

import ps
from ps.delta_folder import DeltaFolder
from ps.following import Follower
from ps.placement import LocalCluster
from ps.replica import Replica
from ps.serving_rows import serving_spec
from ps.spec import ClusterSpec
from tests.chaos.cluster import freeze
from tests.chaos.shards import Shards
from tests.ps.deltas.streams import deltas_of
from tests.ps.driving import SGD, keys_of

KEYS = keys_of(*range(1, 1001), num_buckets=64)


def spec_of(folder, **given):
    return ClusterSpec.model_validate(
        {"tables": {"user": SGD}, "num_buckets": 64, "deltas": deltas_of(folder / "deltas"), **given}
    )


class Following:
    def __init__(self, spec):
        self.replica = Replica(spec, serving_spec(spec, "fp32"))
        self.follower = Follower(self.replica, DeltaFolder(spec.deltas.directory))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.follower.close()

    @property
    def age(self):
        return self.replica.lag(time.time()).seconds

    def until(self, is_so, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, (self.age, self.follower.trouble)
            time.sleep(0.02)

    def until_old(self):
        self.until(lambda: self.age > 3)

    def assert_young(self, seconds=1.0):
        """After a moment, and then all the while: from 3 seconds on it would show."""
        self.until(lambda: self.age < 1.5)
        end, oldest = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            oldest = max(oldest, self.age)
            time.sleep(0.02)
        assert oldest < 2.5
        assert self.follower.trouble == ""

    def assert_equal(self, client):
        markers = client.mark("check", step=1, data_time=2.0)
        assert self.follower.wait_until({shard: offset + 1 for shard, offset in markers.items()}, 30)
        np.testing.assert_array_equal(self.replica.pull("user", KEYS)[0], client.pull("user", KEYS))


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    spec = spec_of(folder, durability={"mode": "journal", "directory": str(folder / "journals")})
    with Shards(spec, 2, "files") as shards, ps.connect(shards.addresses[0]) as client, Following(spec) as following:
        push(client, 1)
        yield shards, client, following


def push(client, step):
    client.push("user", KEYS, np.full((len(KEYS), 3), 0.5, np.float32), step=step).wait()


def test_quiet_shards_do_not_make_rows_old(followed):
    _, client, following = followed
    following.assert_equal(client)
    following.assert_young(3.0)


def test_a_killed_shard_makes_rows_old_until_it_is_back(followed):
    """Those of a replica too that begins meanwhile: the last sign of life is none."""
    shards, client, first = followed
    first.assert_equal(client)
    shards.kill(1)
    killed_at = time.time()
    with Following(shards.spec) as second:
        for following in (first, second):
            following.until_old()
            assert following.replica.pull("user", KEYS)[1] == 0  # it answers
        assert time.time() - killed_at > 2  # it counts from when the shard was seen last
        shards.forwarders[1].cut()
        shards.restart(1)
        first.assert_young()
        second.assert_young()
    push(client, 2)
    first.assert_equal(client)


def test_a_frozen_shard_makes_rows_old(followed):
    shards, client, following = followed
    following.assert_equal(client)
    freeze(shards.processes[0].pid)
    try:
        following.until_old()
    finally:
        shards.send_signal(0, signal.SIGCONT)
    following.assert_young()


def test_shards_that_are_gone_on_purpose_do_not(tmp_path):
    """After a reshard to fewer, and after another cluster of fewer in the same directory."""
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=3, placement="process") as cluster, cluster.connect() as client:
        push(client, 1)
        with Following(spec) as following:
            following.assert_equal(client)
            list(cluster.reshard(2))
            push(client, 2)
            following.assert_equal(client)
            following.assert_young(3.0)
            assert sorted(following.replica.positions) == [0, 1, 2]
    with LocalCluster(spec, shards=1, placement="process") as cluster, cluster.connect() as client:
        push(client, 1)
        with Following(spec) as following:
            following.assert_equal(client)
            following.assert_young(3.0)


def test_a_partition_that_is_not_in_this_directory_makes_rows_old(tmp_path):
    """As where the shards' hosts have each a disk of their own."""
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=2, placement="process") as cluster, cluster.connect() as client:
        push(client, 1)
        (tmp_path / "deltas" / "partition-1").rename(tmp_path / "elsewhere")
        with Following(spec) as following:
            following.until_old()
            (tmp_path / "elsewhere").rename(tmp_path / "deltas" / "partition-1")
            following.assert_young()
