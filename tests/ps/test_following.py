"""A follower over the files of a directory: it catches up to equality whatever happens to the source in between."""

import shutil
import time

import pytest

from ps.delta_folder import DeltaFolder
from ps.deltas.reading import find_segments, partition_folder, segment_path
from ps.following import Follower
from tests.ps.publishing import Publisher, keys_from

ALL_KEYS = keys_from(1, 400)


@pytest.fixture
def publisher(tmp_path):
    made = Publisher(shards=2, folder=tmp_path / "deltas", segment_bytes=4096, retention_bytes=None)
    yield made
    made.close()


def following(publisher, replica, **options):
    return Follower(replica, DeltaFolder(publisher.folder), **options)


def until(is_so, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_arrive_and_new_partitions_are_found(publisher):
    publisher.set("user", ALL_KEYS)
    replica = publisher.replica()
    follower = following(publisher, replica)
    try:
        assert follower.wait_until(publisher.positions(), 20)
        publisher.set("item", ALL_KEYS)
        publisher.delete("user", ALL_KEYS[:50])
        publisher.move([1, 2, 3], 5)  # to a shard that there was not
        publisher.set("user", ALL_KEYS[20:90])
        publisher.mark("v1", 7)
        assert follower.wait_until(publisher.positions(), 20)
        publisher.assert_served_by(replica.pull)
        assert replica.pull("user", ALL_KEYS)[1] == 20
        assert replica.version == "v1"
        until(lambda: publisher.beat() or replica.lag(time.time()).seconds < 1)
        assert replica.lag(time.time()).records == 0
        assert (follower.trouble, follower.needs_bundle, follower.num_restarts) == ("", False, 0)
    finally:
        follower.close()


def test_it_waits_for_a_directory_and_its_age_grows(publisher):
    replica = publisher.replica()
    follower = following(publisher, replica)
    try:
        until(lambda: "has no partitions; it should be cluster.deltas.directory" in follower.trouble)
        age = replica.lag(time.time()).seconds
        time.sleep(0.2)
        assert replica.lag(time.time()).seconds >= age + 0.2
        publisher.set("user", ALL_KEYS)
        assert follower.wait_until(publisher.positions(), 20)
        until(lambda: follower.trouble == "")
    finally:
        follower.close()


def test_a_directory_that_goes_and_comes_back(publisher, tmp_path):
    publisher.set("user", ALL_KEYS)
    replica = publisher.replica()
    follower = following(publisher, replica)
    try:
        assert follower.wait_until(publisher.positions(), 20)
        publisher.close()
        publisher.folder.rename(tmp_path / "away")
        until(lambda: "has no partitions" in follower.trouble)
        assert replica.pull("user", ALL_KEYS)[1] == 0  # it answers
        (tmp_path / "away").rename(publisher.folder)
        publisher.set("user", ALL_KEYS)
        publisher.set("item", ALL_KEYS)
        assert follower.wait_until(publisher.positions(), 20)
        publisher.assert_served_by(replica.pull)
    finally:
        follower.close()


def test_damage_is_told_and_followed_again_when_it_is_mended(publisher):
    publisher.set("user", ALL_KEYS)
    replica = publisher.replica()
    publisher.set("item", ALL_KEYS)
    folder = partition_folder(publisher.folder, 0)
    path = segment_path(folder, find_segments(folder)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + b"\xff" + whole[301:])
    follower = following(publisher, replica)
    try:
        until(lambda: str(path) in follower.trouble)
        assert "partition 0: " in follower.trouble
        assert "published rows are damaged" in follower.trouble
        assert replica.positions.get(0, 0) == 0  # half a batch is none
        assert follower.wait_until({1: publisher.positions()[1]}, 20)  # the others go on
        path.write_bytes(whole)
        assert follower.wait_until(publisher.positions(), 20)
        publisher.assert_served_by(replica.pull)
        assert follower.num_restarts > 0
    finally:
        follower.close()


def test_batches_that_were_trimmed_need_a_bundle(publisher, tmp_path):
    publisher.set("user", ALL_KEYS)
    replica = publisher.replica()
    replica.load(publisher.save(tmp_path / "bundle"), publisher.positions())
    for _ in range(6):
        publisher.set("user", ALL_KEYS)
    behind = publisher.replica()
    behind.load(tmp_path / "bundle", {0: 2, 1: 2})
    assert behind.positions == replica.positions
    folder = partition_folder(publisher.folder, 1)
    for first in find_segments(folder)[:-1]:
        segment_path(folder, first).unlink()
    follower = following(publisher, behind)
    try:
        until(lambda: follower.needs_bundle)
        assert "partition 1: " in follower.trouble
        assert "take a newer bundle" in follower.trouble
        assert behind.pull("user", ALL_KEYS)[1] == 0  # it answers with what it has
        assert follower.wait_until({0: publisher.positions()[0]}, 20)
        assert not follower.wait_until(publisher.positions(), 0.1)
    finally:
        follower.close()


def test_an_old_version_is_built_up_to_its_markers(publisher, tmp_path):
    publisher.set("user", ALL_KEYS)
    start = publisher.positions()
    bundle = publisher.save(tmp_path / "bundle")
    publisher.set("user", ALL_KEYS[:100])
    publisher.mark("v1", 7)
    markers = {shard: at - 1 for shard, at in publisher.positions().items()}
    rows = {name: dict(rows) for name, rows in publisher.rows.items()}
    publisher.set("user", ALL_KEYS)
    publisher.delete("user", ALL_KEYS[:10])
    publisher.mark("v2", 8)
    publisher.move([1, 2], 2)
    replica = publisher.replica()
    replica.load(bundle, start)
    follower = following(publisher, replica, stop_at=markers)
    try:
        assert follower.wait_until_stopped(20)
        time.sleep(0.3)
        assert replica.positions == {shard: at + 1 for shard, at in markers.items()}
        assert replica.version == "v1"
        publisher.rows = rows
        publisher.assert_served_by(replica.pull)
    finally:
        follower.close()


def test_a_partition_whose_shard_is_gone_does_not_make_the_rest_old(publisher):
    publisher.set("user", ALL_KEYS)
    replica = publisher.replica()
    follower = following(publisher, replica)
    try:
        assert follower.wait_until(publisher.positions(), 20)
        publisher.move(range(8), 0)
        publisher.move(range(8, 16), 0)
        publisher.files.pop(1).close()
        shutil.rmtree(partition_folder(publisher.folder, 1))
        until(lambda: 1 not in follower._followed)
        publisher.set("item", ALL_KEYS)
        assert follower.wait_until({0: publisher.positions()[0]}, 20)
        publisher.assert_served_by(replica.pull)
        until(lambda: replica.lag(time.time()).seconds < 1)
    finally:
        follower.close()
