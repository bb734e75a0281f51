"""A replica: rows of a checkpoint and of batches, exactly; whole batches; convergence; reads beside changes."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.errors import DeltaError, RequestError
from ps.keys import bucket_of
from ps.replica import Replica
from ps.serving_rows import serving_spec
from ps.spec import ClusterSpec
from ps.storage.table import Table
from tests.ps.publishing import NUM_BUCKETS, SERVED, TRAINED, Publisher, keys_from

ALL_KEYS = keys_from(1, 400)


def test_rows_of_a_checkpoint_are_served_and_unknown_keys_read_as_in_training(tmp_path):
    publisher = Publisher()
    publisher.set("user", keys_from(1, 200))
    publisher.set("item", keys_from(50, 90))
    replica = publisher.replica()
    assert replica.load(publisher.save(tmp_path), {0: 7}) == 239
    assert (replica.num_rows, replica.positions) == (239, {0: 7})
    assert replica.memory_bytes > 0
    publisher.assert_served_by(replica.pull)
    keys = keys_from(150, 250)  # every other one is known
    for table in ("user", "item"):
        known = np.isin(keys, np.array(list(publisher.rows[table]), np.uint64))
        out = np.empty((100, TRAINED.tables[table].width), np.float32)
        rows, unknown = replica.pull(table, keys, out)
        assert rows is out
        assert unknown == 100 - known.sum()
        trained = Table(table, TRAINED.tables[table], seed=TRAINED.seed, num_buckets=NUM_BUCKETS)
        np.testing.assert_array_equal(rows[~known], trained.pull(keys[~known]))
    assert replica.pull("user", keys[:0])[0].shape == (0, 6)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_unknown_keys_whatever_codec_serves(codec):
    replica = Replica(TRAINED, serving_spec(TRAINED, codec))
    keys = np.repeat(keys_from(1, 30), 2)
    for table, spec in TRAINED.tables.items():
        trained = Table(table, spec, seed=TRAINED.seed, num_buckets=NUM_BUCKETS).pull(keys)
        rows, unknown = replica.pull(table, keys)
        np.testing.assert_array_equal(rows, trained)
        assert unknown == len(keys)
    assert replica.num_rows == 0


def test_batches_older_ones_and_gaps():
    publisher, replica = Publisher(), Publisher().replica()
    for start in (1, 50, 90):
        publisher.set("user", keys_from(start, start + 60))
    publisher.delete("user", keys_from(10, 20))
    first, second, third, fourth = publisher.partitions[0]
    assert replica.apply(first, 0)
    assert not replica.apply(first, 0)
    with pytest.raises(DeltaError, match="has 120 records before it, 60 are here: read the partition from offset 2 on"):
        replica.apply(third, 0)
    assert replica.positions == {0: 2}
    for batch in (second, third, second, fourth, first):
        replica.apply(batch, 0)
    assert (replica.num_applied, replica.num_passed_by, replica.positions) == (4, 3, {0: fourth.offset + 1})
    publisher.assert_served_by(replica.pull)
    assert replica.pull("user", keys_from(10, 20))[1] == 10  # tombstones
    np.testing.assert_array_equal(
        replica.pull("user", keys_from(10, 20))[0], Publisher().replica().pull("user", keys_from(10, 20))[0]
    )


def test_what_does_not_fit_changes_nothing():
    publisher, replica = Publisher(), Publisher().replica()
    other = Publisher()
    other.layouts["user"] = "0" * 16  # as of a stream in another codec
    other.set("user", ALL_KEYS)
    with pytest.raises(DeltaError, match="rows of table 'user' in another layout than this replica serves"):
        replica.apply(other.partitions[0][0], 0)
    publisher.publish(0, [publisher.frame("user", dropped=[NUM_BUCKETS])])
    with pytest.raises(DeltaError, match="replaces a bucket that there is not"):
        replica.apply(publisher.partitions[0][0], 0)
    assert (replica.num_rows, replica.positions) == (0, {})


def test_specs_and_checkpoints_of_something_else(tmp_path):
    with pytest.raises(RequestError, match="differ in num_buckets: trained 16, served 32"):
        Replica(TRAINED, SERVED.model_copy(update={"num_buckets": 32}))
    with pytest.raises(RequestError, match="differ in tables"):
        Replica(TRAINED, ClusterSpec(tables={"user": SERVED.tables["user"]}, num_buckets=16, seed=9))
    publisher, replica = Publisher(), Publisher().replica()
    publisher.set("user", ALL_KEYS)
    replica.load(publisher.save(tmp_path / "rows"))
    publisher.served = SERVED.model_copy(update={"seed": 10})
    with pytest.raises(RequestError, match="another seed than the replica serves: export it anew"):
        Publisher().replica().load(publisher.save(tmp_path / "of another seed"))
    with pytest.raises(RequestError, match="has rows already"):
        replica.load(tmp_path / "rows")
    with pytest.raises(RequestError, match="no table 'users'; the replica has user, item"):
        replica.pull("users", ALL_KEYS)
    with pytest.raises(RequestError, match=r"out is float64 \(399, 6\)"):
        replica.pull("user", ALL_KEYS, np.empty((399, 6)))


def test_a_bucket_that_is_replaced_has_its_rows_and_no_others():
    publisher, replica = Publisher(), Publisher().replica()
    publisher.set("user", ALL_KEYS)
    for key in ALL_KEYS[:200].tolist():
        del publisher.rows["user"][key]
    # The frames say it once more in pieces: what a bucket has is what came from `dropped` on, removals too.
    for frame in list(publisher.whole([1, 2, 3])):
        keys, images = frame.full
        half = len(keys) // 2
        first = publisher.frame(frame.table, keys[:half], images[:half] if half else None, dropped=[1, 2, 3])
        second = publisher.frame(frame.table, keys[half:], images[half:] if half else None)
        third = publisher.frame(frame.table, removed=keys[:1])
        publisher.publish(0, [first, second, third])
        for key in keys[:1].tolist():
            del publisher.rows[frame.table][key]
    for batch in publisher.partitions[0]:
        replica.apply(batch, 0)
    inside = np.isin(bucket_of(ALL_KEYS, NUM_BUCKETS), [1, 2, 3])
    wanted = {key for key in ALL_KEYS[inside].tolist() if key in publisher.rows["user"]}
    assert replica.pull("user", ALL_KEYS[inside])[1] == inside.sum() - len(wanted)
    assert replica.pull("user", np.array(sorted(wanted), np.uint64))[1] == 0
    assert replica.pull("user", ALL_KEYS[~inside])[1] == 0


def test_the_owner_before_is_passed_by():
    publisher, replica = Publisher(shards=2), Publisher().replica()
    publisher.set("user", ALL_KEYS)
    before = {shard: list(batches) for shard, batches in publisher.partitions.items()}
    publisher.move(np.flatnonzero(publisher.owners == 0), 2)
    publisher.set("user", ALL_KEYS[:300])
    publisher.delete("user", ALL_KEYS[300:])
    for shard in (2, 1):
        for batch in publisher.partitions[shard]:
            replica.apply(batch, shard)
    for batch in before[0]:
        assert replica.apply(batch, 0)  # it moves the position, and no row
    publisher.assert_served_by(replica.pull)
    assert replica.pull("user", ALL_KEYS)[1] == 99


def test_versions_and_records_behind():
    publisher, replica = Publisher(shards=2), Publisher().replica()
    assert replica.version is None
    publisher.set("user", ALL_KEYS)
    publisher.mark("v1", step=10)
    publisher.set("user", ALL_KEYS)
    publisher.mark("v2", step=20)
    first, mark, last, newest = publisher.partitions[0]
    replica.apply(first, 0)
    replica.heard(0, at=5000.0, is_end=False, total=newest.total)
    assert replica.lag(0.0).records == last.records
    assert replica.version is None
    assert not replica.wait_until({0: mark.offset + 1}, 0.01)
    for batch in (mark, last, newest):
        replica.apply(batch, 0)
    assert replica.wait_until({0: newest.offset + 1}, 0.01)
    assert (replica.version, replica.marker) == ("v2", newest.marker)
    for batch in publisher.partitions[1][:3]:
        replica.apply(batch, 1)
    assert replica.version == "v2"  # the newest of all partitions
    assert replica.lag(0.0).records == 0


def test_age_is_that_of_the_partition_furthest_behind(tmp_path):
    publisher, replica = Publisher(shards=2), Publisher().replica()
    publisher.set("user", ALL_KEYS)
    replica.load(publisher.save(tmp_path), {0: 1, 1: 1}, at=500.0)
    assert replica.lag(600.0) == (100.0, 0)
    [zero], [one] = publisher.partitions.values()
    replica.apply(zero, 0)
    assert replica.lag(zero.at).seconds == zero.at - 500.0  # of the other one
    replica.apply(one, 1)
    assert replica.lag(one.at + 3.0).seconds == one.at + 3.0 - zero.at
    replica.heard(0, at=one.at + 50.0, is_end=True, total=zero.records)
    replica.heard(1, at=one.at + 40.0, is_end=True, total=one.records)
    assert replica.lag(one.at + 60.0) == (20.0, 0)
    replica.heard(1, at=one.at + 59.0, is_end=False, total=one.records + 30)
    assert replica.lag(one.at + 60.0) == (20.0, 30)
    replica.retire(1)
    assert replica.lag(one.at + 60.0) == (10.0, 0)
    assert replica.positions == {0: zero.offset + 1, 1: one.offset + 1}


def test_a_machine_that_lost_what_it_had_published_publishes_all_again():
    publisher, replica = Publisher(), Publisher().replica()
    publisher.set("user", ALL_KEYS)
    publisher.set("item", ALL_KEYS)
    for batch in publisher.partitions[0]:
        replica.apply(batch, 0)
    lost = publisher.partitions[0].pop()
    for key in ALL_KEYS[200:].tolist():
        del publisher.rows["item"][key]
    again = publisher.publish(0, publisher.whole(range(NUM_BUCKETS)))
    again = replace(again, offset=lost.offset + 1000, total=lost.total)
    assert replica.apply(again, 0)
    publisher.assert_served_by(replica.pull)
    assert replica.pull("item", ALL_KEYS)[1] == 199
    assert replica.lag(again.at).records == 0


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 300), st.integers(1, 90)),
        st.tuples(st.just("delete"), st.integers(0, 300), st.integers(1, 90)),
        st.tuples(st.just("move"), st.integers(0, NUM_BUCKETS - 1), st.integers(0, 3)),
        st.tuples(st.just("whole"), st.integers(0, NUM_BUCKETS - 1), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


def played(publisher, operations):
    """The positions and rows after each operation."""
    cuts = [(publisher.positions(), {name: dict(rows) for name, rows in publisher.rows.items()})]
    for number, (what, start, extent) in enumerate(operations):
        table = ("user", "item")[number % 2]
        match what:
            case "set":
                publisher.set(table, keys_from(start + 1, start + 1 + extent))
            case "delete":
                publisher.delete(table, keys_from(start + 1, start + 1 + extent))
            case "move":
                publisher.partitions.setdefault(extent, [])
                publisher.move([start, (start + 5) % NUM_BUCKETS], extent)
            case "whole":
                publisher.publish(int(publisher.owners[start]), publisher.whole([start]))
        cuts.append((publisher.positions(), {name: dict(rows) for name, rows in publisher.rows.items()}))
    return cuts


@settings(max_examples=40)
@given(operations=OPERATIONS, data=st.data())
def test_any_history_from_any_cut_and_any_earlier_one_ends_at_the_same_rows(tmp_path_factory, operations, data):
    publisher = Publisher(shards=2)
    cuts = played(publisher, operations)
    of_rows = data.draw(st.integers(0, len(cuts) - 1))
    of_positions = data.draw(st.integers(0, of_rows))
    truth, publisher.rows = publisher.rows, cuts[of_rows][1]
    replica = publisher.replica()
    replica.load(publisher.save(tmp_path_factory.mktemp("rows")), cuts[of_positions][0])
    publisher.rows = truth
    begin = cuts[of_positions][0]
    ahead = {
        shard: [batch for batch in batches if batch.offset >= begin.get(shard, 0)]
        for shard, batches in publisher.partitions.items()
    }
    while any(ahead.values()):
        shard = data.draw(st.sampled_from([shard for shard, batches in ahead.items() if batches]))
        for _ in range(data.draw(st.integers(1, 4))):
            if ahead[shard]:
                replica.apply(ahead[shard].pop(0), shard)
        again = [batch for batch in publisher.partitions[shard] if batch.offset < replica.positions[shard]]
        assert not replica.apply(data.draw(st.sampled_from(again)), shard)
    publisher.assert_served_by(replica.pull)
    assert replica.num_rows == sum(len(rows) for rows in truth.values())
    assert replica.positions == publisher.positions()


def test_reads_beside_changes_see_whole_rows_and_no_moment_without_them():
    """Every element of a row tells its version; a bucket is replaced again and again, others lose and get rows."""
    served = serving_spec(TRAINED, "fp32")
    publisher = Publisher(served=served)
    encoder, keys = publisher.encoders["user"], keys_from(1, 3000)
    passing = keys_from(5000, 7000)
    replica, end, problems, reads = publisher.replica(), threading.Event(), [], [0]

    def images(count, version):
        return encoder.encode(np.full((count, 6), version, np.float32))

    replica.apply(publisher.publish(0, [publisher.frame("user", keys, images(len(keys), 1))]), 0)

    def read():
        rng, last = np.random.default_rng(threading.get_ident()), 0.0
        while not end.is_set():
            chosen = rng.choice(keys, 500)
            rows, unknown = replica.pull("user", chosen)
            if unknown or (rows != rows[:, :1]).any():
                problems.append(("half a row, or none", unknown))
            # All fits in one piece, so the whole batch is seen or nothing of it.
            if (rows[:, 0] != rows[0, 0]).any() or rows[0, 0] < last:
                problems.append(("parts of two batches", np.unique(rows[:, 0]), last))
            last = rows[0, 0]
            reads[0] += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in range(2, 60):
            frames = [publisher.frame("user", keys, images(len(keys), version), dropped=range(NUM_BUCKETS))]
            if version % 2:  # these rows go with the next batch, which replaces the buckets without them
                frames = [publisher.frame("user", keys, images(len(keys), version))]
                replica.apply(publisher.publish(0, [publisher.frame("user", passing, images(len(passing), 0))]), 0)
            replica.apply(publisher.publish(0, frames), 0)
    finally:
        end.set()
        for thread in threads:
            thread.join(30)
    assert problems == []
    assert reads[0] > 10
