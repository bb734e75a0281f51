"""`weir train` through Ray: one worker and several, mistakes in a worker, Ctrl-C, a shard that is killed."""

import json
import os
import threading
from pathlib import Path

import pytest

from ps import actor
from ps.checkpoint import MANIFEST
from tests.cluster.conftest import kill_a_shard_after, run_here, wait_for
from tests.workers.training.recipe import load, write
from tests.workers.training.test_job import assert_same_bits
from workers.training.job import evaluate, train
from workers.training.runs import newest

pytestmark = pytest.mark.cluster

ON_RAY = {"cluster.placement": "ray", "cluster.cpus_per_shard": 0.25}
GROUP = {**ON_RAY, "cluster.workers": {"count": 2, "cpus": 0.25}}
CSV = {
    "data": {"format": "csv", "train": "train.csv", "batch_size": 8},
    "fields": {"user": "categorical", "price": {"type": "numeric"}},
    "group": None,
    "model": {"name": "lr"},
}


def test_two_workers(join, tmp_path):
    changes = {**GROUP, "data.generated.test_rows": 501, "cluster.workers.metrics_port": 0}
    done = run_here("train", write(tmp_path, changes), "--json")
    assert done.exit_code == 0, done.stderr
    run = tmp_path / "runs/small/0001"
    assert done.stderr.count("valid: auc") == 2, "the first worker's lines, shown by the driver"
    assert len((run / "valid.csv").read_text().splitlines()) == 3
    checkpoint = Path(newest(run / "checkpoints"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [checkpoint.name] == ["step-16"]
    result = json.loads(done.stdout)
    assert (result["epochs"], result["steps"], result["samples"]) == (2, 16, 16 * 250)
    alone = evaluate(load(tmp_path, changes), checkpoint, local=True)
    assert {name: alone[name] for name in ("auc", "logloss", "gauc")} == {
        name: result[name] for name in ("auc", "logloss", "gauc")
    }
    assert not actor.cluster_exists("small")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"data.train": "nowhere.csv"}, f"nowhere.csv: no such file on node {os.uname().nodename}", id="missing file"
        ),
        pytest.param(
            {}, "train.csv:12: column 'click': '3' is no label of type binary", marks=pytest.mark.slow, id="label"
        ),
    ],
)
def test_a_mistake_in_a_worker_is_one_line(join, tmp_path, changes, said):
    rows = [f"{i % 2},u{i},{i}" for i in range(40)]
    rows[10] = "3,u10,10"
    (tmp_path / "train.csv").write_text("click,user,price\n" + "\n".join(rows) + "\n")
    file = write(tmp_path, {**CSV, **GROUP, "data.root": str(tmp_path), **changes})
    done = run_here("train", file, "--json")
    assert done.exit_code == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line
    assert done.stdout == ""


LONG = {"checkpoint.every_steps": 4, "train.epochs": 6, "data.batch_size": 32}


def assert_same_end(done, whole):
    assert (done["auc"], done["logloss"]) == (whole["auc"], whole["logloss"])
    assert_same_bits(done["checkpoint"], whole["checkpoint"])


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_the_next_run_goes_on(weir, join, tmp_path):
    file = write(tmp_path, {**GROUP, **LONG})
    run = tmp_path / "runs/small/0001"
    first = weir("train", file, "--json")
    wait_for((run / "checkpoints/step-4" / MANIFEST).exists, "a first checkpoint")
    first.interrupt()
    done = first.wait()
    assert done.status == 130, done.stderr
    assert "stopped after step" in done.said
    stopped = Path(newest(run / "checkpoints"))
    assert str(stopped) in done.said
    assert not actor.cluster_exists("small")
    done = run_here("train", file, "--json")
    assert f"continuing {run} after step {stopped.name.removeprefix('step-')}" in done.stderr
    whole = run_here("train", file, "--json", "--set", f"runs={tmp_path}/whole")
    assert_same_end(json.loads(done.stdout), json.loads(whole.stdout))


@pytest.mark.parametrize(
    ("settings", "undisturbed"),
    [
        pytest.param(ON_RAY, {}, id="one worker"),
        pytest.param(GROUP, GROUP, id="two workers", marks=pytest.mark.slow),
    ],
)
def test_a_killed_shard_ends_the_job_and_the_next_one_goes_on(join, tmp_path, settings, undisturbed):
    whole = train(load(tmp_path, {**LONG, **undisturbed, "runs": str(tmp_path / "whole")}))
    file = write(tmp_path, {**LONG, **settings})
    run = tmp_path / "runs/small/0001"
    killer = threading.Thread(target=kill_a_shard_after, args=(run / "checkpoints/step-8", "small"))
    killer.start()
    done = run_here("train", file)
    killer.join()
    assert done.exit_code == 1, done.stderr
    assert "shard 1 of cluster 'small'" in done.stderr.splitlines()[-1]
    assert not actor.cluster_exists("small")
    done = run_here("train", file, "--json")
    assert f"continuing {run} after step" in done.stderr
    assert_same_end(json.loads(done.stdout), whole)
