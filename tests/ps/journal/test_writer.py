"""The writing thread on a disk that is full, or fails."""

import errno
import os
import time

import pytest

from ps.durability import Durability
from ps.journal import writer as module
from ps.journal.frames import encode_commit
from ps.journal.segments import Acknowledged, SegmentName, check_segments
from ps.journal.writer import Writer


class Disk:
    """os.writev and os.fdatasync, and how they fail. room: bytes that it still takes."""

    def __init__(self, monkeypatch):
        self.room, self.syncs_fail, self.num_syncs = 1 << 40, False, 0
        self._writev, self._fdatasync = os.writev, os.fdatasync
        monkeypatch.setattr(module.os, "writev", self.writev)
        monkeypatch.setattr(module.os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)

    def writev(self, file, pieces):
        data = b"".join(pieces)[: self.room]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return os.write(file, data)

    def fdatasync(self, file):
        self.num_syncs += 1
        if self.syncs_fail:
            self.syncs_fail = False  # as Linux has it: it says so once, then forgets
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(file)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def open_writer(folder, **options):
    acknowledged = Acknowledged(folder)
    start = {"spec": "{}"}
    return Writer(folder, Durability(**options), acknowledged, name=SegmentName(1, 1), start=start, after=None)


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def whole_updates(folder):
    acknowledged = Acknowledged(folder)
    found = check_segments(folder, acknowledged.read(), None)
    acknowledged.close()
    return [(segment.name.first, segment.path.read_bytes()[: segment.end].count(b"commit")) for segment in found]


def test_a_full_disk_is_waited_for_and_leaves_nothing_half(tmp_path, disk):
    writer, told = open_writer(tmp_path), []
    writer.append([encode_commit(1, {})], ends_update=True)
    writer.after(lambda: told.append(1))
    until(lambda: told == [1])
    disk.room = len(encode_commit(2, {})) // 2
    for number in (2, 3):
        writer.append([encode_commit(number, {})], ends_update=True)
        writer.after(lambda number=number: told.append(number))
    until(lambda: writer.trouble)
    assert "No space left on device; free space there" in writer.trouble
    assert told == [1]
    assert whole_updates(tmp_path) == [(1, 1)]
    disk.room = 1 << 40
    until(lambda: told == [1, 2, 3])
    assert not writer.trouble
    writer.close()
    assert whole_updates(tmp_path) == [(1, 3)]


@pytest.mark.parametrize("begins_segment", [False, True])
def test_a_failed_sync_is_never_followed_by_an_acknowledgement(tmp_path, disk, begins_segment):
    """What the disk has after it is unknown, and a second try may say that all is well."""
    writer, told = open_writer(tmp_path, fsync=60.0 if begins_segment else "always"), []
    writer.append([encode_commit(1, {})], ends_update=True)
    writer.after(lambda: told.append(1))
    until(lambda: told == [1])
    disk.syncs_fail = True
    if begins_segment:
        writer.begin_segment(2)
    writer.append([encode_commit(2, {})], ends_update=True)
    writer.after(lambda: told.append(2))
    until(lambda: writer.trouble)
    assert "failed to sync" in writer.trouble
    time.sleep(0.1)
    assert told == [1]
    writer.close()
