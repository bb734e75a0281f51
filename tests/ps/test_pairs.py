"""Pairs of real processes: killed, frozen, with damaged journals. No acknowledged update is lost or doubled."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import ps
from ps.control import StatusDirectory
from ps.errors import WrongEpochError
from ps.journal.segments import find_segments
from ps.pairing import Seen
from ps.pairs import Pair
from ps.routing import Routing
from ps.shard_process import ShardProcess
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb

TABLE = ps.TableSpec(segments={"count": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))})
KEYS = np.arange(1, 300, dtype=np.uint64)
DOWN = np.full((len(KEYS), 2), -1, np.float32)


def spec(folder, **options):
    durability = ps.Durability(mode="replicated", directory=str(folder), **options)
    return ps.ClusterSpec(tables={"user": TABLE}, num_buckets=16, durability=durability)


@pytest.fixture
def cluster(tmp_path):
    with ps.LocalCluster(spec(tmp_path, standby_seconds=2.0), shards=2, placement="process") as running:
        wait_until_whole(running)
        yield running


def wait_until_whole(cluster):
    for pair in cluster.pairs:
        pair.wait_until_whole()


def primary_of(cluster, shard):
    """The process that serves a shard now."""
    return next(each for each in cluster.processes if each.known_address == cluster.pairs[shard].address)


def standby_of(cluster, shard):
    here = (cluster.processes[2 * shard], cluster.processes[2 * shard + 1])
    return next(each for each in here if each.known_address != cluster.pairs[shard].address)


def count(client, step):
    client.push("user", KEYS, DOWN, step=step).wait()


def test_whatever_dies_every_acknowledged_update_is_there_once(cluster):
    step = 0
    with cluster.connect() as client:
        for victim in ("primary", "standby", "standby of the other", "primary", "both"):
            step += 1
            count(client, step)
            wait_until_whole(cluster)
            if victim == "both":
                os.kill(standby_of(cluster, 0).pid, signal.SIGKILL)
            process = standby_of(cluster, victim.endswith("other")) if "standby" in victim else primary_of(cluster, 0)
            os.kill(process.pid, signal.SIGKILL)
            for _ in range(3):
                step += 1
                count(client, step)
        assert (client.pull("user", KEYS) == step).all()
        wait_until_whole(cluster)
    with cluster.connect() as other:
        assert (other.pull("user", KEYS) == step).all()
    assert cluster.pairs[0].num_take_overs >= 2
    assert cluster.pairs[1].num_take_overs == 0


def test_a_frozen_primary_is_replaced_and_pushes_go_on(cluster):
    with cluster.connect() as client:
        count(client, 1)
        frozen = primary_of(cluster, 1)
        os.kill(frozen.pid, signal.SIGSTOP)
        began = time.monotonic()
        count(client, 2)
        assert time.monotonic() - began < 15
        assert (client.pull("user", KEYS) == 2).all()
        assert frozen.process.poll() is not None
        assert cluster.pairs[1].num_take_overs == 1


@pytest.mark.slow
def test_a_frozen_standby_is_replaced_and_pushes_go_on(cluster):
    with cluster.connect() as client:
        count(client, 1)
        before = cluster.pairs[0].address
        frozen = standby_of(cluster, 0)
        os.kill(frozen.pid, signal.SIGSTOP)
        count(client, 2)
        assert frozen.process.poll() is not None
        wait_until_whole(cluster)
        assert cluster.pairs[0].address == before
        os.kill(primary_of(cluster, 0).pid, signal.SIGKILL)
        assert (client.pull("user", KEYS) == 2).all()
        assert cluster.pairs[0].address != before


def test_it_begins_with_what_it_had_wherever_that_is(tmp_path, capfd):
    for start in range(3):
        with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster, cluster.connect() as client:
            assert (client.pull("user", KEYS) == 2 * start).all()
            count(client, 1)
            wait_until_whole(cluster)
            if start < 2:
                os.kill(primary_of(cluster, 0).pid, signal.SIGKILL)
            count(client, 2)
    journal = ps.Durability(mode="journal", directory=str(tmp_path))
    with pytest.raises(ps.UnavailableError):
        ps.LocalCluster(spec(tmp_path).model_copy(update={"durability": journal}), placement="process")
    assert "start it with durability.mode: replicated" in capfd.readouterr().err


def test_buckets_that_moved_are_at_the_standbys_too(tmp_path):
    with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster, cluster.connect() as client:
        count(client, 1)
        wait_until_whole(cluster)
        assert list(cluster.reshard(2))
        count(client, 2)
        wait_until_whole(cluster)
        for shard in (0, 1):
            os.kill(primary_of(cluster, shard).pid, signal.SIGKILL)
        count(client, 3)
        assert (client.pull("user", KEYS) == 3).all()
        wait_until_whole(cluster)
        list(cluster.reshard(1))
        count(client, 4)
        os.kill(primary_of(cluster, 0).pid, signal.SIGKILL)
        assert (client.pull("user", KEYS) == 4).all()
        assert len(cluster.processes) == 2


def test_a_number_of_a_shard_comes_again_at_another_place(tmp_path):
    """Clients that knew the shard that had it, and looked away meanwhile."""
    with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster:
        transport = GrpcTransport()
        directory = StatusDirectory(cluster.name, transport, cluster.addresses)
        for shards in (2, 1, 2):
            list(cluster.reshard(shards))
            if shards == 2:
                assert [directory.routing().addresses for _ in range(3)] == [cluster.addresses] * 3
        transport.close()


class Interfering(GrpcTransport):
    """Freezes the process of a folder just before an order reaches it, once."""

    def __init__(self, processes):
        super().__init__()
        self.processes, self.frozen, self.is_armed = processes, None, False

    def send(self, address, method, message, timeout_seconds):
        if method == "Pair" and self.is_armed:
            self.is_armed = False
            self.frozen = next(each for each in self.processes if each.known_address == address)
            os.kill(self.frozen.pid, signal.SIGSTOP)
        return super().send(address, method, message, timeout_seconds)


@pytest.fixture
def watched(tmp_path):
    """A pair without a spec, and the transport of its orders."""
    processes = []
    transport = Interfering(processes)
    pair = Pair(0, (tmp_path / "one", tmp_path / "two"), processes, transport, standby_seconds=1.0)
    pair.wait_until_led()
    yield pair, transport
    pair.stop()
    transport.close()
    for process in processes:
        process.stop()


def test_a_process_that_freezes_while_it_carries_out_an_order_is_replaced(watched):
    pair, transport = watched
    transport.is_armed = True
    next(each for each in transport.processes if each.known_address != pair.address).kill()  # it comes back, for orders
    deadline = time.monotonic() + 30
    while transport.frozen is None or transport.frozen.is_running:
        assert time.monotonic() < deadline, "the frozen process lives on"
        time.sleep(0.05)


def test_a_process_that_freezes_before_it_listens_is_replaced(watched, monkeypatch):
    monkeypatch.setattr("ps.pairs.START_SECONDS", 0.5)
    monkeypatch.setattr("ps.pairs._RESTART_SECONDS", 0.5)
    pair, transport = watched
    place = next(place for place in (0, 1) if transport.processes[place].known_address != pair.address)
    before = transport.processes[place]
    before.kill()
    while transport.processes[place] is before:
        time.sleep(0.01)
    frozen = transport.processes[place]
    os.kill(frozen.pid, signal.SIGSTOP)
    assert not frozen.is_up
    assert frozen.process.wait(30) == -signal.SIGKILL
    while transport.processes[place] is frozen:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_restore_reaches_the_standby(tmp_path):
    with ps.LocalCluster(spec(tmp_path / "j"), shards=1, placement="process") as cluster, cluster.connect() as client:
        count(client, 1)
        client.save(tmp_path / "saved")
        wait_until_whole(cluster)
        count(client, 2)
        client.restore(tmp_path / "saved")
        count(client, 3)
        wait_until_whole(cluster)
        os.kill(primary_of(cluster, 0).pid, signal.SIGKILL)
        assert (client.pull("user", KEYS) == 2).all()
        assert cluster.pairs[0].num_take_overs == 1


@pytest.mark.parametrize(
    "damage", ["flipped", pytest.param("torn", marks=pytest.mark.slow), pytest.param("gone", marks=pytest.mark.slow)]
)
def test_a_damaged_journal_is_repaired(tmp_path, damage):
    with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster, cluster.connect() as client:
        count(client, 1)
        wait_until_whole(cluster)
        count(client, 2)
    folder = tmp_path / "local" / "shard-0000"
    path = folder / str(find_segments(folder)[-1])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"flipped": data, "torn": data[:-100], "gone": b""}[damage])
    with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster, cluster.connect() as client:
        assert (client.pull("user", KEYS) == 2).all()
        wait_until_whole(cluster)
        assert [each.name[:8] for each in folder.iterdir() if each.is_dir()] == ["damaged-"]
        os.kill(primary_of(cluster, 0).pid, signal.SIGKILL)
        count(client, 3)
        assert (client.pull("user", KEYS) == 3).all()


def test_damage_to_both_journals_is_refused(tmp_path):
    with ps.LocalCluster(spec(tmp_path), shards=1, placement="process") as cluster, cluster.connect() as client:
        count(client, 1)
        wait_until_whole(cluster)
        count(client, 2)
    for name in ("shard-0000", "shard-0000-standby"):
        folder = tmp_path / "local" / name
        path = folder / str(find_segments(folder)[-1])
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ps.JournalError, match="journal-"):
        ps.LocalCluster(spec(tmp_path), shards=1, placement="process")


class ByHand:
    """Two processes of a pair, and whoever orders them is the test."""

    def __init__(self, folder):
        self.transport = GrpcTransport()
        self.processes = [ShardProcess(journal=folder / name, is_paired=True) for name in ("one", "two")]
        self.one, self.two = (process.address for process in self.processes)

    def order(self, address, **fields):
        self.transport.send(address, "Pair", pb.PairRequest(**fields), 60).result()

    def seen(self, address):
        return Seen.of(self.transport.send(address, "Status", pb.StatusRequest(), 5).result().pair, address)

    def until(self, address, role):
        deadline = time.monotonic() + 30
        while self.seen(address).role != role:
            assert time.monotonic() < deadline, self.seen(address)
            time.sleep(0.02)

    def close(self):
        self.transport.close()
        for process in self.processes:
            process.stop()


@pytest.fixture
def by_hand(tmp_path):
    pair = ByHand(tmp_path)
    yield pair
    pair.close()


def test_a_primary_that_was_frozen_during_a_take_over_serves_nothing(by_hand, tmp_path):
    one, two, pair = by_hand.one, by_hand.two, by_hand
    pair.order(one, term=1, role="primary", other=two)
    made = spec(tmp_path, standby_seconds=1.0)
    routing = Routing.initial(16, [one])
    message = pb.AssignRequest(cluster_spec=made.model_dump_json().encode(), routing=routing.to_message(), shard=0)
    pair.transport.send(one, "Assign", message, 60).result()
    pair.order(two, term=2, role="standby", other=one)
    pair.order(one, term=2, role="primary", other=two, has_standby=True)
    pair.until(two, "standby")
    with ps.connect(one) as client:
        count(client, 1)
        os.kill(pair.processes[0].pid, signal.SIGSTOP)
        late = client.push("user", KEYS, DOWN, step=2)
        began = time.monotonic()
        pair.order(two, term=3, role="primary", other=one)  # it waits: the frozen one might have answered a moment ago
        assert time.monotonic() - began < 5
        with ps.connect(two) as other:
            assert (other.pull("user", KEYS) == 1).all()
            other.push("user", KEYS, DOWN, step=2).wait()
            os.kill(pair.processes[0].pid, signal.SIGCONT)
            answers = []
            for _ in range(20):  # at once, before it has found out
                request = pb.Request(wire_version=1, routing_epoch=1)
                request.calls.add(table="user", psfunc="pull", keys=KEYS[:0].tobytes())
                answers.append(pair.transport.send(one, "Execute", request, 5).exception())
            assert all(isinstance(answer, WrongEpochError) for answer in answers)
            pair.until(one, "fenced")
            late.wait()  # refused there, and sent to the new one
            assert (other.pull("user", KEYS) == 3).all()
            assert (client.pull("user", KEYS) == 3).all()


def test_orders_that_are_too_old_are_refused(by_hand):
    by_hand.order(by_hand.one, term=5, role="primary")
    with pytest.raises(ps.RequestError, match="term 5"):
        by_hand.order(by_hand.one, term=5, role="primary")
    by_hand.order(by_hand.two, term=5, role="standby")
    frames = pb.ReplicateRequest(term=4, number=1, frames=b"")
    with pytest.raises(ps.UnavailableError, match="term 4"):
        by_hand.transport.send(by_hand.two, "Replicate", frames, 5).result()
    with pytest.raises(WrongEpochError, match="over"):
        by_hand.transport.send(by_hand.one, "Replicate", frames, 5).result()


@pytest.mark.slow
def test_pushes_of_several_clients_during_take_overs(cluster):
    """Each client counts in keys of its own; what it was told is what the rows say."""
    acknowledged = [0, 0]
    stop = threading.Event()

    def work(number):
        keys = KEYS + np.uint64(1000 * (number + 1))
        with cluster.connect() as client:
            while not stop.is_set():
                client.push("user", keys, DOWN, step=acknowledged[number] + 1).wait()
                acknowledged[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for shard in (0, 1, 0):
        wait_until_whole(cluster)
        os.kill(primary_of(cluster, shard).pid, signal.SIGKILL)
        time.sleep(0.5)
    wait_until_whole(cluster)
    stop.set()
    for thread in threads:
        thread.join()
    with cluster.connect() as client:
        for number, expected in enumerate(acknowledged):
            assert expected > 0
            assert (client.pull("user", KEYS + np.uint64(1000 * (number + 1))) == expected).all()
