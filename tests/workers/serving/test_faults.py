"""Shards, a server and a replica that are killed, frozen or cut off: answers go on with their age, and then equal what
the shards have, row by row.
"""

import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import ps
from ps.delta_options import DeltaOptions
from ps.durability import Durability
from ps.keys import hash_texts, pack
from tests.chaos.cluster import freeze
from tests.chaos.shards import Shards
from tests.workers.serving.making import TRAINED
from tests.workers.serving.processes import ServerProcess, wait_for
from tests.workers.serving.summing import make_summing
from tests.workers.serving.test_row_replica import Process as ReplicaProcess
from workers.serving.client import PredictionClient, encode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

USERS = [str(i) for i in range(300)]
KEYS = pack(0, hash_texts(USERS))
REQUEST = encode({"tags": "", "price": 0.0}, {"user": USERS})
CATCH_UP_SECONDS = 60.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    changes = {
        "durability": Durability(mode="journal", directory=str(folder / "journals")),
        "deltas": DeltaOptions(directory=str(folder / "deltas"), window_seconds=0.05),
    }
    with Shards(TRAINED.model_copy(update=changes), 2) as made:
        yield made


@pytest.fixture(scope="module")
def client(shards):
    with ps.connect(shards.addresses[0]) as made:
        learn(made, 1)
        yield made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Of other rows than the shards have: they publish every bucket whole when they begin."""
    return make_summing(tmp_path_factory.mktemp("bundle") / "bundle", offsets=None)


@pytest.fixture(scope="module")
def replica(shards, bundle):
    with ReplicaProcess(bundle.directory, "--follow", shards.addresses[0]) as process:
        yield process


@pytest.fixture(scope="module")
def server(shards, bundle):
    with ServerProcess(bundle.directory, "--shards", ",".join(shards.addresses)) as process:
        yield process


def learn(client, step, keys=KEYS):
    gradients = np.random.default_rng(step).normal(size=(len(keys), 4)).astype(np.float32)
    client.push("main", keys, gradients, step=step).wait()


def assert_catch_up(client, server=None, replica=None):
    """Rows of the replica, and scores of the server, come to be those of the shards' rows."""
    rows = client.pull("main", KEYS)
    if replica is not None:
        wait_for(lambda: np.array_equal(replica.client.lookup("main", KEYS), rows), CATCH_UP_SECONDS)
    if server is not None:
        expected = 1 / (1 + np.exp(-rows.sum(axis=1, dtype=np.float64)))
        with PredictionClient(server.address) as answers:
            wait_for(
                lambda: np.allclose(answers.send(REQUEST, 10).scores[:, 0], expected, rtol=1e-5, atol=1e-7),
                CATCH_UP_SECONDS,
            )


@contextmanager
def answers_go_on(server, replica):
    """Both are asked all the time, and answer every time: raises what they did not. Yields the ages that they tell."""
    ages, failed, stop = {"server": [], "replica": []}, [], threading.Event()

    def ask():
        try:
            with PredictionClient(server.address) as answers:
                while not stop.wait(0.02):
                    found = answers.send(REQUEST, 10)
                    assert np.isfinite(found.scores).all()
                    assert len(found.scores) == len(USERS)
                    ages["server"].append(found.data_age_seconds)
                    ages["replica"].append(replica.client.ask("main", KEYS).age_seconds)
        except Exception as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield ages
    finally:
        stop.set()
        asking.join()
    if failed:
        raise AssertionError("a request failed") from failed[0]
    assert min(map(len, ages.values())) > 10


def are_older(ages, seconds):
    return all(told and told[-1] > seconds for told in ages.values())


def are_young(ages):
    return all(told[-1] < 2.0 for told in ages.values())


def test_a_shard_is_killed(shards, client, server, replica):
    """Its process begins anew with its journal, and publishes all that it has."""
    assert_catch_up(client, server, replica)
    with answers_go_on(server, replica) as ages:
        shards.kill(0)
        wait_for(lambda: are_older(ages, 1.5), 30)
        shards.restart(0)
        learn(client, 2)
        assert_catch_up(client, server, replica)
        wait_for(lambda: are_young(ages), 30)


def test_shards_are_frozen(shards, client, server, replica):
    """Nothing ends, and no word comes from them."""
    with answers_go_on(server, replica) as ages:
        for process in shards.processes:
            freeze(process.pid)
        wait_for(lambda: are_older(ages, 2.5), 30)
        for shard in range(shards.count):
            shards.send_signal(shard, signal.SIGCONT)
        learn(client, 3)
        assert_catch_up(client, server, replica)
        wait_for(lambda: are_young(ages), 30)


def test_connections_are_cut(shards, client, server, replica):
    """Again and again, while rows change."""
    with answers_go_on(server, replica) as ages:
        for step in range(4, 10):
            cut = [forwarder.cut() for forwarder in shards.forwarders]
            assert min(cut) > 0
            learn(client, step)
            time.sleep(0.2)
        assert_catch_up(client, server, replica)
        wait_for(lambda: are_young(ages), 30)


def test_a_line_swallows_all(shards, client, server, replica):
    """No byte passes to or from a shard, and nothing is cut, until the line heals: for longer than silence is taken for
    a pause.
    """
    with answers_go_on(server, replica) as ages:
        shards.forwarders[1].hold()
        wait_for(lambda: are_older(ages, 7.0), 30)
        shards.forwarders[1].forward()
        learn(client, 10)
        assert_catch_up(client, server, replica)
        wait_for(lambda: are_young(ages), 30)


def test_deleted_keys_answer_as_new(shards, client, server, replica):
    """Those that were deleted while nobody heard of it, too."""
    client.delete("main", KEYS[:25])
    with answers_go_on(server, replica):
        shards.kill(1)
        shards.restart(1)
        client.delete("main", KEYS[25:50])
        assert_catch_up(client, server, replica)
    with PredictionClient(server.address) as answers:
        assert answers.send(REQUEST, 10).num_unknown_keys == 50
    assert replica.client.ask("main", KEYS).num_unknown == 50


def test_server_and_replica_are_killed(shards, client, server, replica, bundle):
    """New ones begin with the bundle, and come to what the shards have now. Last: the others are gone then."""
    server.process.kill()
    assert replica.end(signal.SIGKILL) == -signal.SIGKILL
    learn(client, 11, KEYS[25:])
    with ReplicaProcess(bundle.directory, "--follow", shards.addresses[1]) as again:
        assert_catch_up(client, replica=again)
        assert again.client.ask("main", KEYS).num_unknown == 25
    with ServerProcess(bundle.directory, "--shards", ",".join(shards.addresses)) as again:
        assert_catch_up(client, again)
        with PredictionClient(again.address) as answers:
            assert answers.send(REQUEST, 10).num_unknown_keys == 25
