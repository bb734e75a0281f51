"""Saves beside updates: the file is the shard at the mark, with what was applied then; errors and restores end them."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from ps import checkpoint
from ps.errors import CheckpointError
from ps.loading import Incoming
from ps.pipe import Pipe
from ps.places import LocalPlace
from ps.shard import Shard
from ps.work import WorkThread
from tests.ps.driving import NUM_BUCKETS, SPEC, TWO_TABLES, Driver, call, keys_in, message, push
from tests.ps.test_checkpoint import KEYS, Cluster

MORE = keys_in(range(NUM_BUCKETS), each=8)


class Full:
    """A sink that has enough after every piece; `step` lets the next one be made."""

    def __init__(self):
        self.pieces, self.go_on = [], None

    def __call__(self, piece):
        self.pieces.append(piece)
        return False

    def when_room(self, go_on):
        self.go_on = go_on

    def step(self):
        go_on, self.go_on = self.go_on, None
        if go_on is not None:
            go_on()
        return go_on is not None


def read(pieces, path):
    """{(table, key): image} and {(table, bucket): applied} of a file."""
    path.write_bytes(b"".join(pieces))
    rows, applied = {}, {}
    with checkpoint.open_part(LocalPlace(path.parent), path.name, shown=str(path)) as part:
        for record in part.records:
            for key, image in zip(record.keys.tolist(), record.images):
                assert (record.table, key) not in rows
                rows[record.table, key] = image.tobytes()
            if record.applied:
                applied[record.table, record.bucket] = record.applied
    return rows, applied


@pytest.mark.parametrize("seed", range(8))
def test_a_file_is_the_shard_at_the_mark(tmp_path, seed):
    """Whatever runs between its pieces: pushes, new keys, deletes, sweeps of a whole table."""
    driver, rng = Driver(TWO_TABLES), np.random.default_rng(seed)
    driver.do(push(KEYS, 1.0), push(KEYS, 0.5, table="item", width=2), sequence=1)
    expected = read(driver.saved()[0], tmp_path / "at once")
    assert len(expected[0]) == 2 * len(KEYS)
    sink, answer, marked = Full(), Future(), Future()
    driver.shard.save(sink, answer, marked)
    driver.run()
    assert marked.done()
    sequence = 1
    while not answer.done():
        for _ in range(int(rng.integers(0, 3))):
            sequence += 1
            keys = MORE[np.sort(rng.choice(len(MORE), 20, replace=False))]
            calls = [
                push(keys, 0.25),
                push(keys, 0.25, table="item", width=2),
                call("delete", keys=keys),
                call("sweep", table="item"),
                call("clear", table="item"),
            ]
            driver.do(calls[int(rng.integers(0, len(calls)))], sequence=sequence, step=sequence)
        sink.step()
        driver.run()
    assert sequence > 5
    assert read(sink.pieces, tmp_path / "beside") == expected
    said = answer.result()
    assert said["rows"] == {"user": len(KEYS), "item": len(KEYS)}
    assert not driver.table.watchers._all


def test_updates_that_wait_at_the_mark_come_after_it(tmp_path):
    """A save begins in its turn: what came before is in it, what came after is not."""
    driver, sink, answer = Driver(), Full(), Future()
    first = driver.send(message_of(1))
    driver.shard.save(sink, answer)
    second = driver.send(message_of(2))
    driver.run()
    assert first.done()
    assert second.done()
    while sink.step():
        driver.run()
    rows, applied = read(sink.pieces, tmp_path / "file")
    other = Driver()
    other.do(push(KEYS, 1.0), sequence=1)
    assert (rows, applied) == read(other.saved()[0], tmp_path / "other")


def message_of(sequence):
    return message(push(KEYS, 1.0), sequence=sequence)


def test_a_restore_ends_a_save(tmp_path):
    driver, sink, answer = Driver(), Full(), Future()
    driver.do(push(KEYS, 1.0), sequence=1)
    driver.shard.save(sink, answer)
    driver.run()
    sink.step()
    driver.run()
    restored = Future()
    driver.shard.restore(Incoming(iter(())), restored)
    driver.run()
    assert restored.result(0) == 0
    sink.step()
    driver.run()
    with pytest.raises(CheckpointError, match="a restore began before all was saved"):
        answer.result(0)
    assert not driver.table.watchers._all


def test_a_sink_that_fails_ends_the_save():
    driver, answer = Driver(), Future()
    driver.do(push(KEYS, 1.0), sequence=1)

    def sink(piece):
        raise CheckpointError("no room")

    driver.shard.save(sink, answer)
    driver.run()
    with pytest.raises(CheckpointError, match="no room"):
        answer.result(0)
    assert not driver.table.watchers._all


def test_a_pipe_calls_when_half_of_it_is_written():
    posted = []
    pipe = Pipe(4, posted.append)
    assert [pipe(b"x") for _ in range(4)] == [True, True, True, False]
    pipe.when_room(lambda: None)
    assert not posted
    taking = iter(pipe)
    for _ in range(2):
        next(taking)
    assert len(posted) == 1
    pipe.when_room(lambda: None)  # there is room: at once
    assert len(posted) == 2
    pipe.end()
    assert list(taking) == [b"x", b"x"]
    pipe.when_room(lambda: None)
    pipe.stop()
    with pytest.raises(CheckpointError, match="could not be written"):
        pipe(b"x")


def test_training_goes_on_while_the_disk_is_slow(tmp_path, monkeypatch):
    """Nothing waits for it but the save; and its parts are one cut over all shards."""
    slow = threading.Event()
    write = checkpoint.write_part

    def slowly(folder, shard, num_shards, pieces):
        def waiting():
            for piece in pieces:
                slow.wait()
                yield piece

        return write(folder, shard, num_shards, waiting())

    monkeypatch.setattr(checkpoint, "write_part", slowly)
    with Cluster(2) as cluster, Cluster(3) as other:
        cluster.push(1.0, sequence=1)
        expected = cluster.rows()
        for thread in cluster.threads:
            thread.save(str(tmp_path), 7, begin=True)
        for sequence in range(2, 30):
            assert cluster.push(1.0, sequence=sequence) == (len(KEYS), 0)
        assert all(not thread._begun[1].done() for thread in cluster.threads)
        slow.set()
        parts = [thread.save(str(tmp_path), 7).manifest for thread in cluster.threads]
        checkpoint.write_manifest(tmp_path, SPEC, parts)
        with pytest.raises(CheckpointError, match="save again"):
            cluster.threads[0].save(str(tmp_path), 8)
        other.restore(tmp_path)
        np.testing.assert_array_equal(other.rows(), expected)
        assert other.push(1.0, sequence=1) == (0, len(KEYS))
        assert other.push(1.0, sequence=2) == (len(KEYS), 0)


def test_a_save_that_cannot_begin_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with Cluster(1) as cluster:
        thread = cluster.threads[0]
        with pytest.raises(CheckpointError, match="cannot write"):
            for begin in (True, False):  # the folder may be looked at before the mark or after it
                thread.save(str(tmp_path / "file"), 3, begin=begin)
        cluster.push(1.0, sequence=1)
        deadline = time.monotonic() + 10
        while thread.shard.holding.tables["user"].watchers._all and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not thread.shard.holding.tables["user"].watchers._all
    empty = WorkThread(Shard())
    with pytest.raises(Exception, match="no place"):
        empty.save(str(tmp_path), 3, begin=True)
    empty.close()
