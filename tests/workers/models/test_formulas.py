"""Every model equals its paper's formula, written out with loops; gradients equal finite differences."""

import pytest
import torch

from tests.workers.models import formulas as paper
from workers.models import build_model

NUM_FIELDS, DIM, NUM_SAMPLES = 4, 3, 5
FIELDS = ("user", "item", "city", "hour")


def make(params, num_dense, seed=0):
    """A model in float64 with every parameter and buffer away from its initial value, and inputs for it."""
    torch.manual_seed(seed)
    model = build_model(
        params,
        num_fields=NUM_FIELDS,
        segment_dims={"linear": 1, "embedding": DIM},
        num_dense=num_dense,
        field_names=FIELDS,
    )
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    rows = {
        "linear": torch.randn(NUM_SAMPLES, NUM_FIELDS, 1, dtype=torch.float64),
        "embedding": torch.randn(NUM_SAMPLES, NUM_FIELDS, DIM, dtype=torch.float64),
    }
    return model, rows, torch.randn(NUM_SAMPLES, num_dense, dtype=torch.float64)


def assert_equals(params, num_dense, formula):
    """formula(weights, linear rows, embedding, dense) -> logit of one sample, all plain lists."""
    model, rows, dense = make(params, num_dense)
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    expected = [
        formula(weights, rows["linear"][n].tolist(), rows["embedding"][n].tolist(), dense[n].tolist())
        for n in range(NUM_SAMPLES)
    ]
    torch.testing.assert_close(
        model(rows, dense), torch.tensor(expected, dtype=torch.float64).unsqueeze(1), rtol=1e-10, atol=1e-10
    )


@pytest.fixture(params=[0, 2], ids=["sparse only", "with dense"])
def num_dense(request):
    return request.param


def test_lr(num_dense):
    assert_equals({"name": "lr"}, num_dense, lambda w, linear, _, dense: paper.linear_part(w, linear, dense))


def test_fm(num_dense):
    def formula(w, linear, embedding, dense):
        return paper.linear_part(w, linear, dense) + paper.pairwise_sum(embedding)

    assert_equals({"name": "fm"}, num_dense, formula)


def test_wide_deep(num_dense):
    def formula(w, linear, embedding, dense):
        return paper.linear_part(w, linear, dense) + paper.mlp(w, paper.flat(embedding, dense))

    assert_equals({"name": "wide_deep", "hidden": [6, 5]}, num_dense, formula)


def test_wide_deep_with_chosen_fields(num_dense):
    def formula(w, linear, embedding, dense):
        return paper.linear_part(w, linear, dense, fields=[3, 1]) + paper.mlp(w, paper.flat(embedding, dense))

    assert_equals({"name": "wide_deep", "hidden": [6], "wide": ["hour", "item"]}, num_dense, formula)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_deepfm(num_dense, batch_norm, clip):
    def formula(w, linear, embedding, dense):
        deep = paper.mlp(w, paper.flat(embedding, dense), batch_norm=batch_norm, clip=clip or float("inf"))
        return paper.linear_part(w, linear, dense) + paper.pairwise_sum(embedding) + deep

    params = {"name": "deepfm", "hidden": [6, 5], "batch_norm": batch_norm, "clip_activation": clip, "dropout": 0.5}
    assert_equals(params, num_dense, formula)


@pytest.mark.parametrize("kind", ["field_all", "field_each", "field_interaction"])
@pytest.mark.parametrize("product", ["hadamard", "inner"])
@pytest.mark.parametrize("excitation", ["relu", "sigmoid"])
def test_fibinet(num_dense, kind, product, excitation):
    def formula(w, linear, embedding, dense):
        joined = paper.bilinear(w["original.weight"], embedding, kind, product)
        joined += paper.bilinear(w["weighted.weight"], paper.senet(w, embedding, excitation), kind, product)
        return paper.linear_part(w, linear, dense) + paper.mlp(w, joined + dense)

    params = {"name": "fibinet", "hidden": [6], "reduction_ratio": 2, "bilinear": kind, "product": product}
    assert_equals({**params, "excitation": excitation}, num_dense, formula)


def test_several_tasks_share_embeddings_and_differ_in_the_rest():
    torch.manual_seed(0)
    model = build_model({"name": "fm"}, num_fields=3, segment_dims={"linear": 2, "embedding": 2}, num_tasks=2).double()
    linear, embedding = torch.randn(2, 3, 2).double(), torch.randn(2, 3, 2).double()
    h = [[0.5, -1.0], [2.0, 3.0]]  # [dim][task]
    with torch.no_grad():
        model.pairwise.weight.copy_(torch.tensor(h))
    logits = model({"linear": linear, "embedding": embedding}, torch.empty(2, 0).double())
    for n in range(2):
        for t in range(2):
            v = embedding[n].tolist()
            joint = sum(h[k][t] * v[i][k] * v[j][k] for i, j in paper.pairs(3) for k in range(2))
            expected = sum(linear[n, f, t].item() for f in range(3)) + joint
            assert logits[n, t].item() == pytest.approx(expected, rel=1e-10)


GRADIENT_CASES = [
    {"name": "lr"},
    {"name": "fm"},
    {"name": "wide_deep", "hidden": [4], "wide": ["item"]},
    {"name": "deepfm", "hidden": [4, 3], "batch_norm": True, "clip_activation": 1.0},
    {"name": "fibinet", "hidden": [4], "bilinear": "field_all"},
    {"name": "fibinet", "hidden": [4], "bilinear": "field_each", "product": "inner"},
    {"name": "fibinet", "hidden": [4], "bilinear": "field_interaction", "excitation": "sigmoid"},
]


@pytest.mark.parametrize("params", GRADIENT_CASES, ids=lambda params: " ".join(map(str, params.values())))
def test_gradients_of_rows_dense_values_and_weights_equal_finite_differences(params):
    model, rows, dense = make(params, num_dense=2)
    model.train()  # dropout is 0 here; batch norm uses the batch's own statistics
    for buffer in model.buffers():
        buffer.requires_grad_(False)
    names = list(dict(model.named_parameters()))

    def logits(linear, embedding, dense, *weights):
        segments = {"linear": linear, "embedding": embedding}
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (segments, dense))

    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    inputs = [rows["linear"], rows["embedding"], dense]
    used = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(logits, (*used, *weights), check_undefined_grad=False)
