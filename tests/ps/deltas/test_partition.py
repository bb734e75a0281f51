"""A partition's files: offsets, torn tails, damage, retention, one writer."""

import os
import subprocess
import sys
import time

import pytest

from ps.delta_options import DeltaOptions
from ps.deltas.batches import Marker, encode_end, read_batches
from ps.deltas.partition import Partition
from ps.deltas.reading import PartitionReader, find_partitions, find_segments, partition_folder, segment_path
from ps.deltas.retention import keep, kept_from, release
from ps.errors import DeltaError, RequestError, TrimmedError


def options(**changed):
    return DeltaOptions(**{"directory": "unused", "segment_bytes": 4096, "retention_bytes": None, **changed})


@pytest.fixture
def folder(tmp_path):
    return partition_folder(tmp_path, 3)


def opened(folder, **changed):
    first = changed.pop("first", 1)
    return Partition(folder, 3, options(**changed), {"user": "layout"}, first=first)


def append(partition, count=1, padding=0):
    """Batches without rows; padding: bytes that stand in their markers."""
    for _ in range(count):
        end = {"epoch": 1, "at": 2.0, "since": 1.0, "records": 5, "total": partition.total}
        partition.append([encode_end(partition.next_offset, **end, marker=Marker("v" * padding, 0, 0.0))], records=5)
        partition.roll(now=time.time())


def offsets(folder, start=0):
    reader = PartitionReader(folder, start)
    try:
        found = []
        while batches := reader.read(max_bytes=1):
            found += [batch.offset for batch in batches]
        return found
    finally:
        reader.close()


def test_batches_are_read_from_any_offset_on_over_all_segments(folder, tmp_path):
    partition = opened(folder)
    append(partition, 40, padding=1000)
    assert len(find_segments(folder)) > 5
    for start in (0, 1, 2, 17, 40):
        assert offsets(folder, start) == list(range(max(1, start), 41))
    assert offsets(folder, 41) == []
    assert find_partitions(tmp_path) == {3: folder}
    reader = PartitionReader(folder, 30)
    assert [batch.offset for batch in read_batches(reader.read_bytes(), "here")] == list(range(30, 41))
    assert (reader.next_offset, reader.total, partition.total) == (41, 200, 200)
    append(partition, 2)  # what comes later is found by the reader that waits
    assert [batch.offset for batch in reader.read()] == [41, 42]
    assert reader.read() == []
    reader.close()
    partition.close()


def test_a_partition_that_is_not_there_yet_is_waited_for(folder):
    reader = PartitionReader(folder)
    assert reader.read() == []
    partition = opened(folder, first=50)
    assert reader.read() == []
    append(partition)
    assert [batch.offset for batch in reader.read()] == [50]
    partition.close()


def test_the_next_process_goes_on_behind_the_last_batch_or_further(folder):
    for first, expected in ((1, 1), (1, 4), (100, 100), (1, 103), (1, 106)):
        partition = opened(folder, first=first)
        assert partition.next_offset == expected
        append(partition, 3)
        partition.close()
    assert offsets(folder) == [1, 2, 3, 4, 5, 6, *range(100, 109)]
    assert offsets(folder, 50) == list(range(100, 109))  # none was ever given between
    empty = opened(folder)
    empty.close()
    assert opened(folder).next_offset == 109


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, b"WEIR" * 999, None])
def test_what_was_left_unfinished_is_cut_off(folder, tail):
    partition = opened(folder, segment_bytes=1 << 20)
    append(partition, 3, padding=100)
    partition.close()
    path = segment_path(folder, 1)
    whole = path.read_bytes()
    for end in range(len(whole) - 120, len(whole)) if tail is None else [0]:
        path.write_bytes(whole[:end] if tail is None else whole + tail)
        expected = [1, 2] if tail is None else [1, 2, 3]
        for name in find_segments(folder)[1:]:
            segment_path(folder, name).unlink()
        if tail is None:
            assert offsets(folder) == expected  # a reader waits for the end
        partition = opened(folder)
        assert partition.next_offset == len(expected) + 1
        assert partition.total == 5 * len(expected)
        append(partition)
        partition.close()
        assert offsets(folder) == [*expected, len(expected) + 1]


def test_damage_is_refused_with_file_and_byte(folder):
    partition = opened(folder, segment_bytes=1 << 20)
    append(partition, 3, padding=100)
    partition.close()
    path = segment_path(folder, 1)
    whole = bytearray(path.read_bytes())
    whole[-len(whole) // 2] ^= 1  # of the second batch
    path.write_bytes(whole)
    with pytest.raises(DeltaError, match=rf"{path} at byte \d+: .*; published rows are damaged: take a newer bundle"):
        opened(folder)
    with pytest.raises(DeltaError, match=f"{path} at byte"):
        offsets(folder)
    path.write_bytes(b"WEIRJRNL" + whole[8:])
    with pytest.raises(DeltaError, match="does not begin as a partition"):
        opened(folder)


def test_an_unfinished_end_before_another_segment_is_damage(folder):
    partition = opened(folder)
    append(partition, 20, padding=1000)
    partition.close()
    second = segment_path(folder, find_segments(folder)[1])
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(DeltaError, match=f"{second} ends at byte"):
        offsets(folder)


def test_retention_by_bytes_and_age_keeps_what_is_needed(folder, tmp_path):
    partition = opened(folder)
    append(partition, 40, padding=1000)
    firsts = find_segments(folder)
    keep(tmp_path, "v1", {3: firsts[2], 4: 1})
    partition.options = options(retention_bytes=4096)
    partition.trim(now=0.0)
    assert find_segments(folder) == firsts[2:]
    with pytest.raises(TrimmedError, match=rf"batches from offset {firsts[2] - 1} on were removed.*newer bundle"):
        offsets(folder, firsts[2] - 1)
    with pytest.raises(TrimmedError):
        offsets(folder)  # its beginning is gone
    assert offsets(folder, firsts[2]) == list(range(firsts[2], 41))
    partition.trim(now=0.0, kept=firsts[1])
    release(tmp_path, "v1")
    release(tmp_path, "v1")
    partition.trim(now=0.0, kept=firsts[4])
    assert find_segments(folder) == firsts[4:]
    partition.options = options(retention_seconds=50)
    partition.trim(now=time.time())
    assert find_segments(folder) == firsts[4:]
    partition.trim(now=time.time() + 60)
    assert find_segments(folder) == firsts[-1:]  # the one that is written to stays
    partition.close()


def test_a_reader_that_is_overtaken_by_retention_says_so(folder):
    partition = opened(folder)
    append(partition, 3)
    reader = PartitionReader(folder)
    assert len(reader.read()) == 3
    append(partition, 30, padding=1000)
    partition.options = options(retention_bytes=4096)
    partition.trim(now=0.0)
    with pytest.raises(TrimmedError):
        reader.read()


def test_kept_offsets_are_the_least_and_unreadable_ones_keep_all(tmp_path):
    assert kept_from(tmp_path, 3) is None
    keep(tmp_path, "v1", {3: 70})
    keep(tmp_path, "v2", {3: 90, 4: 5})
    assert [kept_from(tmp_path, shard) for shard in (3, 4)] == [70, 0]  # v1 knows of no partition 4
    (tmp_path / "kept/v1.json").write_text("{")
    assert kept_from(tmp_path, 3) == 0
    for name in ("", "../v1", "a/b", ".v", "v\n"):
        with pytest.raises(RequestError, match="no name to keep deltas under"):
            keep(tmp_path, name, {})


def test_a_partition_has_one_writer(folder):
    partition = opened(folder)
    with pytest.raises(DeltaError, match=r"is the delta stream of a shard that runs.*another deltas\.directory"):
        opened(folder)
    partition.close()
    script = (
        "import sys, time; from pathlib import Path; from ps.delta_options import DeltaOptions\n"
        "from ps.deltas.partition import Partition\n"
        "held = Partition(Path(sys.argv[1]), 3, DeltaOptions(directory='x'), {})\n"
        "print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "open\n"
        ours = Partition(folder, 3, options(), {}, takes_over=True)
        assert process.wait(5) == -9
        ours.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_full_disk_leaves_whole_batches(folder, monkeypatch):
    partition = opened(folder)
    append(partition, 2)
    write = os.writev

    def full(file, pieces):
        write(file, [pieces[0][:5]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space"):
        append(partition)
    monkeypatch.undo()
    append(partition, 2)
    assert offsets(folder) == [1, 2, 3, 4]
    partition.close()
