"""A tower saved and loaded steps on to the same bits; another tower's file is refused."""

import pytest
import torch
from torch import nn

from ps.errors import CheckpointError
from workers.training.dense import FILE, load_dense, save_dense


def build(width=4):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01, fused=True)


def step(model, optimizer, seed):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_save_load_step_gives_equal_bits(tmp_path):
    model, optimizer = build()
    step(model, optimizer, 1)
    save_dense(tmp_path, model, optimizer)
    other, its_optimizer = build()
    load_dense(tmp_path, other, its_optimizer)
    for each in ((model, optimizer), (other, its_optimizer)):
        step(*each, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_refuses_another_model_and_damage(tmp_path):
    save_dense(tmp_path, *build())
    with pytest.raises(CheckpointError, match=r"another model.*0\.bias \[4\] \(here \[5\]\)"):
        load_dense(tmp_path, build(width=5)[0])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_dense(tmp_path, build()[0])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_dense(tmp_path / "nowhere", build()[0])
