"""Checkpoints of jobs away from their runs: in a real S3 server, by URI of this machine; from any machine that reaches
them a job goes on, to the same bits.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ps import chain
from ps.checkpoint import MANIFEST, read_manifest
from ps.places import inside, open_place
from tests import s3 as servers
from tests.test_structure import ROOT
from tests.workers.test_cli import mistake, weir
from tests.workers.training.recipe import load, write
from tests.workers.training.test_job import assert_same_bits, interrupt_after
from workers.config import load_config
from workers.training.job import train
from workers.training.position import POSITION_FILE
from workers.training.runs import InterruptedRunError, newest

STOPPING = {"train.early_stopping": {"metric": "logloss", "patience": 3}, "train.epochs": 3}
OPTIONS = {**STOPPING, "checkpoint.every_steps": 7, "checkpoint.keep": 2}
SAME = ("auc", "logloss", "valid_logloss", "steps", "epochs", "samples")


@pytest.fixture(scope="module")
def s3():
    with servers.serving() as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run that nothing interrupted."""
    return train(load(tmp_path_factory.mktemp("whole"), STOPPING))


@pytest.fixture(scope="module")
def stored(s3, tmp_path_factory):
    """A finished run of increments, in S3: its recipe, its result, and the folder of the bucket."""
    folder = tmp_path_factory.mktemp("stored")
    file = write(folder, {**OPTIONS, "checkpoint.directory": s3.uri("stored"), "checkpoint.incremental": True})
    return file, train(load_config(file)), "stored/small/0001"


@pytest.mark.parametrize("where", ["file", "s3"])
def test_another_machine_goes_on_to_the_same_bits(where, whole, request, tmp_path):
    """Ctrl-C in the second epoch; then the same command without the first one's runs folder."""
    directory = (tmp_path / "a b").as_uri() if where == "file" else request.getfixturevalue("s3").uri("moved")
    there, stopped = {**OPTIONS, "checkpoint.directory": directory}, threading.Event()
    interrupt_after(inside(directory, "small/0001/checkpoints/step-21"), stopped)
    with pytest.raises(InterruptedRunError, match=r"stopped after step \d+; run again to go on from .*/step-\d+"):
        train(load(tmp_path, {**there, "runs": str(tmp_path / "first")}))
    stopped.set()
    local = tmp_path / "first/small/0001"
    assert sorted(path.name for path in local.iterdir() if path.suffix != ".csv") == ["config.json"]
    checkpoints = inside(directory, "small/0001/checkpoints")
    assert len(open_place(checkpoints).folders()) == 2
    resumed = train(load(tmp_path, {**there, "runs": str(tmp_path / "second")}))
    assert resumed["checkpoint"].startswith(directory.partition("?")[0])
    assert {name: resumed[name] for name in SAME} == {name: whole[name] for name in SAME}
    assert_same_bits(whole["checkpoint"], resumed["checkpoint"])
    assert (tmp_path / "second/small/0001/valid.csv").exists()
    again = train(load(tmp_path, {**there, "runs": str(tmp_path / "second"), "train.max_steps": 1}))
    assert again["run"] == str(tmp_path / "second/small/0002"), "a finished run is not continued"


def test_what_is_kept_and_what_is_not(s3, stored):
    _, result, folder = stored
    files = s3.files(folder)
    steps = sorted({name.split("/")[1] for name in files if name.startswith("checkpoints/")})
    newest_ones = sorted(steps, key=lambda name: int(name.removeprefix("step-")))[-2:]
    chains = [read_manifest(s3.uri(f"{folder}/checkpoints/{name}")).chain for name in newest_ones]
    assert chains[-1][0].base is None
    assert any(len(each) > 1 for each in chains), "no increment"
    needed = {member.directory.partition("?")[0].rpartition("/")[2] for each in chains for member in each}
    assert set(steps) == needed | set(newest_ones)
    assert len({name.split("/")[1] for name in files if name.startswith("best/")}) == 1
    assert {name for name in files if "/" not in name} == {"config.json", "result.json"}
    assert not [name for name in files if name.endswith(".tmp")]
    local = Path(result["run"])
    assert json.loads((local / "result.json").read_text()) == result
    assert not (local / "checkpoints").exists()
    assert not (local / "best").exists()
    assert (local / "valid.csv").exists()


def test_every_command_reads_them(stored, tmp_path):
    file, result, _ = stored
    where = result["checkpoint"]
    evaluated = weir("evaluate", file, "--checkpoint", where, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    said = json.loads(evaluated.stdout)
    assert (said["auc"], said["logloss"], said["checkpoint"]) == (result["auc"], result["logloss"], where)
    inspected = weir("inspect", where, "--json", "--slots")
    assert inspected.exit_code == 0, inspected.stderr
    assert json.loads(inspected.stdout)["tables"]["main"]["slots"]["user"] > 0, "names come from the run's config"
    shown = weir("inspect", where, "--json", "--key", "user=3")
    assert json.loads(shown.stdout)["exists"]
    exported = weir("export", file, "--checkpoint", where, "--out", tmp_path / "bundle", "--json")
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["rows"] == json.loads(inspected.stdout)["tables"]["main"]["rows"]
    begun = load_config(file, [f"checkpoint.start_from={where}", f"runs={tmp_path}", "name=begun", "train.max_steps=1"])
    assert train(begun)["rows"] >= result["rows"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("checkpoint.directory=s4://weir/a", "s4://weir/a/small cannot be opened: Unrecognized filesystem type"),
        ("checkpoint.directory={elsewhere}", "Bucket 'elsewhere' not found"),
        ("checkpoint.start_from={elsewhere}", "holds no complete checkpoint"),
        ("runs={elsewhere}", "and the URI as checkpoint.directory"),
        ("cluster.deltas.directory={elsewhere}", "must be a folder of the shards' machines"),
    ],
)
def test_mistakes_are_one_line(s3, tmp_path, setting, said):
    runs = tmp_path / "runs"
    line = mistake(weir("train", write(tmp_path), "--set", setting.format(elsewhere=s3.uri("a", bucket="elsewhere"))))
    assert said in line
    assert not list(runs.rglob("*.csv"))


def test_credentials_that_the_store_refuses(s3, tmp_path):
    file, directory = write(tmp_path), f"checkpoint.directory={s3.uri('refused')}"
    with s3.refusing():
        line = mistake(weir("train", file, "--set", directory))
        assert "cannot be reached" in line
        assert "INVALID_ACCESS_KEY_ID" in line
        assert not list((tmp_path / "runs").rglob("*")), "nothing began"
        line = mistake(weir("evaluate", file, "--checkpoint", s3.uri("refused")))
        assert "cannot be read" in line


def test_a_checkpoint_counts_when_its_manifest_is_there(s3, stored):
    """Tower, position and rows without it are no checkpoint, whatever their step."""
    _, _, folder = stored
    checkpoints = s3.uri(f"{folder}/checkpoints")
    before = newest(checkpoints)
    torn = open_place(inside(checkpoints, "step-999"))
    for name in ("dense.safetensors", POSITION_FILE, "rows-0000-of-0001-00000000.weir"):
        torn.replace(name, b"torn")
    assert newest(checkpoints) == before
    torn.remove_all()
    assert open_place(inside(checkpoints, "step-999")).names() == []
    torn.remove_all()


@pytest.mark.slow
def test_kill_9_at_any_instant_leaves_a_whole_checkpoint(s3, whole, tmp_path):
    """The trainer dies again and again, each time with another machine's runs folder; the end is the same bits."""
    random.seed(4)
    changes = {**OPTIONS, "checkpoint.directory": s3.uri("killed"), "checkpoint.every_steps": 2, "checkpoint.keep": 1}
    file = write(tmp_path, {**changes, "cluster.placement": "process"})
    checkpoints, found = s3.uri("killed/small/0001/checkpoints"), []
    for number in range(4):
        with (tmp_path / "said").open("w") as said:
            trainer = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "train", str(file), "--set", f"runs={tmp_path}/{number}"],
                cwd=ROOT,
                stdout=said,
                stderr=said,
            )
            before = newest(checkpoints)
            while newest(checkpoints) == before:
                assert trainer.poll() is None, (tmp_path / "said").read_text()
                time.sleep(0.02)
            time.sleep(random.random() * 0.3)
            os.kill(trainer.pid, signal.SIGKILL)
            trainer.wait()
        left = newest(checkpoints)
        assert chain.verify(left).rows["main"] > 0
        found.append(left)
    assert len(set(found)) == 4, "each went on from the one before"
    result = train(load_config(file, [f"runs={tmp_path}/last"]))
    assert {name: result[name] for name in SAME} == {name: whole[name] for name in SAME}
    assert_same_bits(whole["checkpoint"], result["checkpoint"])
    assert sum(name.endswith(MANIFEST) for name in s3.files("killed/small/0001/checkpoints")) == 1
