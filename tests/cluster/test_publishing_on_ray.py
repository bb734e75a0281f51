"""Two workers and two shards on Ray that publish while they train: versions are what training had at their steps."""

import json

import numpy as np
import pytest

from ps.chain import live_records
from ps.checkpoint import read_manifest
from ps.delta_folder import DeltaFolder
from ps.serving_rows import RowEncoder
from tests.cluster.conftest import run_here
from tests.workers.training.recipe import write
from workers.config import load_config
from workers.exporting import export
from workers.serving.building import build
from workers.serving.loading import check_examples
from workers.serving.versions import Models, Pointer
from workers.training import group
from workers.training.publisher import Publisher

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EVERY, STEPS = 4, 16


def worker_that_waits(settings):
    """As a worker, but a version is written before the next step: else so short a training ends meanwhile."""
    is_due = Publisher.is_due

    def due_when_written(self, step):
        self._join()
        return is_due(self, step)

    Publisher.is_due = due_when_written
    group._worker(settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def trained(ray_session, folder):
    import ray

    file = write(
        folder,
        {
            "cluster.placement": "ray",
            "cluster.cpus_per_shard": 0.25,
            "cluster.workers": {"count": 2, "cpus": 0.25},
            "cluster.deltas": {"directory": str(folder / "deltas"), "window_seconds": 30.0},
            "serving": {"models": str(folder / "models"), "publish_steps": EVERY, "keep": 100, "examples": 8},
            "checkpoint": {"every_steps": EVERY, "keep": 100},
            "train.max_steps": STEPS,
            "train.epochs": 4,
            "event_time": "event_time",
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        patch.setattr(group, "_worker", worker_that_waits)
        done = run_here("train", file, "--json")
    assert done.exit_code == 0, done.stderr
    return load_config(file), json.loads(done.stdout), Models(folder / "models")


def test_versions_follow_the_steps(trained):
    _, result, models = trained
    versions = models.versions()
    assert [version.step for version in versions] == [4, 8, 12, 16, 16]  # the last is what training ended with
    assert [version.is_dense for version in versions] == [False, True, True, True, True]
    assert (result["publications"], result["failed_publications"]) == (5, 0)
    assert models.current().version == result["published"] == versions[-1].name
    assert all(set(version.markers) == {0, 1} for version in versions[1:])
    times = [version.data_time for version in versions]
    assert times == sorted(times)
    assert times[0] > 1.6e9


@pytest.mark.parametrize("number", [1, 4])
def test_a_version_is_what_training_had(trained, folder, number):
    """Its tower on the rows at its markers: the scores and the very rows of the checkpoint of its step."""
    config, _, models = trained
    version = models.versions()[number]
    sources = lambda: DeltaFolder(config.cluster_spec().deltas.directory)  # noqa: E731
    served = build(models, Pointer(version.name, pinned=True), sources, None, threads=1, stalled_seconds=20)
    (checkpoint,) = folder.glob(f"runs/small/0001/checkpoints/step-{version.step}")
    bundle = export(config, checkpoint, folder / f"end-{number}", codec="fp32")
    assert check_examples(bundle, served.model) < 1e-5
    encoders, rows = {name: RowEncoder(spec) for name, spec in bundle.serving_spec.tables.items()}, 0
    for record, _ in live_records(read_manifest(bundle.rows_directory)):
        found, num_unknown = served.replica.pull(record.table, record.keys)
        assert num_unknown == 0
        np.testing.assert_array_equal(found, encoders[record.table].decode(record.images))
        rows += len(record.keys)
    assert served.replica.num_rows == rows > 100
