"""10,000 recorded rows score the same from the trainer, from a bundle and from a server's process; and a test of that
would see one field that is hashed otherwise.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.workers.serving.processes import ServerProcess
from tests.workers.training.recipe import load as load_config
from workers import metrics
from workers.exporting import export
from workers.exporting.recorded import record
from workers.samples.schema import Schema
from workers.serving.client import PredictionClient
from workers.serving.columns import from_json
from workers.serving.loading import load
from workers.serving.request import Request
from workers.serving.scores import scores_of
from workers.training.job import predictions_of, train

NUM_ROWS, REQUEST_ROWS, NUM_JSON = 10_000, 500, 1_000
FP32_TOLERANCE = 1e-5
# Of an AUC, by the far end of the difference's interval. Click models are told apart by thousandths; int8 may take half
# of one, and fp16, whose steps are a sixteenth of int8's or less, a sixteenth of that.
AUC_BOUND = {"int8": 5e-4, "fp16": 5e-4 / 16}
LOG = {"train_rows": 20_000, "valid_rows": 500, "test_rows": NUM_ROWS, "keys": {"user": 300, "item": 100, "hour": 24}}
CODECS = ("fp32", "fp16", "int8")


class Recorded:
    """What a small DeepFM says of the rows. columns: as requests carry them. logits, labels: [n], of the trainer."""

    def __init__(self, folder):
        # Rows in fp32 in training too: what the bundles' codecs cost is to be seen by itself.
        changes = {"data.generated": LOG, "tables.main.segments.embedding.codec": "fp32"}
        config = load_config(folder, {"train.epochs": 1, **changes})
        checkpoint = train(config, local=True)["checkpoint"]
        self.columns = record(config, Schema(config), NUM_ROWS).columns
        _, predictions = predictions_of(config, Path(checkpoint), local=True)
        self.logits, self.labels = predictions.logits[:, 0], predictions.labels[:, 0]
        self.bundles = {codec: export(config, checkpoint, folder / codec, codec=codec) for codec in CODECS}
        self.models = {codec: load(bundle, threads=1).model for codec, bundle in self.bundles.items()}

    def scores_of(self, logits):
        """[n] of logits [n]."""
        return scores_of(logits[:, None], self.bundles["fp32"].manifest.labels)[:, 0]

    def requests(self, columns=None):
        for start in range(0, NUM_ROWS, REQUEST_ROWS):
            yield {name: values[start : start + REQUEST_ROWS] for name, values in (columns or self.columns).items()}

    def logits_of(self, codec, columns=None):
        """float32 [n], of the bundle by the code that serves it: hashing, replica, pooling, tower."""
        model, found = self.models[codec], []
        for asked in self.requests(columns):
            read = {name: from_json(f"candidates.{name}", asked[name]) for name in model.features.columns}
            found.append(model.logits([model.features.read(Request("", "", REQUEST_ROWS, {}, read))])[0][:, 0])
        return np.concatenate(found)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return Recorded(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def server(recorded):
    with ServerProcess(recorded.bundles["fp32"].directory) as running:
        yield running


def test_rows_in_fp32_score_as_from_the_trainer(recorded, server):
    """From the bundle, and from a server by gRPC and, some, by JSON."""
    assert len(recorded.logits) == NUM_ROWS
    trained, bundled = recorded.scores_of(recorded.logits), recorded.scores_of(recorded.logits_of("fp32"))
    assert np.ptp(trained) > 0.5  # they tell rows apart
    with PredictionClient(server.address) as client:
        served = np.concatenate([client.predict({}, columns).scores[:, 0] for columns in recorded.requests()])
    by_json = []
    for columns, _ in zip(recorded.requests(), range(NUM_JSON // REQUEST_ROWS)):
        status, _, body = server.call("/v1/predict", {"candidates": columns})
        assert status == 200, body
        by_json += json.loads(body)["scores"]["click"]
    for found in (bundled, served, np.array(by_json)):
        np.testing.assert_allclose(found, trained[: len(found)], rtol=0, atol=FP32_TOLERANCE)
    assert len(by_json) == NUM_JSON


@pytest.mark.parametrize("codec", AUC_BOUND)
def test_rows_in_few_bits_rank_as_the_trainer_does(recorded, codec):
    """The paired difference of AUC, with its interval."""
    found = recorded.logits_of(codec)
    assert np.abs(found - recorded.logits).max() > FP32_TOLERANCE  # it is another precision
    difference = metrics.auc_difference(found, recorded.logits, recorded.labels)
    assert abs(difference.mean) + difference.half_interval < AUC_BOUND[codec], difference


@pytest.mark.parametrize("field", ["user", "item", "hour", "tags"])
def test_a_field_that_is_hashed_otherwise_is_seen(recorded, field):
    """As where serving made other texts of its values than training did: neither comparison above would pass."""
    otherwise = [[f"{each} " for each in v] if isinstance(v, list) else f"{v} " for v in recorded.columns[field]]
    columns = {**recorded.columns, field: otherwise}
    scores = recorded.scores_of(recorded.logits_of("fp32", columns))
    assert np.abs(scores - recorded.scores_of(recorded.logits)).max() > 1000 * FP32_TOLERANCE
    for codec, bound in AUC_BOUND.items():
        difference = metrics.auc_difference(recorded.logits_of(codec, columns), recorded.logits, recorded.labels)
        assert difference.mean + difference.half_interval < -10 * bound
