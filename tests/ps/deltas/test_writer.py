"""What holds a partition's writer up, and what of a shard goes on meanwhile."""

import os
import subprocess
import sys
import time

import pytest

from ps.delta_options import DeltaOptions
from ps.deltas.batches import encode_end
from ps.deltas.partition import Partition
from ps.deltas.reading import PartitionReader, find_segments, partition_folder, segment_path
from ps.deltas.writer import Writer
from ps.spec import ClusterSpec
from tests.ps.deltas.streams import Follower, rows_of, settle, with_deltas
from tests.ps.driving import SPEC, Driver, keys_of, push


@pytest.fixture
def folder(tmp_path):
    return partition_folder(tmp_path, 0)


def opened(folder, **changed):
    options = DeltaOptions(directory="unused", **changed)
    return Writer(lambda: Partition(folder, 0, options, {}), options, first=1)


def put(writer, told=None):
    end = {"epoch": 1, "at": 2.0, "since": 1.0, "records": 1, "total": writer.total}
    writer.put([encode_end(writer.next_offset, **end)], records=1, since=1.0, told=told)


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("fsync", ["never", "always", 0.05])
def test_batches_are_written_in_order_and_told(folder, monkeypatch, fsync):
    synced, told = [], []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(len(told)))
    writer = opened(folder, fsync=fsync)
    until(lambda: writer.is_ready)
    for number in range(5):
        put(writer, told=lambda number=number: told.append(number))
    assert writer.wait(5, seconds=10)
    until(lambda: len(told) == 5)
    assert (writer.num_batches, writer.num_records, writer.end_offset, writer.end_total) == (5, 5, 6, 5)
    assert (writer.backlog_bytes, writer.since) == (0, None)
    if fsync == 0.05:
        until(lambda: synced)  # though nothing more came
    assert (synced == [0, 1, 2, 3, 4]) == (fsync == "always")
    assert bool(synced) == (fsync != "never")
    writer.close()
    assert [batch.offset for batch in PartitionReader(folder).read()] == [1, 2, 3, 4, 5]


def test_a_disk_that_fails_is_waited_for(folder, monkeypatch):
    writer = opened(folder)
    until(lambda: writer.is_ready)
    put(writer)
    until(lambda: writer.num_batches == 1)
    write = os.writev

    def full(file, pieces):
        write(file, [pieces[0][:5]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    put(writer)
    until(lambda: "No space left" in writer.trouble)
    assert (writer.end_offset, writer.since) == (2, 1.0)
    monkeypatch.undo()
    until(lambda: writer.num_batches == 2)
    assert writer.trouble == ""
    put(writer)
    writer.close()
    assert [batch.offset for batch in PartitionReader(folder).read()] == [1, 2, 3]


def test_a_shard_trains_on_while_its_partition_is_taken_and_publishes_all_when_it_is_free(tmp_path, folder):
    """A process that is frozen still has the partition: nothing is appended beside it."""
    script = (
        "import sys, time; from pathlib import Path; from ps.delta_options import DeltaOptions\n"
        "from ps.deltas.partition import Partition\n"
        "held = Partition(Path(sys.argv[1]), 0, DeltaOptions(directory='x'), {})\n"
        "print('open', flush=True); time.sleep(60)"
    )
    zombie = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    driver = None
    try:
        assert zombie.stdout.readline() == "open\n"
        driver = Driver(with_deltas(tmp_path))
        publisher = driver.shard.outlet.publisher
        driver.do(push(keys_of(*range(1, 99))), client=1, sequence=1)
        until(lambda: "is the delta stream of a shard that runs" in publisher.writer.trouble)
        assert publisher.num_whole == driver.spec.num_buckets
        assert len(find_segments(folder)) == 1
        offset = driver.shard.outlet.next_offset  # of a checkpoint that is made now
        zombie.kill()
        zombie.wait()
        settle(driver.shard)
        assert publisher.writer.trouble == ""
        assert Follower(driver.spec).follow(tmp_path, {0: offset}).rows == rows_of([driver.shard.holding])
    finally:
        zombie.kill()
        zombie.wait()
        zombie.stdout.close()
        if driver is not None:
            driver.shard.outlet.close()


def test_a_damaged_partition_is_begun_anew_when_it_is_moved_away(tmp_path, folder):
    first = Driver(with_deltas(tmp_path))
    first.do(push(keys_of(*range(1, 99))), client=1, sequence=1)
    settle(first.shard)
    first.shard.outlet.close()
    (name,) = find_segments(folder)
    data = bytearray(segment_path(folder, name).read_bytes())
    data[len(data) // 2] ^= 1
    segment_path(folder, name).write_bytes(data)
    driver = Driver(with_deltas(tmp_path), epoch=2)
    writer = driver.shard.outlet.publisher.writer
    until(lambda: "published rows are damaged" in writer.trouble)
    folder.rename(tmp_path / "aside")
    settle(driver.shard)
    assert Follower(driver.spec).follow(tmp_path).rows == rows_of([driver.shard.holding])
    driver.shard.outlet.close()


def test_options_are_checked_and_may_change_while_rows_stay(tmp_path):
    for given, said in (
        ({"directory": None}, r"deltas\.directory: missing"),
        ({"directory": "deltas"}, r"deltas\.directory: 'deltas' must be a path from the root"),
        ({"codec": {"item": {}}}, r"deltas\.codec: must name the tables user; found item"),
        ({"codec": {"user": {"linear": "fp16"}}}, r"deltas\.codec\.user: must name the segments linear, embedding"),
    ):
        with pytest.raises(ValueError, match=said):
            with_deltas(tmp_path, **given)
    spec = with_deltas(tmp_path, codec={"user": {"linear": "fp32", "embedding": "int8"}})
    assert ClusterSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.rows_only() == SPEC.rows_only()
    driver = Driver(with_deltas(tmp_path, window_seconds=3600))
    publisher = driver.shard.outlet.publisher
    driver.spec = with_deltas(tmp_path, window_seconds=0, fsync="always")
    driver.place(epoch=2)
    assert driver.shard.outlet.publisher is publisher
    driver.do(push(keys_of(1)), client=1, sequence=1, epoch=2)
    settle(driver.shard)
    driver.spec = with_deltas(tmp_path, codec="int8")  # other images: all is published anew
    driver.place(epoch=3)
    assert driver.shard.outlet.publisher is not publisher
    settle(driver.shard)
    reader = PartitionReader(partition_folder(tmp_path, 0))
    last = [frame for batch in reader.read() for frame in batch.rows if len(frame.full[0])][-1]
    reader.close()
    assert last.layout == driver.shard.outlet.publisher._encoder._digests["user"]
    driver.spec = SPEC
    driver.place(epoch=4)
    assert driver.shard.outlet.publisher is None
