"""The command as a person types it: one clear line and exit status 2 for every mistake, JSON last on stdout."""

import json
import shutil
import socket

import pytest
from typer.testing import CliRunner

from ps.checkpoint import MANIFEST
from tests.workers.training.recipe import write
from workers.cli import app

CSV = "click,user,price\n1,a,2.5\n0,b,3\n1,c,1\n0,d,0\n"
FILES = {
    "data.format": "csv",
    "data.generated": None,
    "data.train": "train.csv",
    "data.batch_size": 2,
    "fields": {"user": "categorical", "price": {"type": "numeric"}},
    "group": None,
}


def weir(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mistake(result):
    """The one line of a refused request."""
    assert result.exit_code == 2, (result.exit_code, result.stderr)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("weir: ")]
    return line


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    return lambda changes=None: write(tmp_path, {**FILES, "data.root": str(tmp_path), **(changes or {})})


def test_train_prints_one_json_object_last_then_evaluate_and_inspect_agree(tmp_path):
    file = write(tmp_path)
    done = weir("train", file, "--local", "--json", "--set", "train.epochs=1")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["epochs"] == 1
    assert "valid: auc" in done.stderr
    again = json.loads(weir("evaluate", file, "--checkpoint", result["checkpoint"], "--json").stdout)
    assert again["auc"] == result["auc"]
    held = json.loads(weir("inspect", result["checkpoint"], "--json").stdout)
    assert held["tables"]["main"]["rows"] == result["rows"]
    assert set(held["tables"]["main"]["slots"]) == {"user", "item", "hour", "tags"}
    with_slots = json.loads(weir("inspect", result["checkpoint"], "--slots", "--json").stdout)
    slots = with_slots.pop("slot_statistics")["main"]
    assert with_slots == held
    assert {name: each["rows"] for name, each in slots.items()} == held["tables"]["main"]["slots"]
    assert 0 < slots["item"]["segments"]["embedding"]["coverage"] <= 1
    printed = weir("inspect", result["checkpoint"], "--slots").stderr.splitlines()
    (heading,) = [line for line in printed if line.startswith("slot ")]
    assert " ".join(heading.split()) == "slot rows share bytes segment norm mean norm max zero coverage"
    assert len(printed) - printed.index(heading) - 1 == 2 * len(slots)  # two segments
    row = json.loads(weir("inspect", result["checkpoint"], "--key", "hour=3", "--json").stdout)
    assert len(row["values"]["embedding"]) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.batch_sise": 3}, "data.batch_sise: unknown key; did you mean 'batch_size'?"),
        ({"model": {"name": "deepfn"}}, "did you mean 'deepfm'?"),
        ({"model": {"name": "deepfm", "hiden": [4]}}, "did you mean 'hidden'?"),
        ({"data.train": "nowhere.csv"}, "nowhere.csv"),
        ({"fields": {"usr": "categorical"}}, "usr"),
        ({"fields": {"user": {"type": "categorical", "slot": 4096}}}, "4095"),
        (
            {"fields": {"user": {"type": "categorical", "slot": 3}, "click": {"type": "categorical", "slot": 3}}},
            "slot 3 is already that of field 'user'",
        ),
        ({"tables.main.segments": {"embedding": {"dim": 4}}}, "model deepfm reads a segment 'linear'"),
        ({"cluster.workers.count": 2}, "several workers need Ray"),
        (
            {"tables.main.memory_limit_bytes": "8 gigs"},
            "tables.main.memory_limit_bytes: must be a number of bytes or a size as 8GiB or 500MB",
        ),
        (
            {"tables.main.memory_limit_bytes": "1PiB", "cluster.shards": 2},
            "memory_limit_bytes of table 'main' 1 PiB: 2 shards on this node may take 2 PiB, above ",
        ),
        ({"cluster.client": {"cache": {"max_age_steps": 1}}}, "staleness"),
    ],
)
def test_mistakes_of_the_recipe(recipe, changes, said):
    assert said in mistake(weir("train", recipe(changes)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CSV.replace("0,b", "2,b"), "train.csv:3"),
        (CSV.replace("3\n", "x3\n"), "train.csv:3"),
        (CSV.replace("3\n", "nan\n"), "train.csv:3"),
        (CSV.replace("3\n", "inf\n"), "train.csv:3"),
        (CSV.replace("1,c,1", "1,c"), "train.csv"),
        ("", "empty"),
        ("click,user,price\n", "train.csv"),
    ],
)
def test_mistakes_of_the_data(recipe, tmp_path, text, said):
    file = recipe()
    (tmp_path / "train.csv").write_text(text)
    assert said in mistake(weir("train", file))


def test_a_checkpoint_of_another_row_layout_or_damaged(tmp_path):
    file = write(tmp_path, {"train.epochs": 1})
    checkpoint = json.loads(weir("train", file, "--json").stdout)["checkpoint"]
    other = write(tmp_path, {"tables.main.segments.embedding.dim": 6})
    assert "dim 6, the checkpoint 4; map it" in mistake(weir("evaluate", other, "--checkpoint", checkpoint))
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    victim = next(copy.glob("rows-*.weir"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert victim.name in mistake(weir("inspect", copy))
    (copy / MANIFEST).unlink()
    assert "no complete checkpoint" in mistake(weir("evaluate", file, "--checkpoint", copy))


def test_a_dead_cluster_address(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have joined a Ray in this process
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"cluster.placement": "ray", "cluster.ray_address": f"127.0.0.1:{port}"}
    line = mistake(weir("train", write(tmp_path, changes)))
    assert f"127.0.0.1:{port}" in line
    assert "ray start --head" in line


def test_a_token_file_that_does_not_do(tmp_path):
    changes = {"cluster.placement": "process", "cluster.security": {"token_file": str(tmp_path / "token")}}
    file = write(tmp_path, changes)
    assert f"security.token_file {tmp_path / 'token'} cannot be read on" in mistake(weir("train", file))
    (tmp_path / "token").touch(0o600)
    assert "is empty; write one line" in mistake(weir("train", file))
    assert "did you mean 'token_file'?" in mistake(weir("train", file, "--set", "cluster.security.tokenfile=x"))
    assert weir("train", file, "--local", "--set", "train.epochs=1").exit_code == 0  # nobody asks for it


def test_shard_processes_behind_a_token(tmp_path):
    (tmp_path / "token").write_text("correct-horse")
    (tmp_path / "token").chmod(0o600)
    changes = {"cluster.placement": "process", "cluster.security": {"token_file": str(tmp_path / "token")}}
    done = weir("train", write(tmp_path, {**changes, "train.epochs": 1}), "--json")
    assert done.exit_code == 0, done.stderr
    assert "horse" not in (tmp_path / "runs/small/0001/config.json").read_text()
