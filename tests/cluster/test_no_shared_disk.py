"""Two nodes of Ray that share no disk: the job's process on one, shards and workers on the other, whose view of the
runs folder is a file system of its own (a mount namespace, which root may make). Checkpoints lie in S3.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import s3 as servers
from tests.cluster.conftest import Weir, free_port, wait_for
from tests.workers.training.recipe import load, write
from tests.workers.training.test_job import assert_same_bits
from workers.training.job import train
from workers.training.runs import newest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

RAY = str(Path(sys.executable).with_name("ray"))
SMALL = ["--block", "--disable-usage-stats", "--object-store-memory=80000000"]
ON_RAY = {"cluster.placement": "ray", "cluster.cpus_per_shard": 0.25}
GROUP = {**ON_RAY, "cluster.workers": {"count": 2, "cpus": 0.25}}
LONG = {"checkpoint.every_steps": 20, "train.epochs": 4, "data.batch_size": 32}


@pytest.fixture(scope="module")
def s3():
    with servers.serving() as server:
        yield server


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(s3, runs, tmp_path_factory):
    """Of the two nodes' Ray. Shards and workers have room on the second only."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace, which root may make")
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    short = Path("/tmp") / f"weir-ray-{os.getpid()}"  # paths of Unix sockets have at most 107 characters
    head = [RAY, "start", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", *SMALL]
    head += ["--dashboard-agent-listen-port=0", f"--temp-dir={short}"]
    other = [RAY, "start", f"--address=127.0.0.1:{port}", "--num-cpus=3", '--resources={"ps": 4, "worker": 4}', *SMALL]
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(runs), *other]
    started = []
    try:
        for number, command in enumerate([head, mounted]):
            log = folder / str(number)
            with log.open("w") as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True))
            wait_for(lambda log=log: "Ray runtime started" in log.read_text(), "ray start")
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()  # with --block it takes its own processes along
            process.wait(120)
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def weir(address):
    started = []

    def start(*arguments):
        started.append(Weir(*arguments, "--json", RAY_ADDRESS=address))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


def test_shards_of_another_node(weir, s3, runs, tmp_path):
    file = write(tmp_path, {**ON_RAY, **LONG, "runs": str(runs)})
    done = weir("train", file).wait()
    assert done.status == 2, "shards wrote to a disk that only they see"
    assert "a folder that all shards and this process share, or a URI" in done.said
    directory = f"checkpoint.directory={s3.uri('shards')}"
    first = weir("train", file, "--set", directory)
    wait_for(lambda: newest(s3.uri("shards/small/0002/checkpoints")), "a first checkpoint", 180)
    first.interrupt()
    assert first.wait().status == 130
    result = weir("train", file, "--set", directory).wait(300).result
    assert result["run"].endswith("0002")
    whole = train(load(tmp_path, {**LONG, "runs": str(tmp_path / "whole")}))
    assert_same_bits(result["checkpoint"], whole["checkpoint"])


def test_workers_of_another_node(weir, s3, runs, tmp_path):
    file = write(tmp_path, {**GROUP, **LONG, "name": "group", "runs": str(runs)})
    directory = f"checkpoint.directory={s3.uri('group')}"
    first = weir("train", file, "--set", directory)
    wait_for(lambda: newest(s3.uri("group/group/0001/checkpoints")), "a first checkpoint", 180)
    first.interrupt()
    stopped = first.wait()
    assert stopped.status == 130, stopped.stderr
    assert "stopped after step" in stopped.said
    done = weir("train", file, "--set", directory).wait(300)
    whole = weir("train", file, "--set", f"checkpoint.directory={s3.uri('whole')}").wait(300)
    assert_same_bits(done.result["checkpoint"], whole.result["checkpoint"])
    assert done.result["auc"] == whole.result["auc"]
    assert not list((runs / "group/0001").glob("*.csv")), "the nodes share a disk"
    assert s3.files("group/group/0001")[-1] == "result.json", "the request to stop is left"
