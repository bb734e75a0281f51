"""The loss against loops with math.log; masks, weights and kinds of labels."""

import math

import pytest
import torch

from workers.models import loss

NAN = math.nan


def cross_entropy(logit, label):
    p = 1 / (1 + math.exp(-logit))
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def column(values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_binary_is_the_mean_over_labels_that_are_there():
    logits, labels = [0.3, -1.2, 2.0, 0.1], [1.0, 0.0, NAN, 1.0]
    expected = sum(cross_entropy(logits[n], labels[n]) for n in (0, 1, 3)) / 3
    assert loss(column(logits), column(labels), ["binary"]).item() == pytest.approx(expected, rel=1e-12)


def test_sample_weights_scale_without_renormalising():
    logits, labels, weights = [0.3, -1.2, 2.0], [1.0, 0.0, 0.0], [2.0, 0.5, 0.0]
    expected = sum(w * cross_entropy(x, y) for x, y, w in zip(logits, labels, weights, strict=True)) / 3
    got = loss(column(logits), column(labels), ["binary"], sample_weights=torch.tensor(weights))
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_weight_labels_weigh_positives():
    logits, labels = [0.3, -1.2, 2.0, 0.4], [3.5, 0.0, NAN, 0.5]
    expected = (3.5 * cross_entropy(0.3, 1) + cross_entropy(-1.2, 0) + 0.5 * cross_entropy(0.4, 1)) / 3
    assert loss(column(logits), column(labels), ["weight"]).item() == pytest.approx(expected, rel=1e-12)


def test_real_labels_take_the_squared_error():
    assert loss(column([1.0, 2.0, 5.0]), column([0.5, NAN, 7.0]), ["real"]).item() == (0.25 + 4.0) / 2


def test_tasks_are_summed_with_their_weights():
    logits = torch.tensor([[0.3, 1.0], [-1.2, 2.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0], [0.0, NAN]], dtype=torch.float64)
    expected = 0.5 * (cross_entropy(0.3, 1) + cross_entropy(-1.2, 0)) / 2 + 4.0 * 1.0
    got = loss(logits, labels, ["binary", "real"], task_weights=[0.5, 4.0])
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_without_labels_gives_zero_and_zero_gradients():
    logits = column([0.3, -1.0]).requires_grad_()
    total = loss(logits, column([NAN, NAN]), ["binary"])
    total.backward()
    assert total.item() == 0.0
    assert not logits.grad.any()


def test_masked_labels_send_no_gradient_and_large_logits_stay_finite():
    logits = torch.tensor([[400.0], [-400.0], [1.0]], requires_grad=True)
    total = loss(logits, torch.tensor([[0.0], [1.0], [NAN]]), ["binary"])
    total.backward()
    assert total.item() == pytest.approx(400.0)
    assert logits.grad.flatten().tolist() == pytest.approx([0.5, -0.5, 0.0])
