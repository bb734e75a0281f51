"""From a bundle to a model that is ready: rows in memory, the tower loaded, its own examples scored once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ps.errors import BundleError
from ps.replica import Replica
from workers.serving.bundle import Bundle
from workers.serving.columns import from_json
from workers.serving.errors import MalformedError
from workers.serving.features import Features, Sample
from workers.serving.model import ROWS, Model
from workers.serving.request import Request
from workers.serving.tower import DENSE, Tower

_SLACK = 1e-5  # of scores, beside what export itself found between training and bundle


@dataclass(frozen=True)
class Loaded:
    """A model, and the replica that it reads, for whoever keeps that up with a delta stream."""

    model: Model
    replica: Replica


def load(bundle: Bundle, *, threads: int) -> Loaded:
    """Raises BundleError for a tower that does not fit, and for examples that are scored otherwise than by training;
    CheckpointError for damaged rows. threads: that compute one run of the tower.
    """
    replica = Replica(bundle.training_spec, bundle.serving_spec)
    manifest = bundle.manifest
    at = manifest.data_time if 0 < manifest.data_time < manifest.created else manifest.created
    replica.load(bundle.rows_directory, bundle.offsets, at=at)
    model = make_model(bundle, replica, threads=threads)
    check_examples(bundle, model)
    return Loaded(model, replica)


def make_model(bundle: Bundle, replica: Replica, *, threads: int) -> Model:
    """The bundle's features and tower over rows that are there. Raises BundleError."""
    manifest = bundle.manifest
    features = Features(manifest.fields)
    inputs: dict[str, tuple[int, ...]] = {
        ROWS + segment: (len(read.fields), read.dim) for segment, read in manifest.inputs.items()
    }
    if features.num_dense:
        inputs[DENSE] = (features.num_dense,)
    return Model(
        manifest.name,
        manifest.version,
        features,
        replica,
        Tower(bundle.tower_path, inputs, len(manifest.labels), threads=threads),
        manifest.serving.tables,
        {segment: read.fields for segment, read in manifest.inputs.items()},
        {name: label.score for name, label in manifest.labels.items()},
        lambda: replica.lag(time.time()).seconds,
    )


def check_examples(bundle: Bundle, model: Model) -> float:
    """Score the bundle's examples, which warms the model up too; the greatest difference from what training answered.
    Raises BundleError for one beyond what export allowed.
    """
    found = bundle.examples()
    try:
        sample, expected = _example_sample(model, found["columns"]), found["scores"]
        scores = model.score([sample])[0][0].scores
        greatest = 0.0
        for task, name in enumerate(model.scores):
            theirs = np.array(expected[name], np.float64)
            scale = max(1.0, float(np.abs(theirs).max(initial=0)))
            greatest = max(greatest, float(np.abs(scores[:, task] - theirs).max(initial=0)) / scale)
    except (MalformedError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.directory}: its examples cannot be scored: {error}; export again") from error
    if not greatest <= bundle.manifest.checks.scores + _SLACK:
        raise BundleError(
            f"{bundle.directory}: its examples' scores differ from training's by {greatest:.2g}, where export found "
            f"{bundle.manifest.checks.scores:.2g}; export again"
        )
    return greatest


def _example_sample(model: Model, columns: dict[str, list[Any]]) -> Sample:
    count = len(next(iter(columns.values())))
    read = {name: from_json(f"candidates.{name}", columns[name]) for name in model.features.columns}
    return model.features.read(Request("example", "", count, {}, read))
