"""From a bundle to a model that is ready: rows in memory, the tower loaded, its own examples scored once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ps.errors import BundleError
from ps.replica import Replica
from workers.serving.bundle import Bundle
from workers.serving.bundled_rows import load_rows
from workers.serving.columns import from_json
from workers.serving.errors import MalformedError
from workers.serving.features import Features, Sample
from workers.serving.model import ROWS, Model
from workers.serving.request import Request
from workers.serving.tower import DENSE, Tower

TOLERANCE = 1e-4  # of logits, beside what export found between training and bundle: this may be another machine


@dataclass(frozen=True)
class Loaded:
    """A model, and the replica that it reads, for whoever keeps that up with a delta stream."""

    model: Model
    replica: Replica


def load(bundle: Bundle, *, threads: int) -> Loaded:
    """Raises BundleError for a tower that does not fit, and for examples that are scored otherwise than by training;
    CheckpointError for damaged rows. threads: that compute one run of the tower.
    """
    replica = load_rows(bundle)
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
        manifest.labels,
        lambda: replica.age(time.time()),
    )


def check_examples(bundle: Bundle, model: Model) -> float:
    """Score the bundle's examples, which warms the model up too; how much a logit differs at most from what training
    answered, divided by the greatest logit that export met. Raises BundleError for more than export found.
    """
    found = bundle.examples()
    try:
        sample = example_sample(bundle, model)
        expected = np.array(found["logits"], np.float64)
        difference = np.abs(model.logits([sample])[0] - expected).max() / bundle.manifest.checks.tower.logit_scale
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{bundle.directory}: its examples cannot be scored: {error}; export again") from error
    said = bundle.manifest.checks.scores
    if not difference <= said + TOLERANCE:  # NaN, too
        raise BundleError(
            f"{bundle.directory}: its examples' logits differ from training's by {difference:.2g} of the greatest, "
            f"where export found {said:.2g}; export again"
        )
    return float(difference)


def example_sample(bundle: Bundle, model: Model) -> Sample:
    """The bundle's examples as one request. Raises BundleError."""
    columns: Any = bundle.examples().get("columns")
    try:
        count = len(next(iter(columns.values())))
        read = {name: from_json(f"candidates.{name}", columns[name]) for name in model.features.columns}
        return model.features.read(Request("example", "", count, {}, read))
    except (MalformedError, AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.directory}: its examples are no requests: {error!r}; export again") from error
