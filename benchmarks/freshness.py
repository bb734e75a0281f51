"""How soon a push changes predictions: from its acknowledgement at the client to an answer that knows of it.

    python benchmarks/freshness.py [--json] [--quick] [--rows N] [--seconds S] [--markdown FILE]

Real processes on this machine: two shards, and `weir serve --deltas` with a bundle that `weir export` made of them. A
client pushes at times that are fixed before, PUSHES_PER_SECOND times a second, gradients of Zipf-distributed keys, all
different within a push (rows of 17 floats: linear 1, SGD; embedding 16, AdaGrad; served in fp16). One key of every push
is a probe, whose score rises by 1 each time; another process asks for the scores of all probes over gRPC, every few
milliseconds, and notes when it saw which. So the polling is part of what is measured (poll_p50_seconds).

    freshness_{p50,p99,max}_seconds            at 10,000 rows a second, window 200 ms
    freshness_..._RATE_WINDOW                  the same at each rate (rows a second) and window (ms; 0: at once)
    pushed_rows_per_second_RATE_WINDOW         reached
    deduplication_RATE_WINDOW                  rows pushed over rows published
    megabytes_saved_RATE_WINDOW                of the stream, against a record for every pushed row
    greatest_rows_per_second                   of rates that double: pushed on time (95 %), and freshness does not grow
                                               (its slope over the run is at most zero, within two standard errors)

The client, the shards and the server share the machine's cores; nothing here is tuned for freshness but the window.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ps.deltas.reading import PartitionReader, find_partitions
from ps.keys import hash_texts, pack
from ps.options import ClientOptions
from ps.placement import LocalCluster
from workers.config import Config
from workers.exporting import export
from workers.samples.schema import Schema
from workers.serving.client import PredictionClient, encode
from workers.training.dense import save_dense
from workers.training.job import model_of
from workers.training.position import Position, write_position

PROBES = 100
PUSHES_PER_SECOND = 100
ZIPF = 1.1
POLL_SECONDS = 0.003
SLOT = 0
WIDTH = 17


def recipe(folder: Path, window_ms: int) -> Config:
    segments = {
        "linear": {"dim": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}},
        "embedding": {"dim": 16, "optimizer": {"name": "adagrad", "learning_rate": 0.01}},
    }
    directory = str(folder / f"deltas-{window_ms}")
    # All that is published is counted from its beginning in the end: some gigabytes at the greatest rates.
    deltas = {
        "directory": directory,
        "codec": "fp16",
        "window_seconds": window_ms / 1000,
        "retention_bytes": "64GiB",
    }
    return Config.model_validate(
        {
            "name": "freshness",
            "data": {"format": "generated", "generated": {"train_rows": 64, "valid_rows": 64, "test_rows": 64}},
            "labels": {"click": {"type": "real"}},
            "fields": {"user": {"type": "categorical", "slot": SLOT}},
            "tables": {"main": {"segments": segments}},
            "model": {"name": "lr"},
            "cluster": {"shards": 2, "num_buckets": 256, "deltas": deltas},
            "runs": str(folder / "runs"),
        }
    )


def probe_names() -> list[str]:
    return [f"probe-{i}" for i in range(PROBES)]


class Side:
    """Shards with rows, and a server that follows them."""

    def __init__(self, folder: Path, rows: int, window_ms: int, stack: ExitStack) -> None:
        config = recipe(folder, window_ms)
        spec = config.cluster_spec()
        cluster = stack.enter_context(LocalCluster(spec, shards=2, placement="process", name=f"window-{window_ms}"))
        self.client = stack.enter_context(cluster.connect(ClientOptions(staleness=-1)))
        self.keys = pack(SLOT, np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        self.probes = pack(SLOT, hash_texts(probe_names()))
        zeros = np.zeros((50_000, WIDTH), np.float32)
        for start in range(0, rows, 50_000):
            keys = self.keys[start : start + 50_000]
            self.client.push("main", keys, zeros[: len(keys)], step=1).wait()
        self.client.push("main", self.probes, zeros[:PROBES], step=1).wait()
        checkpoint = folder / f"checkpoint-{window_ms}"
        self.client.save(str(checkpoint))
        model = model_of(config, Schema(config))
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(1.0 if weight.ndim == 2 else 0.0)
        save_dense(checkpoint, model, torch.optim.Adam(model.parameters()))
        write_position(checkpoint, Position(step=1), 0.0, None)
        bundle = folder / f"bundle-{window_ms}"
        export(config, checkpoint, bundle, codec="fp16")
        assert spec.deltas is not None
        assert spec.deltas.directory is not None
        self.folder = Path(spec.deltas.directory)
        command = [sys.executable, "-m", "workers.cli", "serve", str(bundle), "--deltas", str(self.folder), "--json"]
        server = subprocess.Popen([*command, "--grpc-port", "0", "--http-port", "0"], stdout=subprocess.PIPE, text=True)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        assert server.stdout is not None
        self.address = json.loads(server.stdout.readline())["grpc"]
        self.pushes = np.zeros(PROBES, np.int64)  # of each probe so far

    def published(self) -> tuple[int, int]:
        """Records and bytes of all partitions."""
        records, num_bytes = 0, 0
        for folder in find_partitions(self.folder).values():
            reader = PartitionReader(folder)
            while reader.read():
                pass
            records += reader.total
            num_bytes += sum(path.stat().st_size for path in folder.glob("*.deltas"))
            reader.close()
        return records, num_bytes


def poll(address: str, pipe: Connection, ends: Any) -> None:
    """In a process of its own: for each probe when its score was first seen to be at least so high."""
    seen: list[tuple[float, int, int]] = []  # time, probe, score
    scores, polls = np.full(PROBES, -1, np.int64), []
    request = encode({}, {"user": probe_names()})
    with PredictionClient(address) as client:
        client.send(request, 30)
        pipe.send("ready")
        while not ends.is_set():
            began = time.monotonic()
            found = np.rint(client.send(request, 30).scores[:, 0]).astype(np.int64)
            at = time.monotonic()
            polls.append(at - began)
            for probe in np.flatnonzero(found > scores).tolist():
                seen += [(at, probe, score) for score in range(scores[probe] + 1, int(found[probe]) + 1)]
            scores = np.maximum(scores, found)
            if (rest := POLL_SECONDS - (at - began)) > 0:
                time.sleep(rest)
    pipe.send((seen, statistics.median(polls)))


class TooFewRowsError(Exception):
    """A push has more different rows than are popular."""


def run(side: Side, rate: int, seconds: float, wait_seconds: float) -> dict[str, Any]:
    """One rate for so long. wait_seconds: for what was pushed last to be seen."""
    each = rate // PUSHES_PER_SECOND
    generator = np.random.default_rng(rate)
    cdf = np.cumsum(np.arange(1, len(side.keys) + 1) ** -ZIPF)
    pool = [_drawn(side.keys, cdf, each - 1, generator) for _ in range(2 * PUSHES_PER_SECOND)]
    gradients = np.full((each, WIDTH), 1e-3, np.float32)
    gradients[:, 0] = 0.0
    gradients[0, 0] = -1.0  # the probe's
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    ends = context.Event()
    poller = context.Process(target=poll, args=(side.address, theirs, ends))
    poller.start()
    assert ours.recv() == "ready"
    _wait_for_scores(side)
    before = side.published()
    acknowledged: dict[tuple[int, int], float] = {}
    count, lock = int(seconds * PUSHES_PER_SECOND), threading.Lock()
    numbers = iter(range(count))
    began = time.monotonic() + 0.2

    def push() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    return
                probe = number % PROBES
                side.pushes[probe] += 1
                score = int(side.pushes[probe])
            keys = np.concatenate([side.probes[probe : probe + 1], pool[number % len(pool)]])
            time.sleep(max(0.0, began + number / PUSHES_PER_SECOND - time.monotonic()))
            side.client.push("main", keys, gradients, step=2 + number).wait()
            acknowledged[probe, score] = time.monotonic()

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    time.sleep(wait_seconds)
    ends.set()
    seen, poll_p50 = ours.recv()
    poller.join()
    when = {(probe, score): at for at, probe, score in seen}
    unseen = [key for key in acknowledged if key not in when]
    points = np.array([(at, when[key] - at) for key, at in acknowledged.items() if key in when])
    after = side.published()
    records, num_bytes = (b - a for a, b in zip(before, after, strict=True))
    pushed = count * each
    slope, error = _slope(points[:, 0], points[:, 1])
    return {
        "freshness_p50_seconds": round(float(np.percentile(points[:, 1], 50)), 4),
        "freshness_p99_seconds": round(float(np.percentile(points[:, 1], 99)), 4),
        "freshness_max_seconds": round(float(points[:, 1].max()), 4),
        "pushed_rows_per_second": round(pushed / took),
        "deduplication": round(pushed / max(records, 1), 3),
        "megabytes_saved": round((pushed - records) * num_bytes / max(records, 1) / 1e6, 2),
        "unseen": len(unseen),
        "slope": round(slope, 5),
        "slope_error": round(error, 5),
        "poll_p50_seconds": round(poll_p50, 5),
        "is_sustained": bool(not unseen and pushed / took >= 0.95 * rate and slope - 2 * error <= 0),
    }


def _drawn(
    keys: np.ndarray[Any, Any], cdf: np.ndarray[Any, Any], count: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """So many different keys, drawn by popularity."""
    drawn = np.searchsorted(cdf, generator.random(8 * count) * cdf[-1])
    places = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:count]
    if len(places) < count:
        raise TooFewRowsError
    return keys[places]


def _wait_for_scores(side: Side) -> None:
    """Until the server knows all that was pushed so far."""
    request, deadline = encode({}, {"user": probe_names()}), time.monotonic() + 120
    with PredictionClient(side.address) as client:
        while (np.rint(client.send(request, 30).scores[:, 0]) < side.pushes).any():
            assert time.monotonic() < deadline, "the server does not come to know what was pushed"
            time.sleep(0.05)


def _slope(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Of a line through means of twenty parts, for neighbours are not independent; and its standard error."""
    order = np.argsort(x)
    parts = [part for part in np.array_split(order, 20) if len(part)]
    means = np.array([(x[part].mean(), y[part].mean()) for part in parts])
    t = means[:, 0] - means[:, 0].mean()
    slope = float((t * means[:, 1]).sum() / (t * t).sum())
    residuals = means[:, 1] - means[:, 1].mean() - slope * t
    return slope, float(np.sqrt((residuals**2).sum() / max(len(parts) - 2, 1) / (t * t).sum()))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for window in arguments.windows:
        with ExitStack() as stack:
            side = Side(folder, arguments.rows, window, stack)
            show(f"window {window} ms: {arguments.rows:,} rows served")
            run(side, 10_000, min(3.0, arguments.seconds), 1.0)  # warms up
            for rate in (10_000, 100_000):
                found = run(side, rate, arguments.seconds, 2.0 + window / 500)
                show(f"  {rate:,} rows/s: {found}")
                result |= {f"{name}_{rate}_{window}": value for name, value in found.items()}
                if (rate, window) == (10_000, 200):
                    result |= {name: value for name, value in found.items() if name.startswith("freshness")}
            if window == 200:
                result |= greatest(side, arguments.sustain_from, arguments.sustain_seconds)
    return result


def greatest(side: Side, rate: int, seconds: float) -> dict[str, Any]:
    """The greatest of the rates that double from this one which is sustained, or 0; as far as there are rows for it."""
    reached: dict[str, Any] = {"greatest_rows_per_second": 0}
    while True:
        try:
            found = run(side, rate, seconds, 2.0)
        except TooFewRowsError:
            return reached | {"first_rate_not_tried": rate}
        show(f"  sustained? {rate:,} rows/s for {seconds:g} s: {found}")
        if not found["is_sustained"]:
            return reached | {"first_rate_not_sustained": rate, "pushed_then": found["pushed_rows_per_second"]}
        reached = {"greatest_rows_per_second": found["pushed_rows_per_second"], "greatest_seconds": seconds}
        reached |= {f"greatest_{name}": found[name] for name in ("freshness_p50_seconds", "freshness_p99_seconds")}
        rate *= 2


def markdown(result: dict[str, Any], windows: list[int]) -> str:
    """The table of a results file."""
    lines = [
        "| window | rows/s | p50 | p99 | greatest | rows pushed / published | saved |",
        "|---|---|---|---|---|---|---|",
    ]
    for window in windows:
        for rate in (10_000, 100_000):
            at = f"{rate}_{window}"
            p50, p99, most = (1000 * result[f"freshness_{name}_seconds_{at}"] for name in ("p50", "p99", "max"))
            shown = "at once" if window == 0 else f"{window} ms"
            lines.append(
                f"| {shown} | {result[f'pushed_rows_per_second_{at}']:,} | {p50:.0f} ms | {p99:.0f} ms | {most:.0f} ms "
                f"| {result[f'deduplication_{at}']:.2f} | {result[f'megabytes_saved_{at}']:.1f} MB |"
            )
    return "\n".join(lines) + "\n"


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at most 180 s: one window, short runs")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a rate and window")
    parser.add_argument("--sustain-seconds", type=float, default=180.0, help="of a rate that may be sustained")
    parser.add_argument("--sustain-from", type=int, default=100_000, help="rows a second, doubled while sustained")
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 50, 200, 1000], help="ms; 200 is always there")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds, arguments.sustain_seconds, arguments.windows = 200_000, 10.0, 12.0, [200]
    arguments.windows = sorted({*arguments.windows, 200})
    with tempfile.TemporaryDirectory(prefix="weir-freshness-") as name:
        result = measure(Path(name), arguments)
    result |= {"rows": arguments.rows, "seconds": arguments.seconds, "machine": machine()}
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(result, arguments.windows))
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
