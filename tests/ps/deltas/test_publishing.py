"""What a shard publishes: whatever happens to its rows, who follows has the same."""

import tempfile
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.deltas.batches import Marker
from ps.deltas.reading import PartitionReader, partition_folder
from ps.errors import RequestError, WrongEpochError
from ps.loading import Incoming
from ps.spec import ClusterSpec
from tests.ps.deltas.streams import Follower, rows_of, settle, with_deltas
from tests.ps.driving import NUM_BUCKETS, SPEC, TWO_TABLES, Driver, call, keys_in, keys_of, message, push

LATE = ClusterSpec.model_validate(
    {
        "tables": {
            "user": {
                "segments": {
                    "linear": {"dim": 1, "optimizer": {"name": "ftrl"}},
                    "embedding": {"dim": 2, "optimizer": {"name": "sgd", "learning_rate": 1.0}, "late": 0.15},
                },
                "admission": {"name": "count", "threshold": 2},
                "eviction": {"max_age_seconds": 100},
            }
        },
        "num_buckets": NUM_BUCKETS,
    }
)


@pytest.fixture
def start(tmp_path):
    """Drivers of a shard whose deltas lie in tmp_path."""
    made = []

    def start(spec=SPEC, epoch=1, shards=1, shard=0, **options):
        driver = Driver(with_deltas(tmp_path, spec, **options), epoch=epoch, shards=shards, shard=shard)
        made.append(driver)
        return driver

    yield start
    for driver in made:
        driver.shard.outlet.close()


def batches(folder, shard=0):
    reader = PartitionReader(partition_folder(folder, shard))
    found = reader.read(1 << 30)
    reader.close()
    return found


def check(folder, *drivers, codec="fp32"):
    for driver in drivers:
        settle(driver.shard)
    follower = Follower(drivers[0].spec, codec).follow(folder)
    assert follower.rows == rows_of((driver.shard.holding for driver in drivers), codec)
    return follower


def test_a_push_is_published_and_a_deleted_key_is_a_tombstone(start, tmp_path):
    driver, keys = start(), keys_of(*range(1, 9))
    settle(driver.shard)
    before = len(batches(tmp_path))
    driver.do(push(keys), client=1, sequence=1)
    settle(driver.shard)
    driver.do(call("delete", keys=keys[:3]), client=1, sequence=2)
    settle(driver.shard)
    pushed, deleted = batches(tmp_path)[before:]
    assert set(pushed.rows[0].full[0].tolist()) == set(keys.tolist())
    assert set(deleted.rows[0].removed.tolist()) == set(keys[:3].tolist())
    assert (pushed.records, deleted.records, deleted.offset) == (8, 3, pushed.offset + 1)
    assert (pushed.epoch, pushed.marker) == (1, None)
    assert pushed.since <= pushed.at <= deleted.since
    check(tmp_path, driver)


def test_keys_that_change_often_are_published_once_a_window(start, tmp_path):
    driver, keys = start(window_seconds=3600), keys_of(*range(1, 9))
    publisher = settle(driver.shard)
    before = len(batches(tmp_path))
    for sequence in range(1, 11):
        driver.do(push(keys), client=1, sequence=sequence)
    assert publisher.oldest_seconds > 0
    assert publisher.num_waiting == 8
    assert len(batches(tmp_path)) == before
    collected = publisher.collected
    answer = Future()
    driver.shard.outlet.mark(Marker("v1", 10, 5.0), 1, answer)
    settle(driver.shard)
    (batch,) = batches(tmp_path)[before:]
    assert (batch.records, batch.marker, answer.result(0)) == (8, Marker("v1", 10, 5.0), batch.offset)
    assert collected >= 80
    assert publisher.num_waiting == 0
    assert publisher.oldest_seconds == 0
    check(tmp_path, driver)


def test_a_window_ends_early_with_so_many_keys_and_large_ones_are_several_batches(start, tmp_path):
    driver = start(window_seconds=3600, window_rows=6000)
    publisher = settle(driver.shard)
    before = len(batches(tmp_path))
    driver.do(push(keys_of(*range(1, 5000))), client=1, sequence=1)
    assert publisher.num_waiting == 4999
    driver.do(push(keys_of(*range(5000, 30000))), client=1, sequence=2)
    settle(driver.shard)
    found = batches(tmp_path)[before:]
    assert sum(batch.records for batch in found) == 29999
    assert max(batch.records for batch in found) < 6000 + 4096
    check(tmp_path, driver)


def test_keys_that_get_no_row_are_no_tombstones(start, tmp_path):
    driver, keys = start(LATE), keys_of(*range(1, 9))
    settle(driver.shard)
    before = len(batches(tmp_path))
    driver.do(push(keys), client=1, sequence=1)
    settle(driver.shard)
    assert batches(tmp_path)[before:] == []  # counted, and not admitted yet
    driver.do(push(keys[:4]), client=1, sequence=2)
    check(tmp_path, driver)
    assert sum(batch.records for batch in batches(tmp_path)[before:]) == 4


def test_evicted_rows_and_late_segments_are_published(start, tmp_path):
    driver, keys = start(LATE, codec="fp16"), keys_of(*range(1, 900))

    def do(made, sequence, event_time):
        request = message(made, client=1, sequence=sequence)
        request.event_time = event_time
        answer = driver.send(request)
        driver.run()
        return answer.result(0)

    for sequence in (1, 2, 3):  # the second brings rows, the third the late segments of some
        do(push(keys if sequence < 3 else keys[::2], 0.25), sequence, 1000 if sequence < 3 else 1200)
    check(tmp_path, driver, codec="fp16")
    assert 0 < driver.table.num_early < driver.table.num_rows
    do(call("evict"), 4, 1250)
    follower = check(tmp_path, driver, codec="fp16")
    assert set(follower.rows["user"]) == set(keys[::2].tolist())


@pytest.mark.parametrize("limit", [64, 1 << 16])
def test_a_table_wide_update_is_published(start, tmp_path, monkeypatch, limit):
    """Also when it changes more keys than are remembered: then the buckets come whole."""
    monkeypatch.setattr("ps.deltas.pending._LEAST_KEYS", limit)
    driver, keys = start(TWO_TABLES), keys_of(*range(1, 900))
    driver.do(push(keys), push(keys, table="item", width=2), client=1, sequence=1)
    settle(driver.shard)
    driver.do(call("sweep", table="item"), client=1, sequence=2, step=2)
    driver.do(call("delete", keys=keys[:100]), client=1, sequence=3)
    check(tmp_path, driver)
    driver.do(call("clear"), client=1, sequence=4)
    follower = check(tmp_path, driver)
    assert follower.rows["user"] == {}
    assert len(follower.rows["item"]) == 899


def test_a_mark_waits_for_buckets_that_come_whole(start, tmp_path):
    driver, keys = start(), keys_of(*range(1, 900))
    driver.do(push(keys), client=1, sequence=1)
    driver.do(call("clear"), client=1, sequence=2)
    driver.do(push(keys[:50]), client=1, sequence=3)
    answers = [Future(), Future()]
    for number, answer in enumerate(answers):
        driver.shard.outlet.mark(Marker(f"v{number}", number, 0.0), 1, answer)
    settle(driver.shard)
    first, second = (answer.result(0) for answer in answers)
    assert second == first + 1
    follower = Follower(driver.spec)
    for batch in batches(tmp_path):
        if batch.offset <= first:
            follower.apply(batch)
    assert follower.rows == rows_of([driver.shard.holding])
    assert [marker.version for _, _, marker in follower.markers] == ["v0"]


def test_marking_needs_deltas():
    driver = Driver()
    with pytest.raises(RequestError, match=r"set cluster\.deltas"):
        driver.shard.outlet.mark(Marker("v", 0, 0.0), 1, Future())
    assert driver.shard.outlet.next_offset is None


def test_buckets_of_others_are_neither_published_nor_dropped(start, tmp_path):
    """A shard that gives buckets away says nothing of them; the one that has them publishes them whole."""
    old, keys = start(), keys_of(*range(1, 900))
    old.do(push(keys), client=1, sequence=1)
    check(tmp_path, old)
    owners = [0] * 8 + [1] * 8
    new = start(epoch=2, shards=2, shard=1)
    new.place(shards=2, shard=1, epoch=3, owners=owners)
    theirs = keys_in(range(8, 16), each=60)
    new.table.write_images(*_all_rows(old, range(8, 16)))
    old.do(push(theirs), client=1, sequence=2)  # comes too late: not in what the other one has
    old.place(shards=2, shard=0, epoch=3, owners=owners)
    ours = keys_in(range(8), each=60)
    old.do(push(ours), client=1, sequence=3, epoch=3)
    new.do(push(theirs, 2.0), client=1, sequence=4, epoch=3)
    check(tmp_path, new, old)


def test_a_marker_is_of_one_epoch(start, tmp_path):
    """A shard at another epoch refuses it, and so does one that comes to another before it is written."""
    driver, keys, owners = start(window_seconds=3600), keys_of(*range(1, 900)), [0] * 8 + [1] * 8
    settle(driver.shard)
    before = len(batches(tmp_path))

    def mark(epoch):
        answer = Future()
        driver.shard.mark(Marker("v1", 1, 0.0), epoch, answer)
        return answer

    with pytest.raises(WrongEpochError, match="epoch 2; this shard is at 1"):
        mark(2).result(0)
    driver.do(push(keys), client=1, sequence=1)
    waiting = mark(1)
    driver.place(shards=2, shard=0, epoch=2, owners=owners)
    with pytest.raises(WrongEpochError, match="from epoch 1 to 2 before the marker was written"):
        waiting.result(0)
    with pytest.raises(WrongEpochError, match="epoch 1; this shard is at 2"):
        mark(1).result(0)
    settle(driver.shard)
    assert all(batch.marker is None for batch in batches(tmp_path)[before:])
    written = mark(2)
    settle(driver.shard)
    assert batches(tmp_path)[-1].offset == written.result(0)
    assert batches(tmp_path)[-1].marker == Marker("v1", 1, 0.0)


def _all_rows(driver, buckets):
    pieces = [piece for bucket in buckets for piece in driver.table.read_images(bucket)]
    return np.concatenate([keys for keys, _ in pieces]), np.concatenate([images for _, images in pieces])


def test_a_batch_that_fails_is_made_up_for(start, tmp_path, monkeypatch):
    driver, keys = start(), keys_of(*range(1, 900))
    publisher = settle(driver.shard)
    monkeypatch.setattr("ps.deltas.publishing._FAILED_SECONDS", 0.0)
    original, failures = publisher._encoder.set_rows, []

    def failing(table, keys):
        if not failures:
            failures.append(table)
            raise MemoryError
        return original(table, keys)

    monkeypatch.setattr(publisher._encoder, "set_rows", failing)
    driver.do(push(keys), client=1, sequence=1)
    check(tmp_path, driver)
    assert publisher.num_failed == 1


numbers = st.lists(st.integers(1, 60), min_size=1, max_size=20, unique=True)
events = st.one_of(
    st.tuples(st.just("push"), numbers, st.sampled_from([-1.0, 0.5, 2.0])),
    st.tuples(st.just("delete"), numbers),
    st.tuples(st.sampled_from(["sweep", "clear", "restart", "restore", "mark", "slice", "window", "save"])),
)


@settings(max_examples=60)
@given(
    st.lists(events, max_size=25),
    st.sampled_from([0, 25, 3600]),
    st.sampled_from([1, 7, 100_000]),
    st.sampled_from(["fp32", "int8"]),
)
def test_any_history(history, window_seconds, window_rows, codec):
    with tempfile.TemporaryDirectory() as folder:
        options = {"window_seconds": window_seconds, "window_rows": window_rows, "codec": codec}
        spec = with_deltas(folder, TWO_TABLES, **options)
        epoch, driver, marks, saved = 1, Driver(spec), [], []
        try:
            for sequence, (name, *rest) in enumerate(history, start=1):
                identity = {"client": 5, "sequence": sequence, "epoch": epoch, "step": sequence}
                if name == "push":
                    keys = keys_of(*rest[0])
                    calls = push(keys, rest[1]), push(keys, rest[1], table="item", width=2)
                    driver.do(*calls, **identity)
                elif name == "delete":
                    keys = keys_of(*rest[0])
                    driver.do(call("delete", keys=keys), call("delete", table="item", keys=keys[::2]), **identity)
                elif name in ("sweep", "clear"):
                    driver.do(call(name, table="item"), **identity)
                elif name == "restart":  # empty, as a shard without a journal is
                    driver.shard.outlet.close()
                    epoch += 1
                    driver = Driver(spec, epoch=epoch)
                elif name == "restore":
                    epoch += 1
                    records = [
                        each for bucket in range(NUM_BUCKETS) for each in driver.shard.holding.records_of(bucket)
                    ]
                    driver.place(epoch=epoch)
                    restored = Future()
                    driver.shard.restore(Incoming(records[::2]), restored)
                    driver.run()
                    restored.result(0)
                elif name == "mark":
                    marks.append((sequence, Future()))
                    driver.shard.outlet.mark(Marker(str(sequence), sequence, 0.0), epoch, marks[-1][1])
                elif name == "save":
                    rows = rows_of([driver.shard.holding], codec)
                    saved.append((driver.saved()[1]["delta_offset"], rows))
                elif name == "slice":
                    driver.shard.run_slice()
                else:
                    settle_if_due(driver)
            answer = Future()
            driver.shard.outlet.mark(Marker("end", 0, 0.0), epoch, answer)  # nothing waits behind it
            settle(driver.shard)
            follower = Follower(spec, codec).follow(folder)
            assert follower.rows == rows_of([driver.shard.holding], codec)
            assert follower.markers[-1][1:] == (answer.result(0), Marker("end", 0, 0.0))
            for offset, rows in saved:  # a checkpoint and the stream behind it
                later = Follower(spec, codec)
                later.rows = rows
                assert later.follow(folder, {0: offset}).rows == follower.rows
            again = Follower(spec, codec).follow(folder)  # from an earlier offset, onto what is there
            for batch in batches(folder):
                again.apply(batch)
            assert again.rows == follower.rows
        finally:
            driver.shard.outlet.close()


def settle_if_due(driver):
    if driver.shard.outlet.publisher.options.window_seconds < 100:
        settle(driver.shard)
