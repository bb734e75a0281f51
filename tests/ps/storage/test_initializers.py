"""Initial values: moments, bounds and independence; to the bit they are tested in test_table.py."""

import numpy as np
import pytest

from ps.spec import TableSpec
from ps.storage.table import Table

KEYS = np.arange(20_000, dtype=np.uint64)


@pytest.fixture(scope="module")
def table():
    """One segment a case: a layout compiles once."""
    cases = {
        "uniform": ({"name": "uniform", "scale": 0.5}, "fp32"),
        "normal": ({"name": "normal", "std": 0.01}, "fp32"),
        "fp16": ({"name": "normal", "std": 1e-4}, "fp16"),
        "bf16": ({"name": "normal", "std": 1e-4}, "bf16"),
        "int8": ({"name": "normal", "std": 1e-4}, "int8"),
    }
    segments = {
        name: {"dim": 8, "initializer": initializer, "codec": codec, "optimizer": "sgd"}
        for name, (initializer, codec) in cases.items()
    }
    return Table("t", TableSpec.model_validate({"segments": segments}), seed=0, num_buckets=1)


def values_of(table, segment):
    return table.pull(KEYS)[:, table.spec.columns()[segment]].astype(np.float64)


def test_uniform_has_the_moments_of_a_uniform(table):
    values = values_of(table, "uniform")
    assert values.min() >= -0.5
    assert values.max() < 0.5
    assert abs(values.mean()) < 5 * 0.5 / np.sqrt(3 * values.size)
    assert values.var() == pytest.approx(0.25 / 3, rel=0.01)


def test_normal_has_the_moments_of_a_normal(table):
    values = values_of(table, "normal")
    assert abs(values.mean()) < 5 * 0.01 / np.sqrt(values.size)
    assert values.std() == pytest.approx(0.01, rel=0.01)
    assert np.abs(values).max() <= 0.06
    kurtosis = (values**4).mean() / values.var() ** 2
    assert kurtosis == pytest.approx(3 - 6 / 5 / 12, abs=0.05)  # twelve uniforms: a little less than 3


def test_elements_and_neighbouring_keys_are_uncorrelated(table):
    values = values_of(table, "normal")
    between = np.corrcoef(values.T) - np.eye(8)
    assert np.abs(between).max() < 5 / np.sqrt(len(values))
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 5 / np.sqrt(values.size)


def test_initial_values_are_codes(table):
    """An initial value is what the row will hold: creating the row, by a push of zeros, does not change it."""
    before = table.pull(KEYS)
    table.push(KEYS, np.zeros_like(before), step=1, learning_rates=np.ones(5, np.float32))
    assert np.array_equal(table.pull(KEYS), before)
    assert all(len(np.unique(before[:, columns])) > 100 for columns in table.spec.columns().values())
    table.clear()
