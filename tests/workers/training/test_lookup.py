"""Rows spread over samples and fields, and gradients back, against loops."""

import numpy as np
import pytest
import torch

from ps.spec import SegmentSpec, TableSpec
from workers.samples.batch import Bags, Batch
from workers.training.lookup import RowLeaves

TABLES = {
    "a": TableSpec(segments={"linear": SegmentSpec(dim=1), "embedding": SegmentSpec(dim=3)}),
    "b": TableSpec(segments={"embedding": SegmentSpec(dim=3)}),
}
ORDER = ("x", "tags", "y")  # x and y live in table a, tags in table b


def make(bags):
    keys = {table: np.unique(each.keys, return_inverse=True) for table, each in bags.items()}
    rng = np.random.default_rng(0)
    rows = {t: rng.standard_normal((len(u), TABLES[t].width)).astype(np.float32) for t, (u, _) in keys.items()}
    inverse = {table: positions.astype(np.int64) for table, (_, positions) in keys.items()}
    batch = Batch(2, bags, np.zeros((2, 0), np.float32), np.zeros((2, 1), np.float32))
    return batch, rows, inverse


def test_jagged_bags_fields_in_config_order_and_gradients():
    bags = {
        "a": Bags(np.array([5, 9, 9, 5], np.uint64), ("x", "y")),
        "b": Bags(np.array([7, 8, 7, 7], np.uint64), ("tags",), np.array([0, 3, 4], np.int64), (True,)),
    }
    batch, rows, inverse = make(bags)
    leaves = RowLeaves(batch, rows, inverse, TABLES, ORDER, train=True)
    a, b = rows["a"][inverse["a"]].reshape(2, 2, 4), rows["b"][inverse["b"]]
    assert list(leaves.segments["linear"].shape) == [2, 2, 1]
    np.testing.assert_array_equal(leaves.segments["linear"].detach(), a[:, :, :1])
    pooled = np.stack([b[:3].mean(0), b[3]])
    np.testing.assert_allclose(
        leaves.segments["embedding"].detach(), np.stack([a[:, 0, 1:], pooled, a[:, 1, 1:]], 1), rtol=1e-6
    )
    weights = torch.arange(18, dtype=torch.float32).view(2, 3, 3)
    (leaves.segments["embedding"] * weights).sum().backward()
    expected_a, expected_b = np.zeros_like(rows["a"]), np.zeros_like(rows["b"])
    w = weights.numpy()
    for sample, field, column in ((0, 0, 0), (0, 1, 2), (1, 0, 0), (1, 1, 2)):
        expected_a[inverse["a"][2 * sample + field], 1:] += w[sample, column]
    for position, sample in enumerate((0, 0, 0, 1)):
        expected_b[inverse["b"][position]] += w[sample, 1] / (3 if sample == 0 else 1)
    gradients = leaves.gradients()
    np.testing.assert_allclose(gradients["a"], expected_a, rtol=1e-6)  # the unused linear segment has zeros
    np.testing.assert_allclose(gradients["b"], expected_b, rtol=1e-6)


@pytest.mark.parametrize("mean", [True, False])
def test_an_empty_bag_is_a_row_of_zeros(mean):
    bags = {"b": Bags(np.array([7, 8], np.uint64), ("tags",), np.array([0, 0, 2], np.int64), (mean,))}
    batch, rows, inverse = make(bags)
    segment = RowLeaves(batch, rows, inverse, TABLES, ("tags",), train=False).segments["embedding"]
    assert not segment[0].any()
    total = rows["b"].sum(0)
    np.testing.assert_allclose(segment[1, 0], total / 2 if mean else total, rtol=1e-6)
