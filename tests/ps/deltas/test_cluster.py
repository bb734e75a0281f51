"""Delta streams of real clusters: over gRPC and in process, and through kills, resharding and restores."""

import os
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest

import ps
from ps import control
from ps.checkpoint import read_manifest
from ps.client import Client
from ps.deltas.reading import PartitionReader, find_partitions, partition_folder
from ps.deltas.serving import received
from ps.errors import NotAllowedError, RequestError, TrimmedError, UnavailableError
from ps.placement import LocalCluster
from ps.security import SecurityOptions
from ps.serving_rows import RowEncoder, serving_spec
from ps.spec import ClusterSpec
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.ps.deltas.streams import Follower, deltas_of
from tests.ps.driving import SGD, keys_of

KEYS = keys_of(*range(1, 3001), num_buckets=64)


def spec_of(tmp_path, *, journal=False, **options):
    given = {"tables": {"user": SGD}, "num_buckets": 64}
    given["deltas"] = deltas_of(tmp_path / "deltas", **{"window_seconds": 0.02, **options})
    if journal:
        given["durability"] = {"mode": "journal", "directory": str(tmp_path / "journals")}
    return ClusterSpec.model_validate(given)


def stream(transport, address, next_offset, **partition):
    return transport.deltas(address, pb.DeltasRequest(next_offset=next_offset, **partition))


def same_rows(client: Client, directory, codec="fp32", positions=None, follower=None):
    """A follower of all partitions has exactly what the shards have: the keys that they count, and what a pull says."""
    offsets = client.mark("check", step=0, data_time=0.0)
    follower = (follower or Follower(client.spec, codec)).follow(directory, positions)
    found_marks = {shard: offset for shard, offset, _ in follower.markers}  # the last ones
    assert offsets.items() <= found_marks.items()
    found = follower.rows["user"]
    assert len(found) == sum(shard["tables"]["user"]["rows"] for shard in client.describe())
    keys = np.array(sorted(found), np.uint64)
    encoder = RowEncoder(serving_spec(client.spec, codec).tables["user"])
    expected = encoder.encode(client.pull("user", keys))
    assert [found[key] for key in keys.tolist()] == [image.tobytes() for image in expected]
    return follower


def work(client, seed, rounds=8):
    """Pushes and deletes; settled."""
    rng = np.random.default_rng(seed)
    for step in range(rounds):
        some = rng.choice(KEYS, 300, replace=False)
        client.push("user", some, rng.normal(size=(300, 3)).astype(np.float32), step=step + 1)
        if step % 3 == 2:
            client.delete("user", rng.choice(KEYS, 40, replace=False))
    client.flush()


def assert_metrics(address, directory):
    """What the first shard says of itself is what its partition has."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        lines = [line.split() for line in reply.read().decode().splitlines() if line.startswith("weir_deltas")]
    found = {name.removeprefix("weir_deltas_"): float(value) for name, value in lines}
    reader = PartitionReader(partition_folder(directory, 0))
    batches = reader.read(1 << 30)
    assert found["records_total"] == sum(batch.records for batch in batches) == reader.total
    assert (found["batches_total"], found["next_offset"]) == (len(batches), reader.next_offset)
    assert found["bytes_total"] < sum(path.stat().st_size for path in partition_folder(directory, 0).glob("*.deltas"))
    assert found["collected_total"] > 0
    assert found["oldest_seconds"] == found["waiting_keys"] == found["in_trouble"] == found["waiting_buckets"] == 0
    reader.close()


@pytest.mark.parametrize("placement", ["in-process", "process"])
def test_streams_tell_what_shards_hold(tmp_path, placement):
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=2, placement=placement) as cluster, cluster.connect() as client:
        work(client, 1)
        same_rows(client, tmp_path / "deltas")
        if placement == "process":
            assert_metrics(client.describe()[0]["metrics_address"], tmp_path / "deltas")
        transport = cluster._transport()
        follower = Follower(spec)
        for shard, address in enumerate(cluster.addresses):
            end = client.mark("v1", step=8, data_time=1.5)[shard]
            for batches, next_offset, end_offset, end_total in received(stream(transport, address, 0), address):
                for batch in batches:
                    follower.apply(batch, shard)
                assert next_offset <= end_offset
                if next_offset == end + 1:
                    assert end_total == batches[-1].total + batches[-1].records
                    break
        assert follower.rows == Follower(spec).follow(tmp_path / "deltas").rows
        waiting = received(stream(transport, address, end + 1), address)  # new ones come as they are written
        timer = threading.Timer(0.2, client.push, ("user", KEYS, np.ones((len(KEYS), 3), np.float32)), {"step": 9})
        timer.start()
        found = next(each.batches for each in waiting if each.batches)
        timer.join()
        assert found[0].offset == end + 1
        assert found[0].at - found[0].since >= 0.02
        waiting.close()
        transport.close()


def test_offsets_that_are_gone_or_of_another_partition_are_refused(tmp_path):
    spec = spec_of(tmp_path, segment_bytes=4096, retention_bytes=4096)
    with LocalCluster(spec, placement="process") as cluster, cluster.connect() as client:
        begin = client.mark("v0", step=0, data_time=0.0)[0]
        for seed in range(4):
            work(client, seed)
            last = client.mark(f"v{seed}", step=8, data_time=0.0)[0]
        transport = GrpcTransport()
        for offset in (0, 1, begin):
            with pytest.raises(TrimmedError, match=r"were removed.*take a newer bundle"):
                next(stream(transport, cluster.addresses[0], offset))
        with pytest.raises(TrimmedError, match="of another partition"):
            next(stream(transport, cluster.addresses[0], last + 1000))
        transport.close()


def test_a_cluster_without_deltas_says_so():
    with ps.local({"user": ps.TableSpec.model_validate(SGD)}, placement="process") as client:
        with pytest.raises(RequestError, match=r"publishes no deltas; set cluster\.deltas"):
            client.mark("v1", step=1, data_time=0.0)
        transport = GrpcTransport()
        with pytest.raises(RequestError, match="publishes no deltas"):
            next(stream(transport, client.routing.addresses[0], 0))
        transport.close()


def test_streams_ask_for_the_token(tmp_path):
    token = tmp_path / "token"
    token.write_text("correct-horse")
    token.chmod(0o600)
    security = SecurityOptions(token_file=str(token))
    with LocalCluster(spec_of(tmp_path), placement="process", security=security) as cluster:
        transport = GrpcTransport()
        with pytest.raises(NotAllowedError, match="no token came along"):
            next(stream(transport, cluster.addresses[0], 0))
        transport.close()
        transport = GrpcTransport(security)
        assert next(stream(transport, cluster.addresses[0], 0)).end_offset >= 0
        transport.close()


def test_a_killed_shard_publishes_all_anew_and_a_stream_goes_on(tmp_path):
    spec = spec_of(tmp_path, journal=True)
    silent = spec.model_copy(update={"deltas": None})
    with LocalCluster(silent, shards=2) as cluster, cluster.connect() as client:
        work(client, 0)  # a journal that begins before anything is published
    with LocalCluster(spec, shards=2, placement="process") as cluster, cluster.connect() as client:
        work(client, 1)
        follower = same_rows(client, tmp_path / "deltas")
        positions = {shard: offset + 1 for shard, offset, _ in follower.markers}
        for round in range(2):
            client.push("user", KEYS[:900], np.ones((900, 3), np.float32), step=20 + round)
            os.kill(cluster.processes[round].pid, signal.SIGKILL)
            work(client, 2 + round)
        same_rows(client, tmp_path / "deltas")
        same_rows(client, tmp_path / "deltas", positions=positions, follower=follower)


def test_resharding_and_restore(tmp_path):
    spec = spec_of(tmp_path)
    with LocalCluster(spec, placement="process") as cluster, cluster.connect() as client:
        work(client, 1)
        client.save(str(tmp_path / "checkpoint"))
        offsets = read_manifest(tmp_path / "checkpoint").delta_offsets
        assert offsets is not None
        assert offsets[0] <= client.mark("v1", step=1, data_time=0.0)[0]
        stop = threading.Event()

        def train():
            step = 100
            while not stop.is_set():
                client.push("user", KEYS[step % 2500 :][:300], np.full((300, 3), 0.5, np.float32), step=step).wait()
                client.delete("user", KEYS[step % 2900 :][:10])
                step += 1

        trainer = threading.Thread(target=train)
        trainer.start()
        moves = list(cluster.reshard(2))
        stop.set()
        trainer.join()
        assert sum(move.num_rows for move in moves) > 0
        client.flush()
        assert set(find_partitions(tmp_path / "deltas")) == {0, 1}
        same_rows(client, tmp_path / "deltas")
        work(client, 2)
        client.restore(str(tmp_path / "checkpoint"))
        restored = same_rows(client, tmp_path / "deltas")
        work(client, 3)
        list(cluster.reshard(1))
        same_rows(client, tmp_path / "deltas")
        assert restored.rows != {}


def test_partitions_of_shards_that_are_gone_come_from_those_that_are_left(tmp_path):
    spec, folder = spec_of(tmp_path), tmp_path / "deltas"
    with LocalCluster(spec, shards=3) as cluster, cluster.connect() as client:
        work(client, 1)
        end = client.mark("v1", step=8, data_time=1.5)[2]
        with pytest.raises(RequestError, match="partition 2 is streamed by shard 2; this is shard 0"):
            next(stream(cluster._transport(), cluster.addresses[0], 0, partition=2))
        list(cluster.reshard(2))
        (folder / "partition-99999999999").mkdir()  # no number of the wire
        transport = cluster._transport()
        asked = pb.StatusRequest(wants_partitions=True)
        for shard, address in enumerate(cluster.addresses):
            assert list(transport.send(address, "Status", asked, 10).result().past_partitions) == [2]
            assert not transport.send(address, "Status", pb.StatusRequest(), 10).result().past_partitions
            assert next(stream(transport, address, 0, partition=shard)).end_offset  # its own, by its number
            found = []
            for reply in received(stream(transport, address, 0, partition=2), address):
                found += reply.batches
                if reply.end_offset:  # told where it is met
                    assert (reply.end_offset, reply.end_total) == (
                        found[-1].offset + 1,
                        found[-1].total + found[-1].records,
                    )
                    break
            reader = PartitionReader(partition_folder(folder, 2))
            assert [batch.offset for batch in found] == [batch.offset for batch in reader.read()]
            assert end in [batch.offset for batch in found]
            later = next(received(stream(transport, address, end + 1, partition=2), address))
            assert end not in [batch.offset for batch in later.batches]
            for number in (3, (1 << 32) - 1):
                with pytest.raises(TrimmedError, match=f"partition {number} is not here any more; take a newer"):
                    next(stream(transport, address, 0, partition=number))
        waiting = stream(transport, cluster.addresses[0], 0, partition=2)
        next(waiting)
        list(cluster.reshard(3))  # it is its shard's again: whoever follows asks that
        with pytest.raises((UnavailableError, StopIteration)):
            for _ in range(20):
                next(waiting)
        assert next(stream(transport, cluster.addresses[2], end + 1)).end_offset > end
        transport.close()


class MovesBetweenMarks:
    """A transport on which buckets move when all shards but the last have written a marker: a step each time that
    `moves` is set.
    """

    def __init__(self, inner, num_shards):
        self.moves, self._inner, self._num_shards, self._marks = None, inner, num_shards, []

    def send(self, address, method, message, timeout_seconds):
        if method == "Mark" and len(self._marks) == self._num_shards - 1 and self.moves is not None:
            for mark in self._marks:
                mark.result(10)
            moves, self.moves = self.moves, None
            next(moves, None)
        answer = self._inner.send(address, method, message, timeout_seconds)
        if method == "Mark":
            self._marks.append(answer)
        return answer

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def move(self, moves):
        self.moves, self._marks = moves, []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (3, 2), (2, 3)])
def test_versions_that_are_marked_while_buckets_move(tmp_path, before, after):
    """Up to its markers, each has exactly the rows that the shards had when they were put."""
    spec, keys = spec_of(tmp_path, window_seconds=3600), KEYS[::6]  # what no marker asks for stays with the shard
    versions, follower, positions = [], Follower(spec), {}
    with LocalCluster(spec, shards=before) as cluster, cluster.connect() as client:
        initial, moves = client.pull("user", keys), cluster.reshard(after, at_once=8)
        between = client._connection.transport = MovesBetweenMarks(client._connection.transport, before)
        for step in range(1, 8):
            client.push("user", keys, np.full((len(keys), 3), 0.5, np.float32), step=step)
            client.delete("user", keys[step::7])
            between.move(moves)
            markers = client.mark(f"v{step}", step=step, data_time=0.0)
            versions.append((markers, client.pull("user", keys)))
    encoder = RowEncoder(serving_spec(spec, "fp32").tables["user"])
    initial = [image.tobytes() for image in encoder.encode(initial)]
    for markers, rows in versions:
        rows_then = follower.follow(tmp_path / "deltas", positions, last=markers).rows["user"]
        positions |= {shard: offset + 1 for shard, offset in markers.items()}
        found = [rows_then.get(key, new) for key, new in zip(keys.tolist(), initial, strict=True)]
        assert found == [image.tobytes() for image in encoder.encode(rows)]
    assert len(versions[-1][0]) == after


def test_a_cluster_that_begins_anew_in_the_same_directory(tmp_path):
    """Of an older cluster nothing is left with those who follow, though its epochs were as high."""
    spec = spec_of(tmp_path)
    with LocalCluster(spec, shards=2) as cluster, cluster.connect() as client:
        work(client, 1)
        for _ in range(3):
            list(cluster.reshard(2))
        same_rows(client, tmp_path / "deltas")
    with LocalCluster(spec) as cluster, cluster.connect() as client:
        client.push("user", KEYS[:10], np.ones((10, 3), np.float32), step=1).wait()
        same_rows(client, tmp_path / "deltas")


@pytest.mark.slow
def test_a_standby_that_takes_over_publishes_all(tmp_path):
    spec = spec_of(tmp_path, journal=True)
    durability = {"mode": "replicated", "directory": str(tmp_path / "journals"), "standby_seconds": 2.0}
    spec = ClusterSpec.model_validate({**spec.model_dump(), "durability": durability})
    with LocalCluster(spec, placement="process") as cluster, cluster.connect() as client:
        work(client, 1)
        follower = same_rows(client, tmp_path / "deltas")
        positions = {shard: offset + 1 for shard, offset, _ in follower.markers}
        for number, sign in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            wait_for_standby(client)
            pid = primary(cluster)
            os.kill(pid, sign)
            work(client, 2 + number)
            same_rows(client, tmp_path / "deltas")
            same_rows(client, tmp_path / "deltas", positions=positions, follower=follower)


def primary(cluster):
    """The process that serves at present."""
    transport = cluster._transport()
    (status,) = control.statuses(transport, cluster.addresses)
    transport.close()
    return status.pid


def wait_for_standby(client, seconds=60):
    """Until updates wait for it: else it could not take over."""
    deadline, state = time.monotonic() + seconds, 0.0
    while state < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        (shard,) = client.describe()
        with urllib.request.urlopen(f"http://{shard['metrics_address']}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        state = max(float(line.split()[1]) for line in lines if line.startswith("weir_standby_state "))
