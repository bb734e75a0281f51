"""Switches and rollbacks while requests come on time: none fails, and none is answered by two versions."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from ps.keys import hash_texts, pack
from tests.workers.serving.making import rows_of
from tests.workers.serving.summing import make_summing
from tests.workers.serving.test_publishing import add_dense
from tests.workers.serving.test_switching import Shards, marks, wait_for
from workers.serving.client import PredictionClient, encode
from workers.serving.publishing import publish
from workers.serving.versions import Models

STILL = [str(i) for i in range(20) if str(i) not in ("0", "7", "19")]  # users whose rows the stream never changes
PERIOD_SECONDS = 0.02


class Load:
    """A request every PERIOD_SECONDS, whatever became of those before. wrong: what was not as it should be."""

    def __init__(self, address, adds):
        """adds: by version, what its tower adds to the sum of the rows."""
        self.wrong, self.versions, self.slowest, self._adds = [], [], 0.0, adds
        keys, rows = rows_of()
        sums = dict(zip(keys.tolist(), rows.sum(axis=1), strict=True))
        self._logits = np.array([sums[key] for key in pack(0, hash_texts(STILL)).tolist()])
        self._request = encode({"tags": "", "price": 0.0}, {"user": STILL})
        self._client, self._ends = PredictionClient(address), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        due = time.monotonic() + number * PERIOD_SECONDS
        while not self._ends.wait(max(0.0, due - time.monotonic())):
            try:
                self._check(self._client.send(self._request, 10.0))
            except Exception as error:
                self.wrong.append(repr(error))
            self.slowest = max(self.slowest, time.monotonic() - due)
            due += len(self._threads) * PERIOD_SECONDS

    def _check(self, answer):
        self.versions.append(answer.version)
        if answer.version not in self._adds:
            self.wrong.append(f"version {answer.version}")
            return
        found = np.log(answer.scores[:, 0] / (1 - answer.scores[:, 0]))
        if not np.allclose(found, self._logits + self._adds[answer.version], atol=1e-3):
            self.wrong.append(f"version {answer.version}: {found - self._logits}")

    def stop(self):
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


@pytest.fixture
def shards(tmp_path):
    made = Shards(tmp_path / "deltas")
    made.mark("none", 0)
    yield made
    made.close()


def test_no_request_fails_and_none_is_answered_by_two_versions(tmp_path, shards):
    models, adds = Models(tmp_path / "models"), {"whole": 0.0, "other": -2.0, "a": 0.5, "b": 1.0, "c": 1.5, "d": -1.5}
    offsets = {str(shard): offset for shard, offset in shards.positions().items()}
    make_summing(tmp_path / "whole", version="whole", offsets=offsets)
    make_summing(tmp_path / "other", version="other", offsets=offsets, adds=adds["other"])
    publish(models, str(tmp_path / "whole"))

    def dense(name, bundle="whole"):
        shards.learn(len(name) / 7)
        shards.mark(name, 1)
        add_dense(models, name, bundle, adds=adds[name], markers=marks(shards))
        models.publish(name)
        return name

    def bundle(name):
        publish(models, str(tmp_path / name))
        return name

    steps = [
        lambda: dense("a"),
        lambda: dense("b"),
        lambda: models.rollback().version,  # a, with rows of its own
        lambda: models.publish("b").version,  # live again
        lambda: bundle("other"),
        lambda: dense("d", "other"),
        lambda: models.rollback("whole").version,
        lambda: models.rollback("b").version,
        lambda: dense("c"),
    ]
    command = [sys.executable, "-m", "workers.cli", "serve", str(models.directory), "--json"]
    ports = ["--grpc-port", "0", "--http-port", "0", "--deltas", str(shards.folder)]
    server = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said: Future = Future()
    threading.Thread(target=lambda: said.set_result(server.stderr.read()), daemon=True).start()
    try:
        load = Load(json.loads(server.stdout.readline())["grpc"], adds)
        try:
            for step in steps:
                version = step()
                wait_for(lambda version=version: load.wrong or load.versions[-1:] == [version])
                shards.learn(0.125)
                time.sleep(0.2)
        finally:
            load.stop()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    assert not load.wrong
    changes = [after for before, after in zip(["", *load.versions], load.versions, strict=False) if after != before]
    assert set(changes) == {"whole", "a", "b", "other", "d", "c"}
    assert len(load.versions) > 100
    lines = [line for line in said.result().splitlines() if " serves after " in line]
    assert len(lines) == len(steps)
    assert sum("rows as they were then" in line for line in lines) == 3
