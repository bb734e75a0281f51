"""A replica that follows real shard processes over gRPC: it answers whatever happens, and catches up to equality."""

import signal
import time

import numpy as np
import pytest

import ps
from ps.delta_lines import DeltaLines
from ps.errors import RequestError
from ps.following import Follower
from ps.placement import LocalCluster
from ps.replica import Replica
from ps.serving_rows import serving_spec
from ps.spec import ClusterSpec
from tests.chaos.cluster import freeze
from tests.chaos.shards import Shards
from tests.ps.deltas.streams import deltas_of
from tests.ps.driving import SGD, keys_of

KEYS = keys_of(*range(1, 3001), num_buckets=64)


def spec_of(folder):
    return ClusterSpec.model_validate(
        {
            "tables": {"user": SGD},
            "num_buckets": 64,
            "deltas": deltas_of(folder / "deltas", window_seconds=0.02),
            "durability": {"mode": "journal", "directory": str(folder / "journals")},
        }
    )


def work(client, seed, rounds=6):
    rng = np.random.default_rng(seed)
    for step in range(rounds):
        some = rng.choice(KEYS, 300, replace=False)
        client.push("user", some, rng.normal(size=(300, 3)).astype(np.float32), step=step + 1)
        if step % 3 == 2:
            client.delete("user", rng.choice(KEYS, 40, replace=False))
    client.flush()


def until(is_so, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_equal(client, replica, follower, version="check"):
    """Row by row, deleted keys too, and no row more."""
    markers = client.mark(version, step=1, data_time=2.0)
    assert follower.wait_until({shard: offset + 1 for shard, offset in markers.items()}, 60), follower.trouble
    rows, num_unknown = replica.pull("user", KEYS)
    np.testing.assert_array_equal(rows, client.pull("user", KEYS))
    held = sum(shard["tables"]["user"]["rows"] for shard in client.describe())
    assert (replica.num_rows, num_unknown) == (held, len(KEYS) - held)
    assert replica.version == version


def assert_is_gone(spec, addresses, markers):
    """A version cannot be built any more, which is said with the remedy."""
    follower = Follower(Replica(spec, serving_spec(spec, "fp32")), DeltaLines(addresses), stop_at=markers)
    try:
        until(lambda: follower.needs_bundle)
        assert f"the batch of offset {markers[0]} is not there any more" in follower.trouble
        assert "take a newer version, or one that is whole" in follower.trouble
    finally:
        follower.close()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    spec = spec_of(tmp_path_factory.mktemp("cluster"))
    with Shards(spec, 2, "replicas") as shards, ps.connect(shards.addresses[0]) as client:
        replica = Replica(spec, serving_spec(spec, "fp32"))
        follower = Follower(replica, DeltaLines([shards.addresses[1]]))
        work(client, 1)
        yield shards, client, replica, follower
        follower.close()


def test_rows_arrive_and_idle_shards_do_not_make_them_old(followed):
    _, client, replica, follower = followed
    assert_equal(client, replica, follower)
    time.sleep(2.5)
    assert replica.lag(time.time()).seconds < 2
    assert replica.lag(time.time()).records == 0
    assert (follower.trouble, follower.needs_bundle) == ("", False)


def test_a_cut_connection(followed):
    shards, client, replica, follower = followed
    restarts = follower.num_restarts
    for seed in range(2, 5):
        for forwarder in shards.forwarders:
            forwarder.cut()
        work(client, seed)
    assert_equal(client, replica, follower)
    assert follower.num_restarts > restarts


def test_a_line_that_drops_every_packet(followed):
    shards, client, replica, follower = followed
    shards.forwarders[0].hold()
    try:
        until(lambda: "has said nothing for 5 s" in follower.trouble, 20)
        assert replica.lag(time.time()).seconds > 3
        replica.pull("user", KEYS)
    finally:
        shards.forwarders[0].forward()
        shards.forwarders[0].cut()
    work(client, 6)
    assert_equal(client, replica, follower)
    until(lambda: follower.trouble == "")


def test_a_killed_shard(followed):
    shards, client, replica, follower = followed
    assert_equal(client, replica, follower)
    before = replica.pull("user", KEYS)[0].copy()
    shards.kill(1)
    shards.forwarders[1].cut()
    until(lambda: "partition 1: " in follower.trouble)
    np.testing.assert_array_equal(replica.pull("user", KEYS)[0], before)
    shards.restart(1)
    work(client, 7)
    assert_equal(client, replica, follower)


def test_a_frozen_shard(followed):
    shards, client, replica, follower = followed
    assert_equal(client, replica, follower)
    freeze(shards.processes[0].pid)
    try:
        until(lambda: replica.lag(time.time()).seconds > 2, 20)
        assert replica.pull("user", KEYS)[0].shape == (3000, 3)
    finally:
        shards.send_signal(0, signal.SIGCONT)
    work(client, 8)
    assert_equal(client, replica, follower)


def test_a_pair_whose_processes_have_a_folder_each(tmp_path):
    """As on two nodes without a shared disk: the partition goes on elsewhere after a take-over, and after the next one
    where it was before. Replicas go on; a version from before is gone, and that is said.
    """
    spec, link = spec_of(tmp_path), tmp_path / "deltas"
    for node in ("one", "two"):
        (tmp_path / node).mkdir()
    link.symlink_to(tmp_path / "one")
    with Shards(spec, 1, "nodes") as shards, ps.connect(shards.addresses[0]) as client:
        replica = Replica(spec, serving_spec(spec, "fp32"))
        follower = Follower(replica, DeltaLines(shards.addresses))
        try:
            for seed in range(6):
                work(client, seed)
            assert_equal(client, replica, follower)
            before = client.mark("before", step=1, data_time=2.0)
            for node in ("two", "one"):
                shards.kill(0)
                link.unlink()
                link.symlink_to(tmp_path / node)
                shards.restart(0)
                work(client, 10)
                assert_equal(client, replica, follower, node)
                until(lambda: follower.trouble == "")
                assert not follower.needs_bundle
                if node == "two":
                    assert_is_gone(spec, shards.addresses, before)
        finally:
            follower.close()


def test_more_and_fewer_shards(tmp_path):
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=1, placement="process") as cluster, cluster.connect() as client:
        replica = Replica(spec, serving_spec(spec, "fp32"))
        follower = Follower(replica, DeltaLines([cluster.addresses[0]]))
        try:
            work(client, 1)
            for seed, shards in enumerate((3, 2), start=2):
                list(cluster.reshard(shards))
                work(client, seed)
                assert_equal(client, replica, follower)
                # The partition of a shard that went does not make the rest old.
                until(lambda: replica.lag(time.time()).seconds < 1.5 and follower.trouble == "")
            assert sorted(replica.positions) == [0, 1, 2]
        finally:
            follower.close()


def test_a_version_from_before_shards_went(tmp_path):
    """Is built from the partitions of those too, which any shard streams that has their files; while it is not, who
    has none of them says so.
    """
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=3, placement="process") as cluster, cluster.connect() as client:
        work(client, 1)
        markers = client.mark("then", step=1, data_time=2.0)
        then = client.pull("user", KEYS)
        work(client, 2)
        list(cluster.reshard(1))
        work(client, 3)
        partition, aside = tmp_path / "deltas" / "partition-2", tmp_path / "aside"
        partition.rename(aside)
        replica = Replica(spec, serving_spec(spec, "fp32"))
        follower = Follower(replica, DeltaLines(cluster.addresses), stop_at=markers)
        try:
            until(lambda: "nobody has partitions [2] any more: take a newer version" in follower.trouble)
            aside.rename(partition)
            assert follower.wait_until_stopped(30), follower.trouble
            np.testing.assert_array_equal(replica.pull("user", KEYS)[0], then)
            assert replica.positions == {shard: offset + 1 for shard, offset in markers.items()}
            assert replica.version == "then"
            assert (client.pull("user", KEYS) != then).any()
        finally:
            follower.close()
        # It goes on from there, as one that begins with a bundle from before: what nobody writes does not make it old.
        follower = Follower(replica, DeltaLines(cluster.addresses))
        try:
            assert_equal(client, replica, follower)
            time.sleep(2)
            until(lambda: replica.lag(time.time()).seconds < 1.5, 10)
        finally:
            follower.close()


def test_a_cluster_that_publishes_nothing(tmp_path):
    spec = spec_of(tmp_path).model_copy(update={"deltas": None})
    with LocalCluster(spec, shards=1, placement="process") as cluster:
        follower = Follower(Replica(spec, serving_spec(spec, "fp32")), DeltaLines(cluster.addresses))
        try:
            until(lambda: "publishes no deltas: set cluster.deltas in its recipe" in follower.trouble)
        finally:
            follower.close()


def test_files_of_security_that_do_not_do(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        DeltaLines(["127.0.0.1:1"], ps.SecurityOptions(token_file=str(tmp_path / "missing")))
