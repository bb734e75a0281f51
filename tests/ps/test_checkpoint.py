"""Checkpoints on disk: complete or refused, on any number of shards, with what was applied; damage anywhere is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ps
from ps import chain, checkpoint
from ps.errors import CheckpointError, ExpiredError, RequestError, WrongEpochError
from ps.keys import bucket_of
from ps.routing import Routing
from ps.shard import Shard
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats
from ps.work import WorkThread
from tests.ps.driving import NUM_BUCKETS, SPEC, TWO_TABLES, call, keys_in, message, push

KEYS = keys_in(range(NUM_BUCKETS), each=5)


class Cluster:
    """Threads of work over one spec."""

    def __init__(self, shards, spec=SPEC):
        self.spec = spec
        self.threads = [WorkThread(Shard()) for _ in range(shards)]
        self.routing = Routing.initial(spec.num_buckets, [f"s:{number}" for number in range(shards)])
        self.place()

    def place(self):
        for number, thread in enumerate(self.threads):
            thread.assign(
                pb.AssignRequest(
                    cluster_spec=self.spec.model_dump_json().encode(), routing=self.routing.to_message(), shard=number
                )
            ).result(120)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for thread in self.threads:
            thread.close()

    def do(self, make, keys=KEYS, **fields):
        """`make(keys of the shard, their places)` gives the calls of each shard's message."""
        owners = self.routing.owners[bucket_of(keys, NUM_BUCKETS)]
        replies = []
        for number, thread in enumerate(self.threads):
            places = np.flatnonzero(owners == number)
            replies.append((thread.execute(message(*make(keys[places], places), **fields)).result(30), places))
        return replies

    def push(self, value, *, sequence, client=1, keys=KEYS):
        rows = np.broadcast_to(np.asarray(value, np.float32), (len(keys), 3))
        replies = self.do(lambda k, p: [push(k, rows[p])], keys, sequence=sequence, client=client)
        results = [reply.results[0] for reply, _ in replies]
        return sum(r.num_applied for r in results), sum(r.num_skipped for r in results)

    def rows(self, keys=KEYS):
        out = np.empty((len(keys), 3), np.float32)
        for reply, places in self.do(lambda k, p: [call("pull", keys=k)], keys):
            out[places] = decode_floats(reply.results[0].payload, pb.FLOAT32, 3)
        return out

    def save(self, directory, **extra):
        parts = [thread.save(str(directory)).manifest for thread in self.threads]
        return checkpoint.write_manifest(directory, self.spec, parts, extra)

    def restore(self, directory):
        return sum(thread.restore(str(directory)).num_rows for thread in self.threads)


def test_one_shard_to_three_to_two(tmp_path):
    rng = np.random.default_rng(0)
    with Cluster(1) as one, Cluster(3) as three, Cluster(2) as two:
        for sequence in range(1, 4):
            one.push(rng.normal(size=(len(KEYS), 3)), sequence=sequence)
        one.push(1.0, sequence=1, client=2, keys=keys_in([5]))
        expected = one.rows()
        one.save(tmp_path / "one", step=3)
        assert three.restore(tmp_path / "one") == len(KEYS)
        np.testing.assert_array_equal(three.rows(), expected)
        assert three.push(1.0, sequence=3) == (0, len(KEYS))
        # Part of an update had come before the save; the rest comes after shards were added.
        assert three.push(1.0, sequence=1, client=2, keys=keys_in([4, 5])) == (2, 2)
        assert three.push(0.5, sequence=4) == (len(KEYS), 0)
        expected = three.rows()
        three.save(tmp_path / "three")
        assert two.restore(tmp_path / "three") == len(KEYS)
        np.testing.assert_array_equal(two.rows(), expected)
        for client, sequence in ((1, 3), (1, 4)):
            assert two.push(9.0, sequence=sequence, client=client) == (0, len(KEYS))
        assert two.push(9.0, sequence=1, client=2, keys=keys_in([4, 5])) == (0, 4)


def test_a_restore_drops_what_came_after_the_save(tmp_path):
    with Cluster(2) as cluster:
        cluster.push(1.0, sequence=1)
        before = cluster.rows()
        cluster.save(tmp_path)
        cluster.push(1.0, sequence=2, keys=keys_in(range(NUM_BUCKETS), each=8))
        assert cluster.restore(tmp_path) == len(KEYS)
        np.testing.assert_array_equal(cluster.rows(), before)
        assert cluster.push(1.0, sequence=2) == (len(KEYS), 0)


def test_clients_that_expired_stay_refused(tmp_path):
    with Cluster(1) as cluster, Cluster(2) as other:
        cluster.push(1.0, sequence=1)
        applied = cluster.threads[0].shard.holding.applied["user"]
        applied.expire(now=1e12, max_clients=10, max_idle_seconds=1.0)
        cluster.save(tmp_path)
        other.restore(tmp_path)
        with pytest.raises(ExpiredError):
            other.push(1.0, sequence=2)


def test_optimizer_state_comes_back(tmp_path):
    keys = keys_in(range(NUM_BUCKETS))

    def train(cluster, sequences):
        for sequence in sequences:
            cluster.do(
                lambda k, p: [push(k, 0.1, table="item", width=2), call("sweep", table="item")],
                keys,
                sequence=sequence,
                step=sequence,
            )

    def rows(cluster):
        replies = cluster.do(lambda k, p: [call("pull", table="item", keys=k)], keys)
        return [reply.results[0].payload for reply, _ in replies]

    with Cluster(1, TWO_TABLES) as straight, Cluster(1, TWO_TABLES) as resumed:
        train(straight, [1, 2, 3])
        straight.save(tmp_path)
        resumed.restore(tmp_path)
        train(straight, [4, 5])
        train(resumed, [4, 5])
        assert rows(straight) == rows(resumed)


def test_saving_twice_into_a_folder_keeps_the_last(tmp_path):
    with Cluster(2) as cluster:
        cluster.push(1.0, sequence=1)
        first = cluster.save(tmp_path)
        cluster.push(1.0, sequence=2)
        parts = [thread.save(str(tmp_path)).manifest for thread in cluster.threads]
        # Until the new manifest stands, the old checkpoint is whole.
        assert checkpoint.read_manifest(tmp_path).parts == first.parts
        second = checkpoint.write_manifest(tmp_path, SPEC, parts, {"step": 2})
        files = sorted(path.name for path in tmp_path.iterdir())
        assert files == sorted([checkpoint.MANIFEST, *(part["file"] for part in second.parts)])
        found = checkpoint.read_manifest(tmp_path)
        assert (found.rows, found.extra) == ({"user": len(KEYS)}, {"step": 2})
        cluster.restore(tmp_path)


def test_a_checkpoint_without_all_parts_is_incomplete(tmp_path):
    with Cluster(2) as cluster:
        parts = [thread.save(str(tmp_path)).manifest for thread in cluster.threads]
        with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
            cluster.restore(tmp_path)
        with pytest.raises(CheckpointError, match=r"files of shards \[1\], not of \[0, 1\]"):
            checkpoint.write_manifest(tmp_path, SPEC, parts[1:])
        manifest = checkpoint.write_manifest(tmp_path, SPEC, parts)
        (tmp_path / manifest.parts[1]["file"]).unlink()
        with pytest.raises(CheckpointError, match="is missing, the manifest says"):
            checkpoint.read_manifest(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint, and a cluster with other rows that tries to restore damaged copies of it."""
    folder = tmp_path_factory.mktemp("written")
    with Cluster(2) as cluster:
        cluster.push(1.0, sequence=1)
        cluster.save(folder, step=1)
        cluster.push(1.0, sequence=2)
        yield folder, cluster, cluster.rows()


SETTINGS = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(st.integers(0, 1), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
def test_damage_anywhere_is_told_and_changes_nothing(written, tmp_path_factory, part, where, flip):
    """flip 0: the file is cut there instead."""
    source, cluster, rows = written
    folder = tmp_path_factory.mktemp("damaged") / "copy"
    shutil.copytree(source, folder)
    path = folder / checkpoint.read_manifest(folder).parts[part]["file"]
    data = bytearray(path.read_bytes())
    offset = int(where * len(data))
    if flip:
        data[offset] ^= flip
        path.write_bytes(data)
    else:
        path.write_bytes(data[:offset])
    errors = []
    for thread in cluster.threads:
        try:
            thread.restore(str(folder))
        except CheckpointError as error:
            errors.append(str(error))
    assert errors, "nobody noticed"
    assert all(str(folder) in error for error in errors)
    with pytest.raises(CheckpointError):
        chain.verify(folder)
    if len(errors) == len(cluster.threads):
        np.testing.assert_array_equal(cluster.rows(), rows)
    else:  # the record belongs to one shard only; the other took the checkpoint
        cluster.restore(source)
        cluster.push(1.0, sequence=2)
    shutil.rmtree(folder.parent)


def account(thread):
    """All that a shard has: rows, what was applied, who is refused."""
    holding = thread.shard.holding
    records = [record for bucket in holding.held.tolist() for record in holding.records_of(bucket)]
    return (
        holding.num_rows,
        [(each.bucket, each.keys.tolist(), each.applied) for each in records],
        holding.expired_ids(),
    )


@pytest.mark.parametrize("where", [0.0, 0.3, 0.95, 1.0])
def test_damage_leaves_shards_without_rows_as_they_were(written, tmp_path, where):
    """They load what they read: where a record cannot be read, what was loaded before it goes again."""
    source, _, _ = written
    for part in (0, 1):
        folder = tmp_path / str(part)
        shutil.copytree(source, folder)
        path = folder / checkpoint.read_manifest(folder).parts[part]["file"]
        data = bytearray(path.read_bytes())
        data[int(where * (len(data) - 1))] ^= 1
        path.write_bytes(data)
        with Cluster(2) as cluster:
            cluster.push(1.0, sequence=1, client=7)
            cluster.do(lambda k, p: [call("delete", keys=k)], sequence=2, client=7)
            cluster.threads[0].shard.holding.applied["user"].load_expired([99])
            before = [account(thread) for thread in cluster.threads]
            assert before[0][0] == 0
            assert any(applied for _, _, applied in before[0][1])
            with pytest.raises(CheckpointError, match=path.name):
                cluster.threads[part].restore(str(folder))
            assert account(cluster.threads[part]) == before[part]
            assert cluster.push(1.0, sequence=2, client=7) == (0, len(KEYS))
            assert cluster.restore(source) == len(KEYS)


def test_a_shard_with_a_journal_forgets_a_restore_that_failed(tmp_path, written):
    source, _, _ = written
    durability = ps.Durability(mode="journal", directory=str(tmp_path / "journals"))
    spec = SPEC.model_copy(update={"durability": durability})
    folder = shutil.copytree(source, tmp_path / "copy")
    path = folder / checkpoint.read_manifest(folder).parts[1]["file"]
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    for start in range(2):
        with ps.LocalCluster(spec) as cluster, cluster.connect() as client:
            if start == 0:
                with pytest.raises(CheckpointError, match=path.name):
                    client.restore(folder)
                client.push("user", KEYS[:3], np.ones((3, 3), np.float32), step=1).wait()
            assert client.get("user", ps.Size()) == 3


@SETTINGS
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(b'0123456789abc{}"\n'))
def test_a_changed_manifest_is_told(written, tmp_path_factory, where, byte):
    source, _, _ = written
    folder = tmp_path_factory.mktemp("manifest") / "copy"
    shutil.copytree(source, folder)
    path = folder / checkpoint.MANIFEST
    data = bytearray(path.read_bytes())
    before = json.loads(data)
    data[int(where * len(data))] = byte
    path.write_bytes(data)
    try:
        after = json.loads(path.read_bytes())
    except ValueError:
        after = None
    if after == before:
        checkpoint.read_manifest(folder)
    else:
        with pytest.raises(CheckpointError, match=checkpoint.MANIFEST):
            checkpoint.read_manifest(folder)
    shutil.rmtree(folder.parent)


def test_a_newer_manifest_is_told(tmp_path):
    (tmp_path / checkpoint.MANIFEST).write_text(json.dumps({"version": 3}))
    with pytest.raises(CheckpointError, match="version 3 is newer than 2"):
        checkpoint.read_manifest(tmp_path)
    (tmp_path / checkpoint.MANIFEST).write_text("[1]")
    with pytest.raises(CheckpointError, match="no manifest"):
        checkpoint.read_manifest(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with Cluster(1) as cluster:
        cluster.push(1.0, sequence=1)
        with pytest.raises(
            CheckpointError, match=r"shard 0 cannot write .*file.*; free space or choose another folder"
        ):
            cluster.threads[0].save(str(tmp_path / "file"))
        cluster.push(1.0, sequence=2)  # the shard goes on


FULL_DISK = """
import resource, signal, sys
from ps.errors import CheckpointError
from tests.ps.test_checkpoint import KEYS, Cluster

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Cluster(1) as cluster:
    cluster.push(1.0, sequence=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        cluster.save(sys.argv[1])
    except CheckpointError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert cluster.push(1.0, sequence=2) == (len(KEYS), 0)
    cluster.save(sys.argv[1])
"""


def test_a_disk_that_is_full_is_told_and_the_shard_goes_on(tmp_path):
    """The limit on a file's size stands for the disk's: the same failed write, without root."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], check=False, capture_output=True, text=True, cwd=root
    )
    assert run.returncode == 0, run.stderr
    assert "shard 0 cannot write" in run.stdout
    assert "File too large; free space" in run.stdout
    assert chain.verify(tmp_path).rows == {"user": len(KEYS)}
    assert not list(tmp_path.glob("*.tmp"))


def test_before_an_assign_there_is_nothing_to_save(tmp_path):
    thread = WorkThread(Shard())
    with pytest.raises(WrongEpochError, match="no place"):
        thread.save(str(tmp_path))
    thread.close()


def test_inspection(written):
    folder, _, _ = written
    summary = chain.verify(folder)
    assert summary.rows == {"user": len(KEYS)}
    assert sum(summary.slots["user"].values()) == len(KEYS)
    assert set(summary.slots["user"]) == set((KEYS >> np.uint64(52)).tolist())
    assert summary.num_bytes == sum(part["bytes"] for part in checkpoint.read_manifest(folder).parts)
    assert summary.num_clients == {"user": 1}
    found = chain.find_row(folder, "user", int(KEYS[7]))
    with Cluster(1) as cluster:
        cluster.restore(folder)
        np.testing.assert_array_equal(np.concatenate(list(found.values.values())), cluster.rows()[7])
    assert found.bucket == int(bucket_of(KEYS, NUM_BUCKETS)[7])
    assert found.shard == found.bucket // 8
    assert chain.find_row(folder, "user", 1) is None
    with pytest.raises(CheckpointError, match="no table 'nobody'"):
        chain.find_row(folder, "nobody", 1)


def test_a_relative_folder_is_refused(written):
    _, cluster, _ = written
    for method in (cluster.threads[0].save, cluster.threads[0].restore):
        with pytest.raises(RequestError, match="'here' is relative"):
            method("here")


def test_parts_speak_msgpack(written):
    folder, _, _ = written
    part = checkpoint.read_manifest(folder).parts[0]
    assert msgpack.unpackb(msgpack.packb(part)) == part


def test_parts_of_different_routings_are_no_checkpoint(tmp_path):
    """Buckets that moved while shards marked may be in two files, or in none."""
    with Cluster(2) as cluster:
        parts = [msgpack.unpackb(thread.save(str(tmp_path)).manifest) for thread in cluster.threads]
        parts[1]["routing_epoch"] += 1
        with pytest.raises(CheckpointError, match="buckets moved while it began; save it again"):
            checkpoint.write_manifest(tmp_path, SPEC, [msgpack.packb(part) for part in parts])
