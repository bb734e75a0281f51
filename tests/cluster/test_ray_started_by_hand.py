"""A Ray that `ray start --head` made: `weir up`, `train`, `status`, `down` as commands, and `ray job submit`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, Weir, free_port, wait_for
from tests.workers.training.recipe import write
from workers.training.runs import newest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))
RECIPE = {"name": "head", "cluster.placement": "ray", "cluster.cpus_per_shard": 0.25, "train.epochs": 1}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(host:port of the cluster, host:port of its dashboard)."""
    port, dashboard = free_port(), free_port()
    folder = tmp_path_factory.mktemp("ray")
    short = Path("/tmp") / f"weir-ray-{os.getpid()}"  # paths of Unix sockets have at most 107 characters
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    command += ["--object-store-memory=80000000", f"--temp-dir={short}"]
    # As in an activated environment: a job looks for `weir` in the PATH with which its node was started.
    environment = {**os.environ, "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "log").read_text(), "ray start")
        yield f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}"
    finally:
        process.terminate()  # with --block it takes its own processes along
        process.wait(120)
        shutil.rmtree(short, ignore_errors=True)


def test_up_status_train_down(head, tmp_path):
    file = write(tmp_path, RECIPE)

    def weir(*arguments):
        return Weir(*arguments, file, "--json", RAY_ADDRESS=head[0]).wait()

    assert [shard["state"] for shard in weir("up").result["shards"]] == ["serving", "serving"]
    again = weir("up")
    assert (again.status, again.stdout) == (2, "")
    assert "cluster 'head' runs already; attach to it, or end it with `weir down`" in again.said
    trained = weir("train").result
    held = weir("status").result
    assert sum(shard["tables"]["main"]["rows"] for shard in held["shards"]) == trained["rows"]
    assert weir("down").result == {"name": "head", "stopped": True}
    gone = weir("status")
    assert (gone.status, gone.stdout) == (2, "")
    assert "no cluster 'head' runs in this Ray" in gone.said


@pytest.mark.timeout(600)
def test_a_submitted_job(head, tmp_path):
    """From a working directory that Ray uploads, with data and runs under absolute paths."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / ".rayignore", folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "large").write_bytes(os.urandom(1 << 20))  # .rayignore leaves it out
    (tmp_path / "data").mkdir()
    lines = [f"{i % 2},u{i % 17},{i % 5}" for i in range(200)]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["click,user,price", *lines, ""]))
    changes = {
        **RECIPE,
        "name": "submitted",
        "data": {"format": "csv", "train": "train.csv", "batch_size": 8},
        "fields": {"user": "categorical", "price": {"type": "numeric"}},
        "group": None,
        "cluster.workers": {"count": 2, "cpus": 0.25},
    }
    recipe = write(tmp_path, changes)
    shutil.move(recipe, folder / "recipe.yaml")

    def submit(*settings):
        command = [RAY, "job", "submit", "--address", f"http://{head[1]}", "--working-dir", "."]
        command += ["--", "weir", "train", "recipe.yaml", "--json", *settings]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)

    done = submit("--set", f"data.root={tmp_path}/data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uploading package" in (done.stdout + done.stderr).lower()
    checkpoint = newest(tmp_path / "runs/submitted/0001/checkpoints")
    (printed,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name": "submitted"')]
    assert printed["checkpoint"] == str(checkpoint)
    assert printed["samples"] == 200
    missing = submit("--set", f"data.root={tmp_path}/elsewhere")
    assert missing.returncode != 0
    assert f"{tmp_path}/elsewhere/train.csv: no such file on node {os.uname().nodename}" in missing.stdout
