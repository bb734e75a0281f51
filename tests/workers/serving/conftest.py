"""A server process over a small bundle whose tower sums, shared by the tests that do not end it."""

import pytest

from tests.workers.serving.processes import ServerProcess
from tests.workers.serving.summing import make_summing
from workers.serving.loading import load


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_summing(tmp_path_factory.mktemp("served") / "bundle", version="v1")


@pytest.fixture(scope="session")
def model(bundle):
    return load(bundle, threads=1).model


@pytest.fixture(scope="session")
def server(bundle, tmp_path_factory):
    log = tmp_path_factory.mktemp("log")
    options = ("--max-candidates", "1000", "--log", str(log), "--set", "log.rate=1", "--set", "max_body_bytes=1MiB")
    with ServerProcess(bundle.directory, *options) as running:
        running.log = log
        yield running
