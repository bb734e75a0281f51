"""Whole exports: a trained checkpoint becomes a bundle that scores as training did; what does not fit is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ps.checkpoint import read_manifest
from ps.errors import CheckpointError, RequestError
from tests.test_structure import ROOT
from tests.workers.training.recipe import load, write
from workers.cli import app
from workers.exporting import export
from workers.exporting.bundling import resolved_fields, tower_inputs
from workers.exporting.recorded import record
from workers.exporting.rows import ChosenRows, read_rows
from workers.exporting.tower import TOLERANCE, difference, onnx_logits
from workers.samples.schema import Schema
from workers.serving.bundle import MANIFEST_FILE, is_bundle, read_bundle
from workers.serving.columns import from_json
from workers.serving.loading import load as load_served
from workers.serving.request import Request
from workers.serving.scores import scores_of
from workers.training.job import predictions_of, train

SECONDS = 200


class Trained:
    """A run of the small recipe."""

    def __init__(self, folder, changes=None):
        self.folder = folder
        self.file = write(folder, {"train.epochs": 1, **(changes or {})})
        self.config = load(folder, {"train.epochs": 1, **(changes or {})})
        self.checkpoint = train(self.config, local=True)["checkpoint"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """With regular checkpoints, the latest an increment."""
    changes = {"checkpoint.every_steps": 6, "checkpoint.incremental": True, "checkpoint.keep": 9}
    return Trained(tmp_path_factory.mktemp("trained"), changes)


@pytest.fixture(scope="module")
def bundle(trained):
    """Of the command, which was killed before."""
    out = trained.folder / "bundle"
    kill_an_export(trained, out)
    assert not out.exists()
    left = list(trained.folder.glob(".bundle-*.partial"))
    assert len(left) == 1
    assert not is_bundle(left[0])
    arguments = ["export", trained.file, "--checkpoint", trained.checkpoint, "--out", out, "--parquet", "--json"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    found = read_bundle(out)
    assert answer["rows"] == sum(table.rows for table in found.manifest.tables.values()) > 0
    assert answer["checks"] == found.manifest.checks.model_dump(mode="json")
    return found


def kill_an_export(trained, out):
    """SIGKILL as soon as rows are there; the tower takes seconds after them."""
    arguments = ["export", trained.file, "--checkpoint", trained.checkpoint, "--out", out]
    command = [sys.executable, "-m", "workers.cli", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + SECONDS
    try:
        while not list(trained.folder.glob(f".{out.name}-*.partial/rows/MANIFEST.json")):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def served_logits(bundle, config, samples):
    """float32 [n, num_tasks] of recorded samples, from the bundle's rows and its ONNX tower alone."""
    recorded = record(config, Schema(config), samples)
    chosen = ChosenRows(recorded.keys, bundle.training_spec)
    for table, _, keys, values in read_rows(read_manifest(bundle.rows_directory)):
        chosen.see(table, keys, values)
    return onnx_logits(bundle.tower_path, recorded.inputs(config, chosen.values))


def test_samples_score_as_from_the_trainer(trained, bundle):
    _, predictions = predictions_of(trained.config, Path(trained.checkpoint), local=True)
    assert len(predictions.logits) == 500
    assert difference(served_logits(bundle, trained.config, 500), predictions.logits) <= TOLERANCE
    examples = bundle.examples()
    np.testing.assert_allclose(examples["logits"], predictions.logits[:16], rtol=0, atol=1e-6)
    expected = scores_of(predictions.logits[:16], bundle.manifest.labels)[:, 0]
    np.testing.assert_allclose(examples["scores"]["click"], expected, rtol=0, atol=1e-6)
    assert {len(values) for values in examples["columns"].values()} == {16}


def test_requests_score_as_from_the_trainer(trained, bundle):
    """Through the server's own code, from the columns of a request on: hashes, rows, pooling, tower."""
    recorded = record(trained.config, Schema(trained.config), 500)
    model = load_served(bundle, threads=1).model
    columns = json.loads(json.dumps(recorded.columns))
    read = {name: from_json(f"candidates.{name}", columns[name]) for name in model.features.columns}
    found = model.logits([model.features.read(Request("recorded", "", 500, {}, read))])[0]
    _, predictions = predictions_of(trained.config, Path(trained.checkpoint), local=True)
    assert difference(found, predictions.logits) <= TOLERANCE


def test_the_manifest_says_what_serving_needs(trained, bundle):
    manifest, config = bundle.manifest, trained.config
    assert (manifest.name, manifest.version, manifest.step, manifest.codec) == ("small", "step-16", 16, "fp32")
    assert manifest.offsets is None
    assert manifest.fields == resolved_fields(config)
    assert manifest.slots == config.slots()
    assert manifest.dense == ("price",)
    assert list(manifest.fields) == list(config.fields)
    assert manifest.inputs == tower_inputs(config)
    assert manifest.inputs["embedding"].fields == ("user", "item", "hour", "tags")
    assert bundle.serving_spec.seed == bundle.training_spec.seed == config.seed
    assert bundle.training_spec.tables["main"].segments["linear"].optimizer.name == "sgd"
    assert manifest.checks.rows == {"main": {"linear": 0.0, "embedding": 0.0}}
    assert manifest.checks.scores <= TOLERANCE
    assert manifest.checks.tower.samples == 500
    assert set(manifest.files) >= {"tower.onnx", "tower.pt2", "examples.json", "parquet/main.parquet"}
    assert ROOT.as_posix() not in (bundle.directory / MANIFEST_FILE).read_text()


def test_parquet_holds_the_served_rows(bundle):
    table = pq.read_table(bundle.directory / "parquet" / "main.parquet")
    found = {key: [*linear, *embedding] for key, linear, embedding in _columns(table)}
    rows = {
        key: row.tolist()
        for _, _, keys, values in read_rows(read_manifest(bundle.rows_directory))
        for key, row in zip(keys.tolist(), values)
    }
    assert found == rows


def _columns(table):
    return zip(*(table[name].to_pylist() for name in ("key", "linear", "embedding")))


def test_inspect_verifies_a_bundle_and_shows_a_row(trained, bundle, tmp_path):
    def inspect(*arguments):
        return CliRunner().invoke(app, ["inspect", *map(str, arguments), "--json"])

    found = json.loads(inspect(bundle.directory).stdout)
    assert found["verified"] is True
    assert (found["codec"], found["version"]) == ("fp32", "step-16")
    assert found["tables"]["main"]["rows"] == bundle.manifest.tables["main"].rows
    assert found["checks"]["tower"]["samples"] == 500
    assert sum(found["tables"]["main"]["slots"].values()) == found["tables"]["main"]["rows"]
    assert set(found["tables"]["main"]["slots"]) == {"user", "item", "hour", "tags"}
    assert (
        "embedding"
        in json.loads(inspect(bundle.directory, "--slots").stdout)["slot_statistics"]["main"]["hour"]["segments"]
    )
    row = json.loads(inspect(bundle.directory, "--key", "hour=3").stdout)
    assert row["values"] == json.loads(inspect(trained.checkpoint, "--key", "hour=3").stdout)["values"]
    assert json.loads(inspect(bundle.directory, "--key", "hour=99").stdout)["exists"] is False
    assert "did you mean 'hour'" in inspect(bundle.directory, "--key", "hor=3").stderr
    for name in bundle.manifest.files:
        copy = tmp_path / "copy"
        shutil.copytree(bundle.directory, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        refused = inspect(copy)
        assert refused.exit_code == 2
        assert name in refused.stderr
        shutil.rmtree(copy)


def test_a_bundle_is_never_written_over(trained, bundle):
    before = (bundle.directory / MANIFEST_FILE).read_bytes()
    with pytest.raises(RequestError, match="exists, and a bundle is never changed"):
        export(trained.config, trained.checkpoint, bundle.directory)
    assert (bundle.directory / MANIFEST_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--codec", "fp61"], "--codec fp61: unknown codec; did you mean 'fp16'?"),
        (["--version", "../1"], "--version ../1: must be letters, digits"),
        (["--checkpoint", "nowhere"], "nowhere holds no complete checkpoint"),
        (["--set", "tables.main.segments.embedding.dim=5"], "tables.main: differs from that of checkpoint"),
        (["--set", "model.hidden=[3]"], "holds another model than the config builds"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(trained, tmp_path, arguments, said):
    given = ["export", trained.file, "--checkpoint", trained.checkpoint, "--out", tmp_path / "out", *arguments]
    refused = CliRunner().invoke(app, [str(argument) for argument in given])
    assert refused.exit_code == 2, refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("weir: ")]
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_the_command_names_the_extra(trained):
    """As where only `weir serve` is installed."""
    script = "import sys; sys.modules['torch'] = None; from workers.cli import app; app()"
    arguments = ["export", trained.file, "--checkpoint", trained.checkpoint, "--out", trained.folder / "none"]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr == "weir: torch is not installed: pip install 'weir-ps[export]'\n"


def test_a_damaged_checkpoint_is_refused_by_name(trained, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(Path(trained.checkpoint).parent, copy)
    folder = copy / Path(trained.checkpoint).name
    for name in ("MANIFEST.json", "dense.safetensors", "position.json", next(folder.glob("rows-*")).name):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=name):
            export(trained.config, folder, tmp_path / "out")
        (folder / name).write_bytes(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_increments_say_where_the_delta_stream_goes_on(trained, tmp_path):
    """The checkpoint is an increment; its parts say offsets where its shards have a delta stream."""
    increments = sorted(
        (path for path in Path(trained.checkpoint).parent.glob("step-*") if read_manifest(path).base),
        key=lambda path: int(path.name.removeprefix("step-")),
    )
    assert increments
    copy = tmp_path / "checkpoints"
    shutil.copytree(increments[-1].parent, copy)
    folder = copy / increments[-1].name
    _change_parts(folder, lambda part: part.update(delta_offset=7 + part["shard"]))
    drawn = torch.random.get_rng_state()
    bundle = export(trained.config, folder, tmp_path / "out", version="v1")
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert bundle.offsets == {0: 7, 1: 8}
    assert (bundle.version, bundle.manifest.step) == ("v1", int(folder.name.removeprefix("step-")))
    assert bundle.manifest.tables["main"].rows == sum(read_manifest(folder).rows.values())


def _change_parts(folder, change):
    """As a shard with a delta stream would have said."""
    from ps.checkpoint import MANIFEST, _json_crc

    body = json.loads((folder / MANIFEST).read_text())
    body.pop("crc32")
    for part in body["parts"]:
        change(part)
    (folder / MANIFEST).write_text(json.dumps({**body, "crc32": _json_crc(body)}))


def test_several_tasks(tmp_path):
    changes = {
        "labels": {"click": "binary", "value": {"type": "real", "column": "price"}},
        "tables.main.segments.linear.dim": 2,
        "click": "click",
    }
    trained = Trained(tmp_path, changes)
    bundle = export(trained.config, trained.checkpoint, tmp_path / "out", codec="int8")
    _, predictions = predictions_of(trained.config, Path(trained.checkpoint), local=True)
    examples = bundle.examples()
    np.testing.assert_allclose(examples["logits"], predictions.logits[:16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(examples["scores"]["value"], predictions.logits[:16, 1], rtol=0, atol=1e-5)
    found = served_logits(bundle, trained.config, 500)
    assert found.shape == (500, 2)
    by_codec = difference(found, predictions.logits)
    assert TOLERANCE < by_codec < 0.1
    np.testing.assert_allclose(by_codec, bundle.manifest.checks.scores, rtol=1e-3)
    assert 0 < bundle.manifest.checks.rows["main"]["embedding"] < 0.05
