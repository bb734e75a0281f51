"""Training throughput: Weir through Ray shards against TorchRec's engine (FBGEMM's fused CPU table) in one process.

    python benchmarks/train_throughput.py [--json] [--quick] [--rows N] [--rounds N]

The work on both sides: 26 fields with 10 million keys together, Zipf 1.1 within each field, 13 dense values, batch
4096, rows of 20 floats (16 embedding, 1 first-order, 3 unused: FBGEMM wants multiples of four), row-wise AdaGrad, the
identical DeepFM tower (MLP 400x3, batch norm off) under fused Adam, two torch threads that sleep soon, as those of
`weir train` do (the peer gains by it too, or loses nothing), the same batches in the same order. The peer gets dense
row numbers and hashes nothing; Weir gets 64-bit keys and does the deduplication, hashing, transport and look-up.
Variants run in turns, a window each, and ratios are taken within a round.

    ratio_samples_per_second_vs_torchrec    staleness 1, cache off, fp32 rows and wire, against the peer's fastest dtype
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from workers.cores import THREADS_SLEEP_SOON

os.environ |= THREADS_SLEEP_SOON  # before torch is there

import torch
from torch import Tensor, nn

import ps
from ps.actor import connect_cluster, start_cluster, stop_cluster
from ps.session import close_ray, open_ray
from workers.config import Config
from workers.models.layers import MLP, MLPParams
from workers.readiness import make_ready
from workers.samples.batch import Bags, Batch
from workers.training.process import use_threads
from workers.training.progress import Reporter
from workers.training.runs import Run
from workers.training.scorer import Scorer
from workers.training.trainer import Trainer

FIELDS, DENSE, BATCH, WIDTH, DIM = 26, 13, 4096, 20, 16
ZIPF = 1.1
LEARNING_RATE = 0.01
FIELD_NAMES = tuple(f"c{f}" for f in range(FIELDS))


class Tower(nn.Module):
    """DeepFM on rows [n, FIELDS, WIDTH] and dense [n, DENSE]; the same object type on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(FIELDS * DIM + DENSE, 1, MLPParams(hidden=(400, 400, 400)))
        self.linear = nn.Linear(DENSE, 1)

    def forward(self, rows: dict[str, Tensor], dense: Tensor) -> Tensor:
        embedding, first_order = rows["row"][..., :DIM], rows["row"][..., DIM]
        pairs = 0.5 * (embedding.sum(1).square() - embedding.square().sum(1)).sum(1, keepdim=True)
        deep: Tensor = self.mlp(torch.cat((embedding.flatten(1), dense), 1))
        return first_order.sum(1, keepdim=True) + self.linear(dense) + pairs + deep


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def make_batches(num_batches: int, keys_per_field: int) -> tuple[list[np.ndarray], list[Tensor], list[Tensor]]:
    """Row numbers within the field, int64 [BATCH, FIELDS]; dense; labels."""
    rng = np.random.default_rng(1)
    weights = np.arange(1, keys_per_field + 1, dtype=np.float64) ** -ZIPF
    cdf = np.cumsum(weights) / weights.sum()
    scatter = [rng.permutation(keys_per_field) for _ in range(FIELDS)]  # popular keys lie anywhere in the table
    numbers = []
    for _ in range(num_batches):
        ranks = np.searchsorted(cdf, rng.random((BATCH, FIELDS))).clip(max=keys_per_field - 1)
        numbers.append(np.stack([scatter[f][ranks[:, f]] for f in range(FIELDS)], axis=1))
    dense = [torch.from_numpy(rng.random((BATCH, DENSE), dtype=np.float32)) for _ in range(num_batches)]
    labels = [torch.from_numpy((rng.random((BATCH, 1)) < 0.25).astype(np.float32)) for _ in range(num_batches)]
    return numbers, dense, labels


def to_keys(numbers: np.ndarray) -> np.ndarray:
    """uint64 [FIELDS * BATCH]: slot = field, id = a bijective scramble of the row number, so that keys look hashed."""
    slots = np.arange(FIELDS, dtype=np.uint64) << np.uint64(52)
    ids = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7)) & np.uint64((1 << 52) - 1)
    return (ids | slots).ravel()


class Prepared:
    """Ready-made batches in place of a data set, over and over."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def num_batches(self, **_: Any) -> None:
        return None

    def batches(self, *_: Any, **__: Any) -> Iterator[Batch]:
        while True:
            yield from self._batches


class Weir:
    """The real Trainer over a client with the given options; a window trains for some seconds."""

    def __init__(self, cluster: str, batches: list[Batch], stack: ExitStack, **options: Any) -> None:
        self.client = stack.enter_context(connect_cluster(cluster, ps.ClientOptions(**options)))
        torch.manual_seed(1)
        tower = Tower()
        config = Config.model_validate(
            {
                "name": "throughput",
                "data": {"format": "generated", "batch_size": BATCH, "prefetch_batches": 2},
                "labels": {"click": "binary"},
                "fields": {"user": "categorical"},
                "tables": {"ctr": {"segments": {"row": {"dim": WIDTH}}}},
                "model": "lr",
            }
        )
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.trainer = Trainer(
            config=config,
            client=self.client,
            scorer=Scorer(tower, self.client.spec.tables, FIELD_NAMES),
            optimizer=torch.optim.Adam(tower.parameters(), lr=1e-3, fused=True),
            loss=lambda logits, batch: bce(logits, torch.from_numpy(batch.labels)),
            metrics=lambda _: {},
            splits={},
            run=Run(directory),
            reporter=Reporter(directory, quiet=True),
            schedule=None,
        )
        self.feeds = self.trainer._feeds(Prepared(batches).batches(), training=True)
        stack.callback(self.feeds.close)

    def window(self, seconds: float) -> float:
        """Samples a second."""
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.trainer.step(next(self.feeds))
            steps += 1
        self.client.flush()
        return steps * BATCH / (time.perf_counter() - started)


class TorchRec:
    """FBGEMM's fused table with the same tower, in this process."""

    def __init__(
        self, numbers: list[np.ndarray], dense: list[Tensor], labels: list[Tensor], rows: int, dtype: str
    ) -> None:
        try:
            from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )
        except ImportError as error:
            sys.exit(f"the peer is missing ({error}); install it: pip install fbgemm-gpu-cpu==1.8.0")
        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)] * FIELDS,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=1e-8,
            weights_precision=SparseType.FP32 if dtype == "fp32" else SparseType.FP16,
            stochastic_rounding=dtype != "fp32",
        )
        self.table.init_embedding_weights_uniform(-1e-4, 1e-4)
        torch.manual_seed(1)
        self.tower = Tower()
        self.optimizer = torch.optim.Adam(self.tower.parameters(), lr=1e-3, fused=True)
        self.indices = [torch.from_numpy(np.ascontiguousarray(n.T).ravel()) for n in numbers]
        self.offsets = torch.arange(0, FIELDS * BATCH + 1, dtype=torch.int64)
        self.dense, self.labels, self.at = dense, labels, 0

    def step(self) -> None:
        i = self.at % len(self.indices)
        self.at += 1
        rows = self.table(self.indices[i], self.offsets).view(BATCH, FIELDS, WIDTH)
        loss = bce(self.tower({"row": rows}, self.dense[i]), self.labels[i])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def window(self, seconds: float) -> float:
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.step()
            steps += 1
        return steps * BATCH / (time.perf_counter() - started)


class SparseEmbedding(TorchRec):
    """nn.Embedding(sparse=True) under SparseAdam: what plain torch offers."""

    def __init__(self, numbers: list[np.ndarray], dense: list[Tensor], labels: list[Tensor], rows: int) -> None:
        self.embedding = nn.Embedding(rows * FIELDS, WIDTH, sparse=True)
        nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
        torch.manual_seed(1)
        self.tower = Tower()
        self.optimizer = torch.optim.Adam(self.tower.parameters(), lr=1e-3, fused=True)
        self.sparse = torch.optim.SparseAdam(list(self.embedding.parameters()), lr=1e-3)
        self.indices = [torch.from_numpy(n + np.arange(FIELDS) * rows) for n in numbers]
        self.dense, self.labels, self.at = dense, labels, 0

    def step(self) -> None:
        i = self.at % len(self.indices)
        self.at += 1
        loss = bce(self.tower({"row": self.embedding(self.indices[i])}, self.dense[i]), self.labels[i])
        self.optimizer.zero_grad()
        self.sparse.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.sparse.step()


def spec(rows_total: int, codec: str) -> ps.ClusterSpec:
    segment = {
        "dim": WIDTH,
        "codec": codec,
        "initializer": {"name": "uniform", "scale": 1e-4},
        "optimizer": {"name": "rowwise_adagrad", "learning_rate": LEARNING_RATE},
    }
    return ps.ClusterSpec.model_validate({"tables": {"ctr": {"segments": {"row": segment}}}, "num_buckets": 256})


def fill(cluster: str, keys_per_field: int) -> None:
    """Create every row, with zero gradients."""
    with connect_cluster(cluster, ps.ClientOptions(staleness=4)) as client:
        for start in range(0, keys_per_field, 4096):
            numbers = np.arange(start, min(start + 4096, keys_per_field))
            keys = to_keys(np.repeat(numbers[:, None], FIELDS, axis=1))
            client.push("ctr", keys, np.zeros((len(keys), WIDTH), np.float32), step=1)
            client.settle(4)
        client.flush()


class Stopwatch:
    """Seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return call


def breakdown(weir: Weir, steps: int) -> dict[str, float]:
    """Milliseconds a step by part, at staleness 0 so that nothing overlaps but reading and deduplication."""
    watch = Stopwatch()
    trainer, client = weir.trainer, weir.client
    with (
        mock.patch.object(client, "start_push", watch.timed("push_send", client.start_push)),
        mock.patch.object(client, "settle", watch.timed("push_wait", client.settle)),
    ):
        for _ in range(steps):
            feed = watch.timed("read", next)(weir.feeds)
            watch.timed("pull", feed.pull.wait)()
            watch.timed("step", trainer.step)(feed)
    keys = {table: bags.keys for table, bags in feed.batch.bags.items()}
    for _ in range(steps):
        watch.timed("dedupe", client.prepare)(keys)  # runs in the background; here by itself
    parts = {name: 1e3 * seconds / steps for name, seconds in watch.seconds.items()}
    parts["tower"] = parts.pop("step") - parts["push_send"] - parts["push_wait"]
    return {f"step_ms_{name}": round(value, 2) for name, value in parts.items()}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at most 180 s: fewer keys, shorter windows, wider spread")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a window")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds, arguments.seconds = 1_000_000, 5, 2.0
    per_field = arguments.rows // FIELDS
    use_threads(2)
    numbers, dense, labels = make_batches(48, per_field)
    batches = [
        Batch(BATCH, {"ctr": Bags(to_keys(n), FIELD_NAMES)}, d.numpy(), y.numpy())
        for n, d, y in zip(numbers, dense, labels, strict=True)
    ]
    with ExitStack() as stack:
        open_ray(num_cpus=2)
        stack.callback(close_ray)
        for codec in ("fp32", "bf16"):
            start_cluster(spec(arguments.rows, codec), shards=2, name=f"throughput-{codec}")
            stack.callback(stop_cluster, f"throughput-{codec}")
            fill(f"throughput-{codec}", per_field)
        fp32, bf16 = "throughput-fp32", "throughput-bf16"
        cache = {"rows": 200_000, "max_age_steps": 4}
        sides: dict[str, Any] = {
            "torchrec_fp32": TorchRec(numbers, dense, labels, per_field, "fp32"),
            "weir_staleness1": Weir(fp32, batches, stack, staleness=1),
            "torchrec_fp16": TorchRec(numbers, dense, labels, per_field, "fp16"),
            "weir_staleness0": Weir(fp32, batches, stack, staleness=0),
            "weir_wire_bf16": Weir(fp32, batches, stack, staleness=1, wire="bf16"),
            "weir_cache": Weir(fp32, batches, stack, staleness=8, cache=cache),
            "weir_bf16": Weir(bf16, batches, stack, staleness=1, wire="bf16"),
            "torch_sparse_adam": SparseEmbedding(numbers, dense, labels, per_field),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        make_ready()  # one process: the peer gains as much from it
        for side in sides.values():
            side.window(arguments.seconds)
        for number in range(arguments.rounds):
            for name, side in sides.items():
                speeds[name].append(side.window(arguments.seconds))
            print(f"round {number + 1}: " + "  ".join(f"{n} {s[-1]:,.0f}" for n, s in speeds.items()), file=sys.stderr)
        parts = breakdown(sides["weir_staleness0"], 20)
        hit_rate = sides["weir_cache"].client.stats()["cache_hit_rate"]
    peer = max(("torchrec_fp32", "torchrec_fp16"), key=lambda name: statistics.median(speeds[name]))
    ratios = {
        name: [ours / theirs for ours, theirs in zip(speeds["weir_staleness1"], speeds[name], strict=True)]
        for name in (peer, "torchrec_fp32")
    }
    result: dict[str, Any] = {
        "ratio_samples_per_second_vs_torchrec": round(statistics.median(ratios[peer]), 3),
        "spread": [round(min(ratios[peer]), 3), round(max(ratios[peer]), 3)],
        "ratio_samples_per_second_vs_torchrec_fp32": round(statistics.median(ratios["torchrec_fp32"]), 3),
        "peer": peer,
        **{f"samples_per_second_{name}": round(statistics.median(values)) for name, values in speeds.items()},
        "cache_hit_rate": round(hit_rate, 3),
        **parts,
        "rows": per_field * FIELDS,
        "rounds": arguments.rounds,
        "machine": machine(),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
