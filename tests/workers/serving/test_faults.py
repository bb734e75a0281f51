"""Shards and servers that are killed or frozen: answers go on with their age, then equal what the shards have."""

import os
import signal
import time

import numpy as np
import pytest

from ps.delta_options import DeltaOptions
from ps.durability import Durability
from ps.keys import hash_texts, pack
from ps.placement import LocalCluster
from tests.workers.serving.making import TRAINED
from tests.workers.serving.processes import ServerProcess, wait_for
from tests.workers.serving.summing import make_summing
from workers.serving.client import PredictionClient, encode

USERS = [str(i) for i in range(300)]
KEYS = pack(0, hash_texts(USERS))
REQUEST = encode({"tags": "", "price": 0.0}, {"user": USERS})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    spec = TRAINED.model_copy(
        update={
            "durability": Durability(mode="journal", directory=str(folder / "journals")),
            "deltas": DeltaOptions(directory=str(folder / "deltas"), window_seconds=0.05),
        }
    )
    with LocalCluster(spec, shards=2, placement="process") as made:
        yield made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Of other rows than the shards have: they publish every bucket whole when they begin."""
    return make_summing(tmp_path_factory.mktemp("bundle") / "bundle", offsets=None)


def learn(client, step, keys=KEYS):
    gradients = np.random.default_rng(step).normal(size=(len(keys), 4)).astype(np.float32)
    client.push("main", keys, gradients, step=step).wait()


def equals(client, answers):
    """Whether every row answers as the shards have it."""
    try:
        found = answers.send(REQUEST, 10)
    except Exception as error:
        raise AssertionError(f"a request failed: {error}") from error
    scores = found.scores[:, 0].astype(np.float64)
    expected = client.pull("main", KEYS).sum(axis=1)
    return np.allclose(np.log(scores / (1 - scores)), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_answers_go_on_and_catch_up(cluster, bundle):
    shards = ",".join(cluster.addresses)
    with cluster.connect() as client:
        learn(client, 1)
        with ServerProcess(bundle.directory, "--shards", shards) as server, PredictionClient(server.address) as answers:
            wait_for(lambda: equals(client, answers), 60)

            # A shard dies; its process is started anew with its journal, and publishes all that it has.
            os.kill(cluster.processes[0].pid, signal.SIGKILL)
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                assert len(answers.send(REQUEST, 10).scores) == len(USERS)
            learn(client, 2)
            wait_for(lambda: equals(client, answers), 60)

            # Both are frozen: no word comes from them. Answers say how old they are.
            for process in cluster.processes:
                os.kill(process.pid, signal.SIGSTOP)
            try:
                wait_for(lambda: answers.send(REQUEST, 10).data_age_seconds > 2.0, 30)
            finally:
                for process in cluster.processes:
                    os.kill(process.pid, signal.SIGCONT)
            learn(client, 3)
            wait_for(lambda: equals(client, answers), 60)
            wait_for(lambda: answers.send(REQUEST, 10).data_age_seconds < 2.0, 30)

            # Deleted keys answer as new ones.
            client.delete("main", KEYS[:50])
            wait_for(lambda: answers.send(REQUEST, 10).num_unknown_keys == 50, 30)
            wait_for(lambda: equals(client, answers), 30)
            os.kill(server.process.pid, signal.SIGKILL)
        learn(client, 4, KEYS[25:])
        with ServerProcess(bundle.directory, "--shards", shards) as server, PredictionClient(server.address) as answers:
            wait_for(lambda: equals(client, answers), 60)
            assert answers.send(REQUEST, 10).num_unknown_keys == 25
