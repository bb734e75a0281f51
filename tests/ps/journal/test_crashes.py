"""Crashes in the middle of what takes several slices or threads: evictions, snapshots."""

import shutil
import threading
import time
from concurrent.futures import Future

import msgpack

from ps.journal.lock import Lock
from ps.journal.recovery import recover
from ps.journal.segments import SegmentName
from ps.journal.snapshot import POINTER, SnapshotWriter, read_pointer
from ps.request import check_request
from tests.ps.driving import call, keys_of, message, push
from tests.ps.journal.playing import NUM_BUCKETS, Play, recovered_state, state_of


def test_an_eviction_that_a_crash_cut_short_is_done_again_when_it_is_sent_again(tmp_path):
    play = Play(tmp_path / "first")
    keys = keys_of(*range(1, 60), num_buckets=NUM_BUCKETS)
    for _ in range(2):  # the second show earns the row
        play.do(push(keys, 1.0, table="kept", width=3), event_time=10)
    table = play.shard.holding.tables["kept"]
    play.send(call("evict", table="kept"), event_time=1000)
    while table.num_rows == len(keys):
        play.shard.run_slice()
    assert 0 < table.num_rows < len(keys), "it takes several slices"
    play.settle()
    shutil.copytree(play.folder, tmp_path / "crashed")
    play.close()

    folder = tmp_path / "crashed"
    again = Play(folder, recovered=recover(folder, Lock(folder, takes_over=False), now=0.0))
    rows = again.shard.holding.tables["kept"].num_rows
    assert 0 < rows < len(keys)
    again.sequences = iter([3, 3])  # as that one had
    assert again.do(call("evict", table="kept"), event_time=1000).results[0].num_applied == rows
    assert again.shard.holding.tables["kept"].num_rows == 0
    assert again.do(call("evict", table="kept"), event_time=1000).results[0].num_skipped == NUM_BUCKETS
    again.close()


def test_no_segment_begins_inside_an_update(tmp_path):
    """Reads end while the frames of a long update are being written, one for each bucket; the journal is long enough
    for a snapshot by then.
    """
    play = Play(tmp_path)
    keys = keys_of(*range(1, 400), num_buckets=NUM_BUCKETS)
    play.do(push(keys, 1.0))
    for _ in range(2):
        play.settle()
        play.journal.snapshot_bytes = 0
        options = {"snapshot_after_bytes": play.journal.bytes_since_snapshot + 1}
        play.journal.use(play.journal.options.model_copy(update=options))
        update = play.send(call("scale", args=msgpack.packb({"factor": 2.0})), client=2)
        while not update.done():
            play.shard.run_slice()
            until_written(play.journal)
            read = Future()
            play.shard.receive(check_request(message(call("pull", keys=keys[:1])), play.shard.holding.spec), read)
            while not read.done():
                play.shard.run_slice()
        assert recovered_state_of_copy(tmp_path)[1] == state_of(play.shard.holding), (
            "a crash before the snapshot counts"
        )
        play.run()
    play.settle()
    assert play.journal.num_snapshots == 2
    play.close()


def test_a_snapshot_does_not_count_before_the_segment_behind_it_is_there(tmp_path):
    """Else the journal's folder would name a file that a crash at that moment leaves unwritten."""
    play = Play(tmp_path)
    play.do(push(keys_of(1, 2, 3, num_buckets=NUM_BUCKETS), 1.0))
    play.settle()
    state, has_begun, told = recovered_state_of_copy(tmp_path), threading.Event(), []
    snapshot = SnapshotWriter(tmp_path, play.shard.holding, SegmentName(1, 2), has_begun, done=told.append)
    for bucket in range(NUM_BUCKETS):
        for _ in snapshot.write_bucket(bucket, 2):
            pass
    snapshot.finish()
    time.sleep(0.2)
    assert not (tmp_path / POINTER).exists()
    assert recovered_state_of_copy(tmp_path) == state
    has_begun.set()
    snapshot._thread.join(5)
    assert told == [read_pointer(tmp_path).num_bytes]
    play.close()


def until_written(journal):
    while journal.backlog_bytes:
        time.sleep(0.0005)


def recovered_state_of_copy(folder):
    copy = folder.parent / "copy"
    for attempt in range(20):
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(folder, copy)
            break
        except shutil.Error:  # the journal's writer renamed a file meanwhile
            assert attempt < 19
    return recovered_state(copy)
