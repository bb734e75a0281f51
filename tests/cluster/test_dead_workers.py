"""A worker's process dies: the group starts anew, at staleness 0 from a whole cut, else with the rows as they are."""

import json
import threading

import psutil
import pytest

from ps.checkpoint import MANIFEST
from tests.cluster.conftest import run_here, wait_for
from tests.cluster.test_training_on_ray import GROUP, LONG, assert_same_end
from tests.workers.training.recipe import write

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def kill_a_worker():
    """SIGKILL to one of the Ray Train workers of this session."""
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if any("RayTrainWorker" in word or "TrainWorker" in word for word in process.cmdline())
    ]
    assert workers, "no worker runs"
    workers[-1].kill()


def train_and_kill(file, condition, what):
    failed = []

    def work():
        try:
            wait_for(condition, what, seconds=180)
            kill_a_worker()
        except BaseException as error:
            failed.append(error)

    killer = threading.Thread(target=work)
    killer.start()
    done = run_here("train", file, "--json")
    killer.join()
    assert not failed, failed[0]
    assert done.exit_code == 0, done.stderr
    return done


def test_at_staleness_0_it_ends_as_if_nobody_had_died(join, tmp_path):
    file = write(tmp_path, {**GROUP, **LONG})
    checkpoint = tmp_path / "runs/small/0001/checkpoints/step-8" / MANIFEST
    done = train_and_kill(file, checkpoint.exists, "a checkpoint")
    assert "start anew from step" in done.stderr
    result = json.loads(done.stdout)
    assert result["worker_restarts"] == 1
    whole = run_here("train", file, "--json", "--set", f"runs={tmp_path}/whole")
    assert_same_end(result, json.loads(whole.stdout))


def test_with_stale_rows_they_stay_and_the_tower_goes_back_to_a_snapshot(join, tmp_path):
    changes = {**GROUP, "train.epochs": 60, "data.batch_size": 32, "cluster.workers.snapshot_seconds": 0.3}
    file = write(tmp_path, {**changes, "cluster.client.staleness": 2})
    dense = tmp_path / "runs/small/0001/dense"
    done = train_and_kill(file, lambda: len(list(dense.glob("*/position.json"))) > 0, "a snapshot")
    assert "rows stay as they are" in done.stderr
    result = json.loads(done.stdout)
    assert result["worker_restarts"] == 1
    assert result["epochs"] == 60
