"""`weir up`, `status`, `down`, and jobs that attach to a cluster that outlives them."""

import json
import os
import signal
import threading
import urllib.request

import pytest

from ps import actor
from tests.cluster.conftest import kill_a_shard_after, run_here, wait_for
from tests.workers.training.recipe import load, write
from tests.workers.training.test_job import assert_same_bits
from workers.training.job import train

pytestmark = pytest.mark.cluster

LASTING = {"name": "lasting", "cluster.placement": "ray", "cluster.cpus_per_shard": 0.25, "train.epochs": 1}


@pytest.fixture
def file(join, tmp_path):
    """The recipe of a cluster that is up."""
    file = write(tmp_path, LASTING)
    done = run_here("up", file, "--json")
    assert done.exit_code == 0, done.stderr
    assert [shard["state"] for shard in json.loads(done.stdout)["shards"]] == ["serving", "serving"]
    yield file
    done = run_here("down", file, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"name": "lasting", "stopped": True})


def status(file):
    done = run_here("status", file, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # Ray's threads print too, in this process


def rows(file):
    return sum(shard["tables"]["main"]["rows"] for shard in status(file)["shards"])


def scrape(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_a_job_attaches_and_says_what_it_does_with_rows_that_are_there(file, tmp_path):
    whole = train(load(tmp_path, {**LASTING, "cluster.placement": "inprocess", "runs": str(tmp_path / "whole")}))
    file = write(tmp_path, LASTING)
    first = json.loads(run_here("train", file, "--json").stdout)
    assert_same_bits(first["checkpoint"], whole["checkpoint"])
    assert rows(file) == first["rows"] > 0, "they outlive the job"
    slots = json.loads(run_here("status", file, "--slots", "--json").stdout)["slot_statistics"]["main"]
    assert sum(slot["rows"] for slot in slots.values()) == first["rows"]
    assert {"user", "item"} <= set(slots)

    refused = run_here("train", file)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert f"cluster 'lasting' holds {first['rows']} rows of an earlier job" in line
    assert "cluster.existing_rows" in line

    cleared = json.loads(run_here("train", file, "--json", "--set", "cluster.existing_rows=clear").stdout)
    assert_same_bits(cleared["checkpoint"], whole["checkpoint"])
    kept = json.loads(run_here("train", file, "--json", "--set", "cluster.existing_rows=keep").stdout)
    assert kept["rows"] == first["rows"]
    assert kept["logloss"] != first["logloss"]

    other = run_here("train", file, "--set", "seed=6")
    assert other.exit_code == 2
    assert "cluster 'lasting' runs with other tables, buckets or seed than the recipe" in other.stderr
    taken = run_here("up", file)
    assert taken.exit_code == 2
    assert "cluster 'lasting' runs already" in taken.stderr
    # Evaluation has shards of its own.
    before = status(file)
    evaluated = json.loads(run_here("evaluate", file, "--checkpoint", first["checkpoint"], "--json").stdout)
    assert evaluated["auc"] == first["auc"]
    assert status(file)["epoch"] == before["epoch"]


def test_metrics_of_the_coordinator_and_a_shard_that_came_back_empty(file, tmp_path):
    first = status(file)
    seen = scrape(first["metrics_address"])
    assert (seen["weir_cluster_epoch"], seen['weir_shards{state="expected"}']) == (first["epoch"], 2)
    assert seen['weir_shards{state="lost"}'] == seen['weir_shards{state="silent"}'] == 0
    assert 0 <= seen['weir_seconds_since_renewal{shard="1"}'] < 10
    assert scrape(first["shards"][0]["metrics_address"])["weir_routing_epoch"] == first["epoch"]

    os.kill(first["shards"][1]["pid"], signal.SIGKILL)
    wait_for(lambda: status(file)["lost"] == [1], "the coordinator notices")
    assert status(file)["shards"][1]["state"] == "lost its rows"
    assert scrape(first["metrics_address"])['weir_shards{state="lost"}'] == 1
    refused = run_here("train", file)
    assert refused.exit_code == 2
    assert "cluster.existing_rows" in refused.stderr
    done = run_here("train", file, "--set", "cluster.existing_rows=clear", "--json")
    assert done.exit_code == 0, done.stderr
    assert status(file)["lost"] == []
    assert scrape(first["metrics_address"])["weir_cluster_epoch"] > first["epoch"]


def test_a_job_whose_shard_was_killed_goes_on_in_the_same_cluster(file, tmp_path):
    changes = {**LASTING, "train.epochs": 4, "data.batch_size": 32, "checkpoint.every_steps": 4}
    whole = train(load(tmp_path, {**changes, "cluster.placement": "inprocess", "runs": str(tmp_path / "whole")}))
    file = write(tmp_path, changes)
    run = tmp_path / "runs/lasting/0001"
    killer = threading.Thread(target=kill_a_shard_after, args=(run / "checkpoints/step-8", "lasting"))
    killer.start()
    done = run_here("train", file)
    killer.join()
    assert done.exit_code == 1, done.stderr
    assert "shard 1 of cluster 'lasting'" in done.stderr
    done = run_here("train", file, "--json")
    assert f"continuing {run} after step" in done.stderr
    assert_same_bits(json.loads(done.stdout)["checkpoint"], whole["checkpoint"])


def test_status_and_down_of_a_cluster_that_is_not_there(join, tmp_path):
    file = write(tmp_path, {**LASTING, "name": "nowhere"})
    for command in ("status", "down"):
        done = run_here(command, file)
        assert done.exit_code == 2
        assert "no cluster 'nowhere' runs in this Ray; `weir up CONFIG` starts one" in done.stderr
    assert not actor.cluster_exists("nowhere")
