"""Publications while training goes on: rows and towers belong together, and training has the bits as without."""

from pathlib import Path

import numpy as np
import pytest

from ps.checkpoint import MANIFEST
from ps.delta_folder import DeltaFolder
from ps.deltas.retention import kept_from
from ps.errors import BundleError
from tests.workers.training.recipe import load
from workers.exporting import export
from workers.exporting.process import export_apart
from workers.serving.building import build
from workers.serving.bundle import read_bundle
from workers.serving.fitting import check_tower
from workers.serving.loading import check_examples, example_sample
from workers.serving.publishing import check
from workers.serving.recorded import read_recorded
from workers.serving.retention import floor
from workers.serving.versions import Models, Pointer, VersionError
from workers.training.job import train
from workers.training.publisher import Publisher

STEPS, EVERY = 30, 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that published, its models, and the same run that did not."""
    folder = tmp_path_factory.mktemp("trained")
    common = {"train.max_steps": STEPS, "train.epochs": 4, "event_time": "event_time", "runs": str(folder / "runs")}
    plain = train(load(folder, common), local=True)
    changes = {
        **common,
        "name": "published",
        "cluster.deltas": {"directory": str(folder / "deltas"), "codec": "fp32", "window_seconds": 0.05},
        "serving": {"models": str(folder / "models"), "publish_steps": EVERY, "keep": 100, "examples": 8},
    }
    config = load(folder, changes)
    with pytest.MonkeyPatch.context() as patch:
        is_due = Publisher.is_due

        def due_when_written(self, step):  # else so short a training ends while its first version is written
            self._join()
            if step == 17:
                self._template.rename(folder / "away")  # what is due next cannot be written
            if step == 19:
                (folder / "away").rename(self._template)
            return is_due(self, step)

        patch.setattr(Publisher, "is_due", due_when_written)
        return config, train(config, local=True), plain, Models(folder / "models")


def test_training_learns_the_same_bits(trained):
    _, published, plain, _ = trained
    assert {key: published[key] for key in ("auc", "logloss", "steps", "rows")} == {
        key: plain[key] for key in ("auc", "logloss", "steps", "rows")
    }


def test_versions_follow_the_steps(trained):
    _, result, _, models = trained
    versions = models.versions()
    assert [version.step for version in versions] == [6, 12, 24, 30, 30]  # the last is what training ended with
    assert (result["publications"], result["failed_publications"]) == (5, 1)
    assert versions[0].name == versions[0].bundle  # the first one is whole
    assert {version.bundle for version in versions} == {versions[0].name}
    assert models.current().version == versions[-1].name == result["published"]
    assert versions[-1].data_time >= versions[0].data_time > 1.6e9
    assert 0 < result["publication_pause_seconds"] < 5
    assert not list((models.directory / "versions").glob(".*"))


def test_every_version_fits(trained):
    _, _, _, models = trained
    first, *_, last = models.versions()
    check(models, first, forces_schema=False)
    check(models, last, forces_schema=False)
    for version in models.versions()[1:]:
        assert check_tower(models.path(version.name), read_recorded(models.path(version.name))) < 1e-5


def test_rows_at_the_markers_and_tower_score_as_training_did(trained):
    """The last version, built from its bundle and the stream, scores the examples as a bundle of the end does."""
    config, result, _, models = trained
    last = models.versions()[-1]
    sources = lambda: DeltaFolder(config.cluster_spec().deltas.directory)  # noqa: E731
    served = build(models, Pointer(last.name, pinned=True), sources, None, threads=1, stalled_seconds=20)
    assert served.follower is None
    end = export(config, result["checkpoint"], models.directory.parent / "end", codec="fp32")
    assert check_examples(end, served.model) < 1e-5
    earlier = read_bundle(models.path(last.bundle))
    before = np.array(earlier.examples()["logits"])
    assert np.abs(served.model.logits([example_sample(earlier, served.model)])[0] - before).max() > 1e-3


def test_the_stream_is_kept_for_the_versions(trained):
    config, _, _, models = trained
    needed = floor(models)
    assert set(needed) == {0, 1}
    directory = config.cluster_spec().deltas.directory
    assert {partition: kept_from(directory, partition) for partition in needed} == needed


def test_nothing_is_left_of_what_was_exported(trained):
    _, result, _, _ = trained
    assert [path.name for path in (Path(result["run"]) / "publishing").iterdir()] == ["template.onnx"]
    assert (Path(result["checkpoint"]) / MANIFEST).exists()


def test_a_folder_that_will_not_do_is_said_before_anything_starts(tmp_path):
    (tmp_path / "models").write_text("a file where a folder should be")
    changes = {"cluster.deltas": {"directory": str(tmp_path / "deltas")}, "runs": str(tmp_path / "runs")}
    config = load(tmp_path, {**changes, "serving": {"models": str(tmp_path / "models"), "publish_steps": 2}})
    with pytest.raises(VersionError, match=r"models cannot be used as a model directory: .*; choose another"):
        train(config, local=True)


def test_serving_needs_a_stream(tmp_path):
    with pytest.raises(ValueError, match=r"serving: towers are published beside a stream .*; set cluster\.deltas"):
        load(tmp_path, {"serving": {"models": "m", "publish_steps": 2}})
    with pytest.raises(ValueError, match="needs 'publish_seconds' or 'publish_steps'"):
        load(tmp_path, {"serving": {"models": "m"}, "cluster.deltas": {}})


@pytest.mark.slow
def test_the_process_that_exports_says_what_is_wrong(trained, tmp_path):
    with pytest.raises(BundleError, match=r"the export of .*nothing failed: .*nothing holds no complete checkpoint"):
        export_apart(trained[0], tmp_path / "nothing", tmp_path / "out", version="v", template=tmp_path / "t.onnx")
