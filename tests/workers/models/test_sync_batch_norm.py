"""SyncBatchNorm in two real processes (gloo) equals nn.BatchNorm1d on the batch put together."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from workers.models import SyncBatchNorm, build_model, convert_batch_norm

WIDTH, STEPS = 5, 3
SIZES = {"even": (4, 4), "uneven": (7, 2), "one empty": (5, 0), "one each": (1, 1)}
MOMENTUM = {"even": 0.1, "uneven": None, "one empty": 0.3, "one each": 0.1}
AFFINE = {"even": True, "uneven": True, "one empty": True, "one each": False}
DTYPE = {"even": torch.float32, "uneven": torch.float64, "one empty": torch.float64, "one each": torch.float64}
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}


def batches(case):
    """Per step the global input (far from zero) and the gradient of its output."""
    generator = torch.Generator().manual_seed(len(case))
    total = sum(SIZES[case])
    noise = torch.randn(STEPS, 2, total, WIDTH, generator=generator, dtype=DTYPE[case])
    return [(50.0 + x, gradient) for x, gradient in noise]


def norm(case, kind):
    layer = kind(WIDTH, momentum=MOMENTUM[case], affine=AFFINE[case], dtype=DTYPE[case])
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2.0, WIDTH))
            layer.bias.copy_(torch.linspace(-1.0, 1.0, WIDTH))
    return layer


def train(layer, inputs_and_gradients):
    """What a layer makes of some steps: outputs, input gradients, summed parameter gradients, running statistics."""
    outputs, gradients = [], []
    for x, gradient in inputs_and_gradients:
        x = x.clone().requires_grad_()
        y = layer(x)
        y.backward(gradient)
        outputs.append(y.detach())
        gradients.append(x.grad)
    return {
        "outputs": outputs,
        "gradients": gradients,
        "parameters": [parameter.grad for parameter in layer.parameters()],
        "buffers": list(layer.buffers()),
    }


def process(rank, folder):
    """One of the two processes: its slice of each case; the results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for case, sizes in SIZES.items():
        mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        results[case] = train(norm(case, SyncBatchNorm), [(x[mine], g[mine]) for x, g in batches(case)])
    layer = norm("even", SyncBatchNorm)
    try:
        layer(torch.randn(1 - rank, WIDTH))
    except ValueError as error:
        results["one sample"] = str(error)
    layer.eval()
    results["evaluation"] = layer(torch.full((2, WIDTH), 3.0)).detach()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", SIZES)
def test_two_processes_equal_one_with_the_whole_batch(results, case):
    oracle = norm(case, nn.BatchNorm1d).double()
    expected = train(oracle, [(x.double(), gradient.double()) for x, gradient in batches(case)])
    first, second = (result[case] for result in results)
    for part in ("outputs", "gradients"):
        for step in range(STEPS):
            got = torch.cat((first[part][step], second[part][step]))
            torch.testing.assert_close(got.double(), expected[part][step], **TOLERANCE[DTYPE[case]])
    for own, other, whole in zip(first["parameters"], second["parameters"], expected["parameters"], strict=True):
        torch.testing.assert_close((own + other).double(), whole, **TOLERANCE[DTYPE[case]])
    for own, other, whole in zip(first["buffers"], second["buffers"], expected["buffers"], strict=True):
        assert torch.equal(own, other)
        torch.testing.assert_close(own.double(), whole.double(), **TOLERANCE[DTYPE[case]])


def test_a_global_batch_of_one_sample_is_refused(results):
    assert all("more than one sample" in result["one sample"] for result in results)


def test_evaluation_uses_the_running_statistics(results):
    layer = norm("even", nn.BatchNorm1d).eval()
    expected = layer(torch.full((2, WIDTH), 3.0)).detach()
    assert all(torch.equal(result["evaluation"], expected) for result in results)


def test_one_process_is_batch_norm_to_the_last_bit():
    ours, theirs = (train(norm("even", kind), batches("even")) for kind in (SyncBatchNorm, nn.BatchNorm1d))
    for part, values in ours.items():
        assert all(torch.equal(a, b) for a, b in zip(values, theirs[part], strict=True)), part


def test_conversion_keeps_parameters_mode_and_names():
    params = {"name": "deepfm", "hidden": [4, 3], "batch_norm": True}
    model = build_model(params, num_fields=2, segment_dims={"linear": 1, "embedding": 2}).eval()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    converted = convert_batch_norm(model)
    norms = [module for module in converted.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [type(layer) for layer in norms] == [SyncBatchNorm, SyncBatchNorm]
    assert not any(layer.training for layer in norms)
    assert {name: tensor.data_ptr() for name, tensor in converted.state_dict().items()} == before
