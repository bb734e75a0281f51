"""The application of Ray Serve on a small real Ray: two replicas, each a process with a model of its own."""

import json
import os
import secrets
import urllib.error
import urllib.request

import numpy as np
import pytest

# As tests/cluster: a token of the tests' own.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

from ps.errors import BundleError, RequestError
from tests.workers.serving.processes import wait_for
from tests.workers.serving.summing import PRICES, USERS, logits, make_summing
from workers.serving.publishing import publish
from workers.serving.versions import Models

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

GOOD = {"shared": {"tags": ""}, "candidates": {"user": USERS, "price": PRICES}}


@pytest.fixture(scope="module")
def on_ray():
    import ray
    from ray import serve

    from tests.cluster.conftest import free_port

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield serve, f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def post(url, body):
    request = urllib.request.Request(f"{url}/v1/predict", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_two_replicas_answer_and_one_that_dies_comes_back(bundle, on_ray):
    from workers.serving.on_ray import app

    serve, url = on_ray
    serve.run(app({"bundle": str(bundle.directory), "replicas": 2, "cpus": 0.1}))
    for _ in range(20):
        status, found = post(url, GOOD)
        assert (status, found["version"]) == (200, "v1")
        np.testing.assert_allclose(found["scores"]["click"], 1 / (1 + np.exp(-logits())), rtol=1e-5)
    status, found = post(url, {"candidates": {"user": ["0"], "price": [1.0]}})
    assert (status, found["error"]["field"]) == (400, "tags")
    deployment = serve.status().applications["default"].deployments["weir"]
    assert deployment.replica_states == {"RUNNING": 2}

    import ray
    from ray.util import list_named_actors

    names = [each["name"] for each in list_named_actors(all_namespaces=True) if "#weir#" in each["name"]]
    assert len(names) == 2
    ray.kill(ray.get_actor(names[0], namespace="serve"), no_restart=True)
    wait_for(lambda: post(url, GOOD)[0] == 200, 60)

    def states():
        return serve.status().applications["default"].deployments["weir"].replica_states

    wait_for(lambda: states() == {"RUNNING": 2}, 90)


def test_replicas_follow_the_pointer_of_a_model_directory(tmp_path, on_ray):
    from workers.serving.on_ray import app

    serve, url = on_ray
    models = Models(tmp_path / "models")
    make_summing(tmp_path / "first", version="first")
    make_summing(tmp_path / "second", version="second", adds=1.5)
    publish(models, str(tmp_path / "first"))
    serve.run(app({"bundle": str(models.directory), "replicas": 2, "cpus": 0.1}))

    def seen():
        versions = set()
        for _ in range(20):
            status, found = post(url, GOOD)
            assert status == 200
            adds = {"first": 0.0, "second": 1.5}[found["version"]]
            np.testing.assert_allclose(found["scores"]["click"], 1 / (1 + np.exp(-logits(adds))), rtol=1e-5)
            versions.add(found["version"])
        return versions

    assert seen() == {"first"}
    publish(models, str(tmp_path / "second"))
    wait_for(lambda: seen() == {"second"}, 60)
    publish(models, "first")
    wait_for(lambda: seen() == {"first"}, 60)


def test_mistakes_are_one_line(bundle):
    from workers.serving.on_ray import app

    with pytest.raises(RequestError, match="replcas: unknown key; did you mean 'replicas'"):
        app({"bundle": str(bundle.directory), "replcas": 2})
    with pytest.raises(BundleError, match="is no bundle"):
        app({"bundle": "/nowhere"})
