"""Which run is continued, and that half-written checkpoints are never taken for whole."""

import pytest

from ps.checkpoint import MANIFEST
from workers.training.runs import keep_newest, newest, open_run

CONFIG = {"name": "x", "train": {"epochs": 1}, "cluster": {"shards": 1, "client": {"staleness": 0}}, "checkpoint": {}}


def checkpoint(run, step, *, complete=True):
    directory = run.checkpoints / f"step-{step}"
    directory.mkdir(parents=True)
    if complete:
        (directory / MANIFEST).write_text("{}")
    return directory


def test_an_unfinished_run_goes_on_from_its_newest_complete_checkpoint(tmp_path):
    run, start = open_run(tmp_path, "x", CONFIG, resume=True)
    assert start is None
    checkpoint(run, 9)
    expected = checkpoint(run, 10)
    checkpoint(run, 11, complete=False)
    moved = {**CONFIG, "cluster": {"shards": 4, "client": {"staleness": 0}}}
    assert open_run(tmp_path, "x", moved, resume=True) == (run, expected)


@pytest.mark.parametrize("change", [{"train": {"epochs": 2}}, {"cluster": {"client": {"staleness": 1}}}])
def test_another_recipe_is_another_run(tmp_path, change):
    run, _ = open_run(tmp_path, "x", CONFIG, resume=True)
    checkpoint(run, 1)
    other, start = open_run(tmp_path, "x", {**CONFIG, **change}, resume=True)
    assert start is None
    assert other != run


def test_finished_or_unwanted_runs_are_not_continued(tmp_path):
    run, _ = open_run(tmp_path, "x", CONFIG, resume=True)
    checkpoint(run, 1)
    assert open_run(tmp_path, "x", CONFIG, resume=False)[1] is None
    again, _ = open_run(tmp_path, "x", CONFIG, resume=False)
    again.finish({"auc": 0.5})
    assert open_run(tmp_path, "x", CONFIG, resume=True)[1] is None


def test_keep_newest_removes_old_and_incomplete_ones(tmp_path):
    run, _ = open_run(tmp_path, "x", CONFIG, resume=True)
    for step in (5, 100, 20):
        checkpoint(run, step)
    checkpoint(run, 200, complete=False)
    keep_newest(run.checkpoints, 2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-100", "step-20"]
    assert newest(run.checkpoints).name == "step-100"
