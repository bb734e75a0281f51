"""A switch to another bundle and a rollback, while requests come on time: seconds, memory, and what the requests feel.

    python benchmarks/rollback.py [--json] [--quick] [--rows N]

The model, rows and requests of serving.py. `weir serve MODELS` answers 200 candidates 20 times a second, at times that
are fixed before; the pointer moves to a second version of as many rows, and back by a rollback. Each builds a replica
of all rows while the other answers.

    switch_seconds, rollback_seconds     from the server's seeing the pointer to the first answer of the new version
    memory_before_bytes                  of the server's process, one version in it
    rollback_peak_bytes, ..._after       at most while both are there; after the old one was let go
    latency_p99_ms_{quiet,meanwhile}     of requests, from the time they were due, without and during a switch
    failed_requests
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from serving import Requests, ServerProcess, make_bundle, open_loop

from workers.serving.bundle import read_bundle
from workers.serving.client import PredictionClient
from workers.serving.publishing import register
from workers.serving.versions import Models

RATE = 20.0


def measure(folder: Path, rows: int, quiet_seconds: float) -> dict[str, Any]:
    make_bundle(folder / "bundle", rows)
    models, bundle = Models(folder / "models"), read_bundle(folder / "bundle")
    for name in ("first", "second"):
        register(models, bundle, name)
    models.publish("first")
    server = ServerProcess(models.directory, threads=1)
    try:
        url = server.address["http"]
        with PredictionClient(server.address["grpc"]) as client:
            requests = Requests(rows, 1)
            quiet = open_loop(client, requests, RATE, quiet_seconds)
            before = memory(server)
            models.publish("second")
            switch, during = followed(client, requests, url, "second")
            between = memory(server)
            models.rollback()
            rollback, also = followed(client, requests, url, "first")
            time.sleep(1.0)
            found = metrics(url)
        meanwhile = during + also
        return {
            "switch_seconds": round(switch["weir_serving_switch_seconds"], 2),
            "rollback_seconds": round(rollback["weir_serving_switch_seconds"], 2),
            "memory_before_bytes": before,
            "memory_between_bytes": between,
            "rollback_peak_bytes": int(rollback['weir_serving_switch_bytes{when="peak"}']),
            "rollback_after_bytes": memory(server),
            "latency_p99_ms_quiet": round(float(np.percentile(quiet, 99)), 1),
            "latency_p99_ms_meanwhile": round(float(np.percentile(meanwhile, 99)), 1),
            "requests_meanwhile": len(meanwhile),
            "failed_requests": int(sum(v for k, v in found.items() if "requests_total" in k and '"OK"' not in k)),
        }
    finally:
        server.stop()


def followed(
    client: PredictionClient, requests: Requests, url: str, version: str
) -> tuple[dict[str, float], list[float]]:
    """The server's metrics once a version answers, and the milliseconds of requests until then."""
    took: list[float] = []
    ends = threading.Event()

    def load() -> None:
        while not ends.is_set():
            took.extend(open_loop(client, requests, RATE, 1.0))

    thread = threading.Thread(target=load)
    thread.start()
    while json.load(urllib.request.urlopen(f"{url}/readyz", timeout=30))["version"] != version:
        time.sleep(0.2)
    time.sleep(0.2)
    found = metrics(url)
    ends.set()
    thread.join()
    return found, took


def metrics(url: str) -> dict[str, float]:
    lines = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode().splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def memory(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.address['pid']}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at most 180 s: a million rows")
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    rows = 1_000_000 if arguments.quick else arguments.rows
    with tempfile.TemporaryDirectory(prefix="weir-rollback-") as name:
        result = measure(Path(name), rows, 10.0)
    result["rows"] = rows
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}", file=sys.stdout)


if __name__ == "__main__":
    main()
