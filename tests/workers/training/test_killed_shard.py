"""kill -9 of a shard process in the middle of training: a clear error, and the next run ends as if nothing had been."""

import os
import signal
import threading
import time

import pytest

from ps.checkpoint import MANIFEST
from ps.errors import WeirError
from tests.workers.training.recipe import load
from tests.workers.training.test_job import assert_same_bits
from workers.training.cluster import LocalCluster
from workers.training.job import train

SETTINGS = {
    "cluster.placement": "process",
    "checkpoint.every_steps": 10,
    "train.epochs": 2,
    "data.batch_size": 32,
    "train.early_stopping": {"metric": "auc", "patience": 9},
}


def test_a_killed_shard_ends_the_job_and_the_next_one_goes_on(tmp_path, monkeypatch):
    whole = train(load(tmp_path, {**SETTINGS, "cluster.placement": "inprocess", "runs": str(tmp_path / "whole")}))
    config = load(tmp_path, SETTINGS)
    run = tmp_path / "runs/small/0001"
    clusters = []
    connect = LocalCluster.connect

    def noted(cluster, options=None):
        clusters.append(cluster)
        return connect(cluster, options)

    def kill():
        while not (run / "checkpoints/step-70" / MANIFEST).exists():
            time.sleep(0.005)
        os.kill(clusters[0].processes[1].pid, signal.SIGKILL)

    monkeypatch.setattr(LocalCluster, "connect", noted)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WeirError, match=r"shard 1 of cluster 'small' at 127\.0\.0\.1") as caught:
        train(config)
    killer.join()
    assert "\n" not in str(caught.value)
    assert not (run / "result.json").exists()
    result = train(config)
    assert result["run"] == str(run)
    assert (result["auc"], result["logloss"], result["steps"]) == (whole["auc"], whole["logloss"], whole["steps"])
    assert_same_bits(result["checkpoint"], whole["checkpoint"])
