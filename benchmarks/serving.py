"""Predictions for 200 candidates: what the server adds to its tower, how many it answers, how long it takes under load.

    python benchmarks/serving.py [--json] [--quick] [--rows N] [--seconds S] [--markdown FILE]

The model: 26 categorical fields, 10 of the user and context (shared) and 16 of the candidate, rows of 17 floats in fp32
(embedding 16, linear 1), DeepFM with an MLP 400x3, 10 million rows in one replica, in one process. The values of a
request are drawn uniformly over the field's own (the worst for caches); they travel as packed columns of texts, unless
a name says otherwise: `ids` are hashed by the client.

    ratio_latency_p50_vs_tower      one request in flight, inside the server, from the request's bytes to the reply's,
                                    over a run of the bare ONNX tower on the same rows: same threads, in turns
    ratio_cpu_vs_tower_...          the same in CPU time of the thread that does it, which neighbours change less
    latency_p99_ms                  open loop at 70 % of greatest_requests_per_second: requests leave at times that are
                                    fixed before, and count from there whatever the ones before them do; the median of
                                    five rounds, each at 70 % of what the seconds before it allowed
    greatest_requests_per_second    closed loop, 16 in flight
    client_p50_ms_{grpc,json}       one in flight, over the loopback, with the client's own packing
    core_seconds_per_1000_candidates   of the server's process, under that load
    int8_...                        onnxruntime.quantization.quantize_dynamic of the same tower, alone

The client shares the machine's cores with the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import onnx
import torch

from ps import checkpoint
from ps.keys import bucket_of, hash_packed, pack
from ps.record import Record, encode_record
from ps.serving_rows import RowEncoder, serving_spec, unserved_table
from ps.spec import ClusterSpec, TableSpec
from workers.config import Categorical
from workers.exporting.tower import OPSET, TowerInputs, export_tower, logits_of
from workers.models.registry import build_model
from workers.readiness import make_ready
from workers.serving.bundle import described_files, read_bundle, write_manifest
from workers.serving.client import PredictionClient, encode
from workers.serving.columns import decimal_texts
from workers.serving.loading import load
from workers.serving.manifest import (
    EXAMPLES_FILE,
    ROWS_FOLDER,
    TOWER_FILE,
    Checks,
    Manifest,
    ServedLabel,
    ServedTable,
    TowerInput,
)
from workers.serving.options import ServeOptions
from workers.serving.request import read_message
from workers.serving.server import PredictionServer
from workers.serving.tower import Tower

SHARED, CANDIDATE, NUM_CANDIDATES, DIM, BUCKETS = 10, 16, 200, 16, 256
FIELDS = [f"user_{f}" for f in range(SHARED)] + [f"item_{f}" for f in range(CANDIDATE)]
SEGMENTS = {"linear": {"dim": 1}, "embedding": {"dim": DIM}}
MODEL = {"name": "deepfm", "hidden": [400, 400, 400]}
IN_FLIGHT, LOAD, LOAD_ROUNDS = 16, 0.7, 5


def make_bundle(directory: Path, num_rows: int) -> None:
    """Rows of the values "0" .. of every field, random; a tower with its initial weights; one example."""
    rng, spec = np.random.default_rng(0), TableSpec.model_validate({"segments": SEGMENTS})
    training = ClusterSpec(tables={"main": unserved_table(spec)}, num_buckets=BUCKETS)
    serving = serving_spec(training, "fp32")
    hashes = hash_packed(*decimal_texts(np.arange(num_rows // len(FIELDS))))
    keys = np.concatenate([pack(slot, hashes) for slot in range(len(FIELDS))])
    buckets = bucket_of(keys, BUCKETS)
    order = np.argsort(buckets, kind="stable")
    borders = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
    encoder = RowEncoder(serving.tables["main"])

    def pieces() -> Any:
        yield checkpoint.start_frame(shard=0, spec=serving, layouts={"main": encoder.image_layout}, expired={})
        for bucket in range(BUCKETS):
            own = keys[order[borders[bucket] : borders[bucket + 1]]]
            values = (0.05 * rng.standard_normal((len(own), DIM + 1))).astype(np.float32)
            yield encode_record(Record("main", bucket, encoder.image_layout, own, encoder.encode(values)))
        yield checkpoint.end_frame(num_records=BUCKETS, rows={"main": len(keys)})

    rows = directory / ROWS_FOLDER
    part = checkpoint.write_part(rows, 0, 1, pieces())
    summary = {"rows": {"main": len(keys)}, "num_owned_buckets": BUCKETS}
    checkpoint.write_manifest(rows, serving, [msgpack.packb({**part, **summary})])
    torch.manual_seed(0)
    model = build_model(MODEL, num_fields=len(FIELDS), segment_dims={"linear": 1, "embedding": DIM})
    inputs = TowerInputs(
        {"linear": np.zeros((4, len(FIELDS), 1), np.float32), "embedding": np.zeros((4, len(FIELDS), DIM), np.float32)},
        np.zeros((4, 0), np.float32),
    )
    tower = export_tower(model, inputs, directory / TOWER_FILE)
    # Of values that have no row: they read as initial values, zeros.
    examples = {
        "split": "none",
        "columns": dict.fromkeys(FIELDS, ["new"] * 4),
        "logits": logits_of(model, inputs).tolist(),
    }
    (directory / EXAMPLES_FILE).write_text(json.dumps(examples))
    write_manifest(
        directory,
        Manifest(
            name="benchmark",
            version="1",
            step=0,
            data_time=0.0,
            created=time.time(),
            codec="fp32",
            tables={"main": ServedTable(rows=len(keys), bytes_per_row=8 + encoder.image_bytes)},
            spec=training,
            serving=serving,
            fields={name: Categorical(column=name, table="main", slot=slot) for slot, name in enumerate(FIELDS)},
            inputs={name: TowerInput(fields=tuple(FIELDS), dim=each["dim"]) for name, each in SEGMENTS.items()},
            labels={"click": ServedLabel(type="binary")},
            model=MODEL,
            opset=OPSET,
            offsets=None,
            files=described_files(directory),
            checks=Checks(tower=tower, rows={"main": {}}, scores=0.0, saturated=0),
        ),
    )


class Requests:
    """Requests that never repeat."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._rng, self._values = np.random.default_rng(seed), num_rows // len(FIELDS)

    def columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shared and candidate columns, of numbers."""
        shared = {name: int(self._rng.integers(self._values)) for name in FIELDS[:SHARED]}
        return shared, {name: self._rng.integers(0, self._values, NUM_CANDIDATES) for name in FIELDS[SHARED:]}

    def packed(self, form: str = "texts") -> bytes:
        """A PredictRequest. form: texts, integers, or ids that the client has hashed."""
        shared, candidates = self.columns()
        if form == "integers":
            return encode(shared, candidates)
        if form == "ids":
            hashed = {name: hash_packed(*decimal_texts(each)) for name, each in candidates.items()}
            return encode({name: str(each) for name, each in shared.items()}, hashed)
        texts = {name: list(map(str, each.tolist())) for name, each in candidates.items()}
        return encode({name: str(each) for name, each in shared.items()}, texts)

    def json(self) -> bytes:
        shared, candidates = self.columns()
        texts = {name: list(map(str, each.tolist())) for name, each in candidates.items()}
        return json.dumps({"shared": {k: str(v) for k, v in shared.items()}, "candidates": texts}).encode()


def quantize(tower: Path, target: Path) -> None:
    """Weights as int8, activations by their range in each run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(tower)
    del model.graph.value_info[:]  # quantizing turns weights round, and shapes that were inferred before stay
    # Dense values that there are none of have weights without elements, whose range is nonsense.
    empty = {each.name for each in model.graph.initializer if 0 in each.dims}
    left = [node.name for node in model.graph.node if empty & set(node.input)]
    left += [f"{name}_MatMul" for name in left]  # as quantizing names what it makes of a Gemm
    quantize_dynamic(model, target, weight_type=QuantType.QInt8, nodes_to_exclude=left)


def milliseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def cpu_milliseconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Of wall time, and of CPU time of this thread, which does all of it where the tower has one thread."""
    started = time.thread_time()
    wall = milliseconds(run)
    return wall, 1e3 * (time.thread_time() - started)


def inside(bundle: Path, num_rows: int, threads: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """The server in this process, one request in flight, in turns with the bare tower."""
    began = time.perf_counter()
    loaded = load(read_bundle(bundle), threads=threads)
    results: dict[str, Any] = {"load_seconds": round(time.perf_counter() - began, 1), "rows": loaded.replica.num_rows}
    server = PredictionServer(loaded.model, ServeOptions(grpc_port=0, http_port=0, threads=threads))
    make_ready()  # as `weir serve` does; the tower gains as much
    model, requests = loaded.model, Requests(num_rows, 1)
    sample = model.features.read(read_message(requests.packed(), NUM_CANDIDATES))
    rows, unknown = model.feeds([sample])
    assert unknown == [0], "the benchmark's requests name rows that exist"
    feeds = {f"rows_{segment}": values.copy() for segment, values in rows.items()}
    quantize(bundle / TOWER_FILE, scratch / "int8.onnx")
    int8 = Tower(scratch / "int8.onnx", model.tower.inputs, 1, threads=threads)
    took: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 20):
        forms = {form: requests.packed(form) for form in ("texts", "integers", "ids")}
        runs: dict[str, Callable[[], Any]] = {
            form: lambda data=data: server.grpc.predict(data, 10.0)  # type: ignore[misc]
            for form, data in forms.items()
        }
        runs |= {"tower": lambda: model.tower.run(feeds), "int8": lambda: int8.run(feeds)}
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            took.setdefault(name, []).append(cpu_milliseconds(runs[name]))
    server.stop()
    wall = {name: [pair[0] for pair in each[20:]] for name, each in took.items()}
    p50 = {name: statistics.median(each) for name, each in wall.items()}
    cpu = {name: statistics.median(pair[1] for pair in each[20:]) for name, each in took.items()}
    low, high = np.percentile([a / b for a, b in zip(wall["texts"], wall["tower"], strict=True)], [25, 75])
    results |= {
        "ratio_latency_p50_vs_tower": round(p50["texts"] / p50["tower"], 3),
        "ratio_latency_quartiles": [round(float(low), 3), round(float(high), 3)],
        "ratio_latency_p50_vs_tower_integers": round(p50["integers"] / p50["tower"], 3),
        "ratio_latency_p50_vs_tower_ids": round(p50["ids"] / p50["tower"], 3),
        **{f"ratio_cpu_vs_tower_{form}": round(cpu[form] / cpu["tower"], 3) for form in forms},
        **{f"p50_ms_{name}": round(each, 3) for name, each in p50.items()},
        "ratio_int8_tower_latency": round(p50["int8"] / p50["tower"], 3),
        "int8_greatest_logit_difference": float(np.abs(int8.run(feeds) - model.tower.run(feeds)).max()),
    }
    return results


class ServerProcess:
    """`weir serve` as users start it."""

    def __init__(self, bundle: Path, threads: int) -> None:
        command = [sys.executable, "-m", "workers.cli", "serve", str(bundle), "--json", "--threads", str(threads)]
        self._process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = json.loads(self._process.stdout.readline())

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0


def closed_loop(client: PredictionClient, requests: Requests, seconds: float) -> float:
    """Requests a second with IN_FLIGHT at once."""
    bodies = [requests.packed() for _ in range(256)]
    until, done = time.perf_counter() + seconds, [0] * IN_FLIGHT

    def run(number: int) -> None:
        at = number
        while time.perf_counter() < until:
            client.send(bodies[at % len(bodies)], 30)
            done[number] += 1
            at += IN_FLIGHT

    threads = [threading.Thread(target=run, args=(number,)) for number in range(IN_FLIGHT)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def open_loop(client: PredictionClient, requests: Requests, rate: float, seconds: float) -> list[float]:
    """Milliseconds from each request's scheduled time to its answer; arrivals of a Poisson process, fixed before."""
    bodies = [requests.packed() for _ in range(256)]
    gaps = np.random.default_rng(5).exponential(1 / rate, int(rate * seconds))
    schedule, took = np.cumsum(gaps), []
    waiting = threading.Semaphore(0)
    started = time.perf_counter() + 0.05
    for number, at in enumerate(schedule.tolist()):
        time.sleep(max(0.0, started + at - time.perf_counter()))

        def done(_: Any, at: float = at) -> None:
            took.append(1e3 * (time.perf_counter() - started - at))
            waiting.release()

        call = client.start(bodies[number % len(bodies)], 30)
        call.add_done_callback(done)
    for _ in schedule:
        waiting.acquire()
    return took


def outside(bundle: Path, num_rows: int, threads: int, seconds: float) -> dict[str, Any]:
    """A server process, and this one as its client."""
    server, requests = ServerProcess(bundle, threads), Requests(num_rows, 2)
    try:
        with PredictionClient(server.address["grpc"]) as client:
            for _ in range(50):
                client.send(requests.packed())
            grpc_ms = [milliseconds(lambda: client.send(requests.packed())) for _ in range(200)]
            host, port = server.address["http"].removeprefix("http://").split(":")
            connection = http.client.HTTPConnection(host, int(port))

            def post() -> None:
                connection.request("POST", "/v1/predict", requests.json())
                answer = connection.getresponse()
                assert answer.status == 200
                json.loads(answer.read())

            json_ms = [milliseconds(post) for _ in range(220)][20:]
            greatest, loaded, cpu = [], [], 0.0
            for _ in range(LOAD_ROUNDS):  # the rate of each is that of the same minute
                greatest.append(closed_loop(client, requests, seconds / 2))
                before = server.cpu_seconds()
                loaded.append(open_loop(client, requests, LOAD * greatest[-1], seconds))
                cpu += server.cpu_seconds() - before
    finally:
        server.stop()
    p99 = [float(np.percentile(each, 99)) for each in loaded]
    requests_sent = sum(map(len, loaded))
    return {
        "client_p50_ms_grpc": round(statistics.median(grpc_ms), 2),
        "client_p50_ms_json": round(statistics.median(json_ms), 2),
        "greatest_requests_per_second": round(statistics.median(greatest), 1),
        "load_requests_per_second": round(LOAD * statistics.median(greatest), 1),
        "latency_p50_ms": round(statistics.median(float(np.median(each)) for each in loaded), 2),
        "latency_p99_ms": round(statistics.median(p99), 2),
        "latency_p99_ms_spread": [round(min(p99), 2), round(max(p99), 2)],
        "latency_max_ms": round(max(map(max, loaded)), 2),
        "requests": requests_sent,
        "core_seconds_per_1000_candidates": round(cpu / (requests_sent * NUM_CANDIDATES / 1000), 5),
    }


def markdown(results: dict[str, Any]) -> str:
    """The dated table."""
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in results.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=1, help="of one run of the tower")
    parser.add_argument("--rounds", type=int, default=300, help="of the requests inside the server")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--bundle", type=Path, help="keep the bundle there, and use it where it is")
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--quick", action="store_true", help="1 million rows, 6 seconds of each load")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds = 1_000_000, 6.0
    scratch = Path(tempfile.mkdtemp(prefix="weir-serving-"))
    try:
        bundle = arguments.bundle or scratch / "bundle"
        if not bundle.exists():
            bundle.mkdir(parents=True)
            make_bundle(bundle, arguments.rows)
        results = {"threads": arguments.threads, "cores": os.cpu_count(), "machine": platform.processor()}
        results |= inside(bundle, arguments.rows, arguments.threads, arguments.rounds, scratch)
        results |= outside(bundle, arguments.rows, arguments.threads, arguments.seconds)
    finally:
        shutil.rmtree(scratch)
    print(markdown(results), file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("# benchmarks/serving.py\n\n" + markdown(results))
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
