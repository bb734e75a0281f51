"""Optimizers against torch's own, a row at a time; to the bit they are tested against numpy in test_table.py."""

import numpy as np
import pytest

from ps.spec import TableSpec
from ps.storage.table import Table

torch = pytest.importorskip("torch")

DIM, STEPS, RATE = 6, 40, 0.05
CASES = {
    "sgd": ({"name": "sgd", "l2": 0.1}, lambda w: torch.optim.SGD(w, lr=RATE, weight_decay=0.1)),
    "adagrad": (
        {"name": "adagrad", "initial_accumulator": 0.1, "eps": 1e-6, "l2": 0.1},
        lambda w: torch.optim.Adagrad(w, lr=RATE, initial_accumulator_value=0.1, eps=1e-6, weight_decay=0.1),
    ),
    "adam": ({"name": "adam", "l2": 0.1}, lambda w: torch.optim.Adam(w, lr=RATE, weight_decay=0.1)),
    "adam_sweep": (
        {"name": "adam", "l2": 0.1, "sweep": True},
        lambda w: torch.optim.Adam(w, lr=RATE, weight_decay=0.1),
    ),
}


@pytest.fixture
def table():
    """Every case as a segment of one table, so that there is one layout to compile; two FTRL coordinates beside."""
    segments = {
        name: {"dim": DIM, "optimizer": spec, "initializer": {"name": "normal", "std": 1.0}}
        for name, (spec, _) in CASES.items()
    }
    segments["ftrl"] = {"dim": 2, "optimizer": {"name": "ftrl", "l1": 1.0}}
    return Table("t", TableSpec.model_validate({"segments": segments}), seed=0, num_buckets=2)


RATES = np.full(len(CASES) + 1, RATE, np.float32)


def test_against_torch(table):
    """Dense torch and rows that are all pushed each step."""
    keys = np.arange(5, dtype=np.uint64)
    columns = table.spec.columns()
    weights = {name: torch.nn.Parameter(torch.from_numpy(table.pull(keys)[:, columns[name]].copy())) for name in CASES}
    optimizers = {name: CASES[name][1]([weight]) for name, weight in weights.items()}
    rng = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        gradients = rng.normal(size=(5, table.spec.width)).astype(np.float32)
        table.push(keys, gradients, step=step, learning_rates=RATES)
        for bucket in range(2):
            table.sweep(bucket, step=step, learning_rates=RATES)
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(gradients[:, columns[name]].copy())
            optimizers[name].step()
            rows = table.pull(keys)[:, columns[name]]
            np.testing.assert_allclose(rows, weight.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=f"{name} {step}")


def test_a_sweep_moves_rows_without_gradient_as_dense_adam_does(table):
    keys, columns = np.arange(5, dtype=np.uint64), table.spec.columns()["adam_sweep"]
    weight = torch.nn.Parameter(torch.from_numpy(table.pull(keys)[:, columns].copy()))
    optimizer = CASES["adam_sweep"][1]([weight])
    rng = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        gradients = rng.normal(size=(5, table.spec.width)).astype(np.float32)
        # Every row exists from step 1: one that is created later starts there, with its initial value.
        absent = rng.random(5) < (0.5 if step > 1 else 0)
        gradients[absent] = 0
        table.push(keys[~absent], gradients[~absent], step=step, learning_rates=RATES)
        for bucket in range(2):
            table.sweep(bucket, step=step, learning_rates=RATES)
        weight.grad = torch.from_numpy(gradients[:, columns].copy())
        optimizer.step()
        np.testing.assert_allclose(table.pull(keys)[:, columns], weight.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_lazy_adam_moves_only_pushed_rows_with_their_own_step_count(table):
    """A row pushed at steps 10, 20, 30 equals torch.optim.Adam stepped three times on that row alone."""
    key, other, columns = np.array([3], np.uint64), np.array([4], np.uint64), table.spec.columns()["adam"]
    rng = np.random.default_rng(1)
    weight = torch.nn.Parameter(torch.from_numpy(table.pull(key)[:, columns].copy()))
    optimizer = CASES["adam"][1]([weight])
    for step in range(1, 31):
        table.push(other, rng.normal(size=(1, table.spec.width)).astype(np.float32), step=step, learning_rates=RATES)
        if step % 10 == 0:
            gradients = rng.normal(size=(1, table.spec.width)).astype(np.float32)
            table.push(key, gradients, step=step, learning_rates=RATES)
            weight.grad = torch.from_numpy(gradients[:, columns].copy())
            optimizer.step()
    np.testing.assert_allclose(table.pull(key)[:, columns], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_ftrl_with_l1_keeps_rare_coordinates_at_zero(table):
    key = np.zeros(1, np.uint64)
    gradients = np.zeros((1, table.spec.width), np.float32)
    gradients[:, table.spec.columns()["ftrl"]] = [0.05, -0.5]
    for step in range(10):
        table.push(key, gradients, step=step, learning_rates=RATES)
    rare, frequent = table.pull(key)[0, table.spec.columns()["ftrl"]]
    assert rare == 0
    assert frequent > 0.05
