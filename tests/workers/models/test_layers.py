"""The MLP's order, initial values and switches."""

import math

import pytest
import torch
from torch import nn

from workers.models.layers import MLP, MLPParams, flat_input, xavier_linear


def kinds(mlp):
    return [type(layer).__name__ for layer in mlp]


def test_order_is_linear_norm_activation_dropout():
    params = MLPParams(hidden=(8, 4), batch_norm=True, dropout=0.3)
    assert kinds(MLP(5, 2, params)) == 2 * ["Linear", "BatchNorm1d", "ReLU", "Dropout"] + ["Linear"]
    assert kinds(MLP(5, 1, MLPParams(hidden=(8,)))) == ["Linear", "ReLU", "Linear"]
    assert kinds(MLP(5, 1, MLPParams(hidden=()))) == ["Linear"]


def test_linear_weights_start_xavier_normal_and_biases_at_zero():
    torch.manual_seed(0)
    linear = xavier_linear(600, 400)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / (600 + 400)), rel=0.01)
    assert linear.weight.mean().abs().item() < 1e-3
    assert not linear.bias.any()


def test_near_zero_output_starts_near_zero():
    torch.manual_seed(0)
    mlp = MLP(50, 1, MLPParams(hidden=(300,), output_std=1e-4))
    assert mlp[-1].weight.std().item() == pytest.approx(1e-4, rel=0.2)
    assert mlp(torch.randn(64, 50)).abs().max().item() < 0.02


def test_activations_are_clipped_and_pass_no_gradient_beyond():
    mlp = MLP(1, 1, MLPParams(hidden=(1,), clip_activation=2.0))
    with torch.no_grad():
        mlp[0].weight.fill_(1.0)
        mlp[-1].weight.fill_(1.0)
    x = torch.tensor([[-1.0], [1.5], [7.0]], requires_grad=True)
    out = mlp(x)
    out.sum().backward()
    assert out.flatten().tolist() == [0.0, 1.5, 2.0]
    assert x.grad.flatten().tolist() == [0.0, 1.0, 0.0]


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    mlp = MLP(4, 1, MLPParams(hidden=(256,), dropout=0.5))
    x = torch.randn(3, 4)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


def test_without_dense_values_the_mlp_reads_the_rows_in_place():
    embedding = torch.randn(2, 3, 4)
    assert flat_input(embedding, torch.empty(2, 0)).data_ptr() == embedding.data_ptr()
    assert flat_input(embedding, torch.ones(2, 1)).shape == (2, 13)


def test_the_mlp_works_in_place_without_breaking_gradients():
    torch.manual_seed(0)
    mlp = MLP(4, 1, MLPParams(hidden=(6, 5), batch_norm=True, dropout=0.0))
    plain = nn.Sequential(*[nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in mlp])
    x = torch.randn(8, 4)
    gradients = []
    for network in (mlp, plain):
        network.zero_grad()
        network(x).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
