"""Signs of life: a writer gives them while its shard has published all it could, and readers compare no clocks."""

import os
import time

import pytest

import ps.delta_folder
import ps.deltas.writer
from ps.delta_folder import FolderLine
from ps.delta_options import DeltaOptions
from ps.deltas.alive import NAME, Beat, read_beat, write_beat
from ps.deltas.batches import encode_end
from ps.deltas.partition import Partition
from ps.deltas.reading import partition_folder
from ps.deltas.writer import Writer

BEAT = Beat(at=1.5e9, epoch=7, shards=3, last=1_700_000_000_000_000, total=12)


@pytest.fixture
def folder(tmp_path):
    made = partition_folder(tmp_path, 0)
    made.mkdir()
    return made


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def batch(offset, total):
    return [encode_end(offset, epoch=1, at=2.0, since=1.0, records=1, total=total)]


def test_a_sign_that_is_not_whole_is_none(folder):
    assert read_beat(folder) is None
    write_beat(folder, BEAT._replace(total=1 << 62))
    write_beat(folder, BEAT)
    assert read_beat(folder) == BEAT
    data = (folder / NAME).read_bytes()
    assert len(data) == 256
    text = data.rstrip()
    for size in range(len(text)):
        (folder / NAME).write_bytes(text[:size])
        assert read_beat(folder) is None
    for place in range(len(text)):
        (folder / NAME).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert read_beat(folder) in (None, BEAT)  # of bytes between numbers, JSON may not mind
    for wrong in (BEAT._replace(shards=0), BEAT._replace(last=-1), BEAT._replace(epoch=1.0)):
        write_beat(folder, wrong)
        assert read_beat(folder) is None


def test_a_writer_says_it_lives_while_all_is_written(folder, monkeypatch):
    monkeypatch.setattr(ps.deltas.writer, "BEAT_SECONDS", 0.02)
    options, leads = DeltaOptions(directory="unused"), [True]
    writer = Writer(lambda: Partition(folder, 0, options, {}), options, first=1, leads=lambda: leads[0])
    until(lambda: writer.is_ready)
    time.sleep(0.1)
    assert read_beat(folder) is None  # it has no place yet
    writer.move(3, 2)
    until(lambda: read_beat(folder) is not None)
    assert read_beat(folder)[1:] == (3, 2, 0, 0)
    writer.put(batch(1, 0), records=1, since=1.0)
    until(lambda: read_beat(folder)[1:] == (3, 2, 1, 1))

    def is_quiet():
        before = read_beat(folder)
        time.sleep(0.2)
        return read_beat(folder) == before

    assert not is_quiet()  # the shard is
    monkeypatch.setattr(os, "writev", lambda file, pieces: (_ for _ in ()).throw(OSError(28, "No space left")))
    writer.put(batch(2, 1), records=1, since=1.0)
    until(lambda: writer.trouble)
    assert is_quiet()
    monkeypatch.undo()
    monkeypatch.setattr(ps.deltas.writer, "BEAT_SECONDS", 0.02)
    until(lambda: read_beat(folder).last == 2)
    leads[0] = False  # a standby may have its place
    time.sleep(0.05)
    assert is_quiet()
    leads[0] = True
    assert not is_quiet()
    (folder / NAME).unlink()
    (folder / NAME).mkdir()
    until(lambda: "it cannot be said that the shard lives" in writer.trouble)
    (folder / NAME).rmdir()
    until(lambda: writer.trouble == "" and read_beat(folder) is not None)
    writer.move(4, 1)
    until(lambda: read_beat(folder)[1:3] == (4, 1))
    writer.close()
    assert is_quiet()


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_rows_are_complete_as_of_the_look_before_another_sign(folder, monkeypatch, ahead):
    """Whatever the shard's clock says."""
    monkeypatch.setattr(ps.delta_folder, "_LOOK_SECONDS", 0.0)
    partition, past = Partition(folder, 0, DeltaOptions(directory="unused"), {}), [False]
    line = FolderLine(folder, 0, lambda: past[0])

    def beat(after):
        partition.beat(time.time() + ahead + after, epoch=1, shards=1)

    beat(0)
    assert not line.read().is_end  # it may be of long ago
    looked = time.time()
    assert not line.read().is_end
    time.sleep(0.02)
    beat(1)
    found = line.read()
    assert found.is_end
    assert looked <= found.at <= time.time() - 0.015
    assert not line.read().is_end  # the same sign as before
    partition.append(batch(1, 0), records=1)
    beat(2)
    partition.append(batch(2, 1), records=1)
    found = line.read()
    assert ([each.offset for each in found.batches], found.is_end) == ([1, 2], True)
    write_beat(folder, Beat(3.0, 1, 1, last=3, total=3))  # of a batch that is not seen here yet, as on a shared disk
    assert not line.read().is_end
    partition.append(batch(3, 2), records=1)
    assert line.read().is_end
    past[0] = True
    assert line.read().is_end
    line.close()
    partition.close()
