"""`weir model publish`: a bundle becomes a version, what does not fit is refused, and the pointer stays then."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ps.errors import BundleError
from tests.workers.serving.making import FIELDS
from tests.workers.serving.summing import SHAPES, make_summing
from tests.workers.serving.towers import write_tower
from workers.cli import app
from workers.config import Categorical
from workers.model_cli import _time
from workers.serving.bundle import write_manifest
from workers.serving.publishing import publish
from workers.serving.recorded import Recorded, write_recorded
from workers.serving.retention import floor, prune
from workers.serving.versions import Models, VersionError


def add_dense(models, name, bundle, *, adds, claims=None, markers=None):
    """A tower of sums that adds a number, and a record of one that adds what it claims."""
    rng = np.random.default_rng(1)
    inputs = {f"rows_{segment}": rng.normal(size=(4, *shape)).astype(np.float32) for segment, shape in SHAPES.items()}
    inputs["dense"] = rng.normal(size=(4, 1)).astype(np.float32)
    logits = sum(values.reshape(4, -1).sum(axis=1) for values in inputs.values()) + (adds if claims is None else claims)
    with models.staging() as staged:
        write_tower(staged, SHAPES, adds=adds, num_dense=1)
        write_recorded(staged, Recorded(inputs, np.float32(logits)[:, None]))
        return models.add(staged, name, step=4, data_time=2.0, bundle=bundle, markers=markers or {0: 9})


@pytest.fixture
def models(tmp_path):
    models = Models(tmp_path / "models")
    make_summing(tmp_path / "first", version="first", offsets={"0": 5, "1": 7})
    publish(models, str(tmp_path / "first"))
    return models


def test_a_bundle_becomes_a_version(models, tmp_path):
    assert models.current().version == "first"
    assert (models.path("first") / "tower.onnx").stat().st_ino == (tmp_path / "first" / "tower.onnx").stat().st_ino
    make_summing(tmp_path / "second", adds=1.0, version="second")
    assert publish(models, str(tmp_path / "second"), name="other").version == "other"
    assert publish(models, "first").version == "first"
    with pytest.raises(VersionError, match="has a version 'first' already"):
        publish(models, str(tmp_path / "first"))


def test_dense_versions_are_checked_too(models):
    add_dense(models, "good", "first", adds=2.0)
    assert publish(models, "good").version == "good"
    add_dense(models, "bad", "first", adds=2.0, claims=3.0)
    with pytest.raises(VersionError, match="scores its recorded examples otherwise than training did"):
        publish(models, "bad")
    assert models.current().version == "good"
    (models.path("first") / "rows").rename(models.path("first") / "lost")
    with pytest.raises(BundleError, match="is missing"):
        publish(models, "good")


def test_rows_in_a_coarse_codec_differ_by_no_more_than_export_found(models, tmp_path):
    """Of the greatest logit that export met: those of the few examples are smaller, and say nothing of its share."""
    bundle = make_summing(tmp_path / "coarse", wrong_by=0.03, version="coarse")
    found = bundle.manifest.checks
    for scale, fits in ((1.0, False), (10.0, True)):
        checks = found.model_copy(
            update={"scores": 0.004, "tower": found.tower.model_copy(update={"logit_scale": scale})}
        )
        write_manifest(bundle.directory, bundle.manifest.model_copy(update={"checks": checks}))
        if fits:
            assert publish(models, str(bundle.directory)).version == "coarse"
        else:
            with pytest.raises(BundleError, match=r"where export found 0\.004"):
                publish(models, str(bundle.directory))


def test_what_does_not_fit_is_refused(models, tmp_path):
    make_summing(tmp_path / "wrong", wrong_by=0.05, version="wrong")
    with pytest.raises(BundleError, match=r"its examples' logits differ from training's by 0\.0"):
        publish(models, str(tmp_path / "wrong"))
    make_summing(tmp_path / "torn", version="torn")
    rows = next(path for path in (tmp_path / "torn" / "rows").iterdir() if path.suffix == ".weir")
    torn = bytearray(rows.read_bytes())
    torn[len(torn) // 2] ^= 1
    rows.write_bytes(torn)
    with pytest.raises(BundleError, match="checksum differs"):
        publish(models, str(tmp_path / "torn"))
    other = {**FIELDS, "user": Categorical(column="person", table="main", slot=0)}
    make_summing(tmp_path / "schema", version="schema", fields=other)
    with pytest.raises(VersionError, match=r"columns\.person is categorical, not missing"):
        publish(models, str(tmp_path / "schema"))
    for what, said in ((f"{tmp_path}/nothing", "is no bundle's folder"), ("nothing", "has no version 'nothing'")):
        with pytest.raises(VersionError, match=said):
            publish(models, what)
    assert (models.current().version, [each.name for each in models.versions()]) == ("first", ["first"])
    assert not list((models.directory / "versions").glob(".*"))


def test_the_floor_is_what_kept_bundles_need(models, tmp_path):
    assert floor(models) == {0: 5, 1: 7}
    make_summing(tmp_path / "second", version="second", offsets={"0": 8, "2": 3})
    publish(models, str(tmp_path / "second"))
    add_dense(models, "dense", "second", adds=1.0)
    assert floor(models) == {0: 5, 1: 7, 2: 3}
    models.publish("dense")
    assert prune(models, 1) == ["first"]
    assert floor(models) == {0: 8, 2: 3}
    assert [each.name for each in models.versions()] == ["second", "dense"]


def test_the_command(models, tmp_path):
    def weir(*arguments):
        return CliRunner().invoke(app, ["model", *map(str, arguments)])

    add_dense(models, "dense", "first", adds=1.0)
    done = weir("publish", models.directory, "dense", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "models": str(models.directory), "current": "dense", "pinned": False, "serial": 2,
        "changed": _time(models.current().changed), "before": "first", "removed": [],
    }  # fmt: skip
    back = json.loads(weir("rollback", models.directory, "--json").stdout)
    assert (back["current"], back["pinned"], back["before"]) == ("first", True, None)
    listed = json.loads(weir("list", models.directory, "--json").stdout)
    assert [(each["version"], each["is_current"], each["bundle"]) for each in listed["versions"]] == [
        ("first", True, "first"),
        ("dense", False, "first"),
    ]
    lines = weir("list", models.directory).stderr.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["pinned", "first", "itself"], ["dense", "first", "4"]]
    refused = weir("rollback", models.directory)
    assert (refused.exit_code, "no version served before 'first'" in refused.stderr) == (2, True)
    assert weir("publish", models.directory, "../first").exit_code == 2
    (tmp_path / "empty").mkdir()
    empty = json.loads(weir("list", tmp_path / "empty", "--json").stdout)
    assert empty == {"models": str(tmp_path / "empty"), "current": None, "versions": []}


def test_a_list_of_a_folder_that_is_not_there_is_a_mistake(tmp_path):
    done = CliRunner().invoke(app, ["model", "list", str(tmp_path / "modles")])
    assert done.exit_code == 2
    assert "modles is no folder; `weir model publish` makes a model directory" in done.stderr
