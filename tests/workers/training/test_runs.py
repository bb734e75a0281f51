"""Which run is continued, and that half-written checkpoints are never taken for whole."""

from pathlib import Path

import msgpack
import pytest

from ps.checkpoint import MANIFEST, read_manifest, write_manifest, write_part
from ps.spec import ClusterSpec
from workers.training.runs import keep_newest, newest, open_run

SPEC = ClusterSpec.model_validate({"tables": {"main": {"segments": {"linear": {"dim": 1}}}}})
CONFIG = {"name": "x", "train": {"epochs": 1}, "cluster": {"shards": 1, "client": {"staleness": 0}}, "checkpoint": {}}


def checkpoint(run, step, *, complete=True, base=None):
    directory = Path(run.checkpoints) / f"step-{step}"
    directory.mkdir(parents=True)
    if complete:
        said = {"rows": {"main": 0}, "num_owned_buckets": SPEC.num_buckets, "increment": base is not None}
        part = msgpack.packb({**write_part(directory, 0, 1, [b"rows"]), **said})
        write_manifest(directory, SPEC, [part], id=step, base=None if base is None else read_manifest(base))
    return directory


def test_an_unfinished_run_goes_on_from_its_newest_complete_checkpoint(tmp_path):
    run, start = open_run(tmp_path, "x", CONFIG, resume=True)
    assert start is None
    checkpoint(run, 9)
    expected = checkpoint(run, 10)
    checkpoint(run, 11, complete=False)
    moved = {**CONFIG, "cluster": {"shards": 4, "client": {"staleness": 0}}}
    assert open_run(tmp_path, "x", moved, resume=True) == (run, str(expected))


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
    assert sorted(path.name for path in Path(run.checkpoints).iterdir()) == ["step-100", "step-20"]
    assert newest(run.checkpoints) == f"{run.checkpoints}/step-100"


def test_keep_newest_clears_what_a_save_killed_behind_its_manifest_left(tmp_path):
    run, _ = open_run(tmp_path, "x", CONFIG, resume=True)
    folder = checkpoint(run, 5)
    kept = sorted(path.name for path in folder.iterdir())
    write_part(folder, 0, 1, [b"of the save before"])
    (folder / "dense.safetensors").touch()
    keep_newest(run.checkpoints, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, "dense.safetensors"])


def test_keep_newest_never_counts_what_is_not_whole(tmp_path):
    """Else the newest, if it is damaged, would push out the only one that can be read."""
    run, _ = open_run(tmp_path, "x", CONFIG, resume=True)
    whole, cut, unreadable = (checkpoint(run, step) for step in (1, 2, 3))
    next(cut.glob("rows-*")).write_bytes(b"r")
    (unreadable / MANIFEST).write_text("{")
    keep_newest(run.checkpoints, 1)
    assert sorted(Path(run.checkpoints).iterdir()) == [whole, cut, unreadable]
    checkpoint(run, 4)
    keep_newest(run.checkpoints, 1)
    assert sorted(path.name for path in Path(run.checkpoints).iterdir()) == ["step-2", "step-3", "step-4"]


def test_keep_newest_keeps_what_an_increment_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, _ = open_run(Path("runs"), "x", CONFIG, resume=True)
    first = checkpoint(run, 1)
    full = checkpoint(run, 2)
    middle = checkpoint(run, 3, base=full)
    newest_one = checkpoint(run, 4, base=middle)
    keep_newest(run.checkpoints, 1)
    assert not first.exists()
    assert sorted(Path(run.checkpoints).iterdir()) == [full, middle, newest_one]
    lone = checkpoint(run, 5)
    keep_newest(run.checkpoints, 2)
    assert sorted(Path(run.checkpoints).iterdir()) == [full, middle, newest_one, lone]
    keep_newest(run.checkpoints, 1)
    assert sorted(Path(run.checkpoints).iterdir()) == [lone]
