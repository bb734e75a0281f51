"""One small Ray for the whole session, and one cluster of two shards in it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

# A token of the tests' own: Ray neither reads nor writes one in the home directory, here and in every child process.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
from typer.testing import CliRunner

import ps
from ps import actor
from ps.checkpoint import MANIFEST
from tests.ps.client.conftest import SPEC, client, connect  # noqa: F401  fixtures
from workers.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray_session():
    """Ray on this machine with two CPUs."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


class RayCluster:
    """A cluster of shard actors, as LocalCluster is one of processes."""

    def __init__(self, name, spec, shards, **options):
        self.name, self.spec = name, spec
        self.directory = actor.start_cluster(spec, shards, name, **options)

    def connect(self, options=None) -> ps.Client:
        return actor.connect_cluster(self.name, options)

    def pids(self):
        return [shard["pid"] for shard in actor.cluster_status(self.name)["shards"]]

    def close(self):
        actor.stop_cluster(self.name)


@pytest.fixture(scope="session")
def cluster(ray_session):
    running = RayCluster("session", SPEC, 2)
    yield running
    running.close()


def run_here(*arguments):
    """`weir` in this process, which is in Ray already."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def join(ray_session, monkeypatch):
    """`run_here` goes to the session's Ray."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@dataclass
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def result(self):
        """The JSON object that stands last on stdout."""
        assert self.status == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def said(self):
        """The one line of a command that failed."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("weir: ")]
        return line


class Weir:
    """`weir` in a process of its own, started in the repository's root."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def interrupt(self):
        """Ctrl-C, as a terminal sends it: to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, seconds=120):
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return Done(self.process.returncode, stdout, stderr)


@pytest.fixture
def weir(ray_session):
    """Start `weir` in the session's Ray."""
    address = ray.get_runtime_context().gcs_address
    started = []

    def start(*arguments):
        started.append(Weir(*arguments, RAY_ADDRESS=address))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)


def wait_for(condition, what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.02)


def kill_a_shard_after(checkpoint, name):
    """SIGKILL to shard 1 of a cluster as soon as the checkpoint is complete."""
    wait_for((checkpoint / MANIFEST).exists, f"{checkpoint} is complete")
    os.kill(actor.cluster_status(name)["shards"][1]["pid"], signal.SIGKILL)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
