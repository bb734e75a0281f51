"""Towers out of torch: every model, compared with itself at several batch sizes; what differs is refused."""

import copy
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ps.errors import BundleError, RequestError
from workers.exporting.tower import TOLERANCE, TowerInputs, difference, export_tower, logits_of, onnx_logits
from workers.models import build_model, convert_batch_norm
from workers.models.linear import LR

FIELDS = ("user", "item", "hour", "tags")
MODELS = [
    ({"name": "lr"}, 0, 1),
    ({"name": "fm"}, 2, 2),
    ({"name": "wide_deep", "hidden": [8], "wide": ["item", "tags"]}, 0, 1),
    ({"name": "deepfm", "hidden": [8, 8], "batch_norm": True, "dropout": 0.3, "clip_activation": 1.0}, 2, 2),
    ({"name": "fibinet", "hidden": [8], "bilinear": "field_interaction"}, 2, 1),
    ({"name": "fibinet", "hidden": [8], "bilinear": "field_each", "product": "inner"}, 0, 2),
]


def built(params, num_dense, num_tasks):
    """A model in training, its batch norms with statistics of their own."""
    torch.manual_seed(3)
    model = build_model(
        params,
        num_fields=len(FIELDS),
        segment_dims={"linear": num_tasks, "embedding": 3},
        num_dense=num_dense,
        num_tasks=num_tasks,
        field_names=FIELDS,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return model.train()


def inputs_of(num_dense, num_tasks, samples=50):
    draw = np.random.default_rng(samples)

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32)

    rows = {"linear": normal(samples, len(FIELDS), num_tasks), "embedding": normal(samples, len(FIELDS), 3)}
    return TowerInputs(rows, normal(samples, num_dense))


@pytest.mark.parametrize(("params", "num_dense", "num_tasks"), MODELS)
def test_every_model_comes_out_as_it_is(tmp_path, params, num_dense, num_tasks):
    model = built(params, num_dense, num_tasks)
    before = copy.deepcopy(model.state_dict())
    path, torch_path = tmp_path / "tower.onnx", tmp_path / "tower.pt2"
    checks = export_tower(model, inputs_of(num_dense, num_tasks), path, torch_path=torch_path)
    assert checks.samples == 50
    assert checks.onnx <= TOLERANCE
    assert checks.torch_export is not None
    assert checks.torch_export <= TOLERANCE
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    program = torch.export.load(torch_path).module()
    for samples in (1, 2, 7, 200):
        inputs = inputs_of(num_dense, num_tasks, samples).read_by(model)
        expected = logits_of(model, inputs)
        assert expected.shape == (samples, num_tasks)
        assert difference(onnx_logits(path, inputs), expected) <= TOLERANCE
        found = program(*map(torch.from_numpy, inputs.named().values())).detach().numpy()
        assert difference(found, expected) <= TOLERANCE
    graph = onnx.load(path).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        **{f"rows_{name}": ["n", 4, rows.shape[2]] for name, rows in inputs.rows.items()},
        **({"dense": ["n", num_dense]} if num_dense else {}),
        "logits": ["n", num_tasks],
    }


def test_no_file_of_this_machine_is_named(tmp_path):
    path, torch_path = tmp_path / "tower.onnx", tmp_path / "tower.pt2"
    export_tower(built({"name": "fm"}, 0, 1), inputs_of(0, 1), path, torch_path=torch_path)
    for written in (path, torch_path):
        assert b".py" not in written.read_bytes()


def test_a_model_of_several_workers_comes_out_of_its_wrapping(tmp_path):
    params = {"name": "deepfm", "hidden": [8], "batch_norm": True}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = built(params, 2, 1)
        wrapped = DistributedDataParallel(convert_batch_norm(copy.deepcopy(plain)))
        inputs = inputs_of(2, 1)
        export_tower(wrapped, inputs, tmp_path / "tower.onnx")
        np.testing.assert_array_equal(logits_of(wrapped, inputs), logits_of(plain, inputs))
        assert difference(onnx_logits(tmp_path / "tower.onnx", inputs), logits_of(plain, inputs)) <= TOLERANCE
        assert wrapped.training
    finally:
        dist.destroy_process_group()


class _Different(LR):
    """Another function in the exporter's eyes."""

    def forward(self, rows, dense):
        return super().forward(rows, dense) + (0.01 if torch.compiler.is_exporting() else 0.0)


def test_a_tower_that_differs_is_refused_and_removed(tmp_path):
    right = built({"name": "lr"}, 0, 1)
    wrong = copy.deepcopy(right)
    wrong.__class__ = _Different
    path = tmp_path / "tower.onnx"
    with pytest.raises(BundleError, match=r"tower\.onnx: the ONNX tower differs .* on 50 recorded samples"):
        export_tower(wrong, inputs_of(0, 1), path, torch_path=tmp_path / "tower.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_tower_that_answers_nan_is_refused(tmp_path):
    model = built({"name": "lr"}, 2, 1)
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(BundleError, match="NaN or infinity"):
        export_tower(model, inputs_of(2, 1), tmp_path / "tower.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RequestError, match=rf"export needs {missing}: pip install 'weir-ps\[export\]'"):
        export_tower(built({"name": "lr"}, 0, 1), inputs_of(0, 1), tmp_path / "tower.onnx")
