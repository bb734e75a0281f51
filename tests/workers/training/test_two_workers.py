"""Two workers of batch B follow one worker of batch 2B at staleness 0.

Real processes: two workers joined by gloo, two shards over gRPC. Every optimizer has a table of its own.
"""

import numpy as np
import pytest

import ps
from ps.placement import LocalCluster
from tests.workers.training.ranks import Ranks, train_alone
from tests.workers.training.recipe import load

STEPS = 50
BATCH = 64


def table(linear, embedding):
    segments = {
        "linear": {"dim": 1, "optimizer": linear},
        "embedding": {"dim": 4, "initializer": {"name": "normal", "std": 0.05}, "optimizer": embedding},
    }
    return {"segments": segments}


SWEEP = {"name": "adam", "sweep": True, "l2": 0.01, "learning_rate": 0.01}
RECIPE = {
    "fields.user": {"type": "categorical", "table": "adaptive"},
    "fields.item": {"type": "categorical", "table": "plain"},
    "fields.hour": {"type": "categorical", "table": "swept"},
    "fields.tags": {"type": "multi", "pooling": "mean", "table": "lazy"},
    "tables": {
        "adaptive": table(
            {"name": "ftrl", "learning_rate": 0.1, "l1": 0.001}, {"name": "adagrad", "learning_rate": 0.1}
        ),
        "plain": table("sgd", {"name": "sgd", "learning_rate": 1.0}),
        "swept": table(SWEEP, SWEEP),
        "lazy": table({"name": "adam", "learning_rate": 0.01}, {"name": "rowwise_adagrad", "learning_rate": 0.1}),
    },
    "data.drop_last": True,
    "data.generated.train_rows": 2000,  # 15 whole batches of 2B an epoch, and a part that is left out
    "data.generated.test_rows": 4 * 2 * BATCH + 1,  # the second worker has a batch more to evaluate
    "train.epochs": 99,
    "train.max_steps": STEPS,
}
CASES = {
    "plain": {},
    "batch norm over the global batch": {"model.batch_norm": True},
    "thresholds on the global gradient": {"cluster.client": {"drop_below": 2e-3, "drop_above": 4e-2}},
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    started = Ranks(2, tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of two shard processes."""
    config = recipe(tmp_path_factory.mktemp("spec"), BATCH)
    with LocalCluster(config.cluster_spec(), shards=2, placement="process") as cluster:
        yield cluster.addresses[0]


def recipe(path, batch_size, changes=None):
    model = {"name": "deepfm", "hidden": [16], "batch_norm": False, "dropout": 0.0}
    sizes = {"data.batch_size": batch_size, "runs": str(path / f"runs-{batch_size}")}
    return load(path, {**RECIPE, "model": model, **sizes, **(changes or {})})


def clear(address):
    with ps.connect(address) as client:
        for name in client.spec.tables:
            client.clear(name)


@pytest.mark.parametrize("case", CASES)
def test_losses_follow(ranks, address, tmp_path, case):
    clear(address)
    alone = train_alone(recipe(tmp_path, 2 * BATCH, CASES[case]), address)
    clear(address)
    both = ranks.train(recipe(tmp_path, BATCH, CASES[case]), address)
    assert len(alone.losses) == STEPS
    assert {worker.samples for worker in both} == {alone.samples} == {STEPS * 2 * BATCH}
    mean = np.mean([worker.losses for worker in both], axis=0)
    np.testing.assert_allclose(mean, alone.losses, rtol=1e-4)
    assert both[0].losses != both[1].losses  # a half of the batch each
    assert np.mean(alone.losses[-10:]) < np.mean(alone.losses[:10]) - 0.01
    assert both[0].metrics == both[1].metrics  # of everybody's predictions
    # A bias before a batch norm has no gradient but rounding, which Adam scales up; running means follow it late.
    assert both[0].metrics == pytest.approx(alone.metrics, rel=2e-2 if "norm" in case else 1e-3)
    for counted in ("dropped_below", "dropped_above"):  # every rank is told of the whole step
        dropped = [worker.stats[counted] for worker in (alone, *both)]
        assert dropped == [alone.stats[counted]] * 3
        assert (dropped[0] > 100) == ("thresholds" in case), dropped
