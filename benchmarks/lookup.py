"""Keys a second of a replica process against Redis MGET, and what loading a bundle's rows takes.

    python benchmarks/lookup.py [--json] [--quick] [--rows N] [--batch N] [--rounds N] [--markdown FILE]

Rows of 16 floats in fp32, all of them known. A replica process and a redis-server (7, from the path; no persistence)
hold the same rows; one Python client asks each over TCP of the loopback for the same batches of keys, one call at a
time, and has one float32 array of the rows in the end; the first arrays are compared. Redis: MGET of redis-py with
hiredis, 8-byte keys, 64-byte values. Rounds take turns, and who begins.

    ratio_lookup_vs_redis         median keys a second of the replica / of Redis
    replica_keys_per_second  redis_keys_per_second
    {replica,redis}_cpu_ns_per_key   of client and server together: what neighbours on the machine do not change;
                                  ratio_cpu_redis_vs_replica
    inprocess_keys_per_second     Replica.pull on one thread of the process that has the rows
    load_seconds  load_cpu_seconds  replica_bytes_per_row   of the rows of a bundle, which are read, checked and indexed
    apply_rows_per_second         batches of a delta stream of 10,000 rows that exist, while nobody reads
    pull_ms_p99_while_applying    a pull of 5,000 keys beside them; `idle` beside

Needs `pip install weir-ps[bench]` and redis-server (`apt-get install redis-server`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ps.checkpoint import end_frame, start_frame, write_manifest, write_part
from ps.deltas.batches import Batch
from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, RowsFrame
from ps.keys import bucket_of
from ps.record import Record, encode_record, layout_digest
from ps.replica import Replica
from ps.replica_service import ReplicaServer
from ps.rows_client import RowsClient
from ps.serving_rows import RowEncoder, serving_spec
from ps.spec import ClusterSpec, SegmentSpec, TableSpec

DIM, NUM_BUCKETS, TABLE = 16, 1024, "user"
SPEC = ClusterSpec(
    tables={TABLE: TableSpec(segments={"embedding": SegmentSpec(dim=DIM)})}, num_buckets=NUM_BUCKETS, seed=1
)
SERVED = serving_spec(SPEC, "fp32")
FILL, APPLIED = 10_000, 10_000


def keys_of(rows: int) -> np.ndarray:
    """uint64 [rows], distinct."""
    return np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def values_of(keys: np.ndarray) -> np.ndarray:
    """float32 [n, 16] that depend on the key."""
    high = (keys >> np.uint64(40)).astype(np.float32)[:, None]
    return high / np.float32(1 << 24) + np.arange(DIM, dtype=np.float32)


def write_rows(directory: Path, rows: int) -> None:
    """A checkpoint of the serving spec, as a bundle has it."""
    keys, encoder = keys_of(rows), RowEncoder(SERVED.tables[TABLE])
    buckets, layout = bucket_of(keys, NUM_BUCKETS), encoder.image_layout
    order = np.argsort(buckets, kind="stable")
    starts = np.searchsorted(buckets[order], np.arange(NUM_BUCKETS + 1))

    def pieces() -> Iterator[bytes]:
        yield start_frame(shard=0, spec=SERVED, layouts={TABLE: layout}, expired={})
        records = 0
        for bucket in range(NUM_BUCKETS):
            held = keys[order[starts[bucket] : starts[bucket + 1]]]
            for first in range(0, len(held), 4096):
                some = held[first : first + 4096]
                yield encode_record(Record(TABLE, bucket, layout, some, encoder.encode(values_of(some))))
                records += 1
        yield end_frame(num_records=records, rows={TABLE: rows})

    part = write_part(directory, 0, 1, pieces())
    summary = {"rows": {TABLE: rows}, "num_owned_buckets": NUM_BUCKETS}
    write_manifest(directory, SERVED, [msgpack.packb({**part, **summary})])


def serve(directory: Path, batch: int) -> None:
    """The replica process: what it measures of itself, then its address; until its standard input closes."""
    replica = Replica(SPEC, SERVED)
    begun, cpu = time.perf_counter(), time.process_time()
    rows = replica.load(directory)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    keys, rng = keys_of(rows), np.random.default_rng(3)
    batches = [rng.choice(keys, batch) for _ in range(50)]
    said = {
        "load_seconds": seconds,
        "load_cpu_seconds": cpu,
        "replica_bytes_per_row": replica.memory_bytes / rows,
        "inprocess_keys_per_second": rate(lambda some: replica.pull(TABLE, some), batches, 2.0),
        **applying(replica, keys, rng),
    }
    server = ReplicaServer(replica, metrics_port=None)
    print(json.dumps({**said, "address": server.address, "pid": os.getpid()}), flush=True)
    sys.stdin.read()
    server.stop()


def applying(replica: Replica, keys: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """How fast batches go in, and what a pull waits meanwhile."""
    encoder = RowEncoder(SERVED.tables[TABLE])
    layout = layout_digest(encoder.image_layout)
    changed = [rng.choice(keys, APPLIED, replace=False) for _ in range(20)]
    changed = [some[np.argsort(bucket_of(some, NUM_BUCKETS), kind="stable")] for some in changed]
    images = [encoder.encode(values_of(some)) for some in changed]
    offset, total = 0, 0

    def apply(number: int) -> None:
        nonlocal offset, total
        rows = (changed[number % 20], images[number % 20])
        offset += 1
        frame = RowsFrame(offset, TABLE, layout, rows, NO_ROWS, NO_KEYS, NOTHING_GATHERED)
        replica.apply(Batch(offset, 1, time.time(), time.time(), APPLIED, total, None, (frame,)), 0)
        total += APPLIED

    def pulls(seconds: float) -> list[float]:
        took, deadline = [], time.perf_counter() + seconds
        while (begun := time.perf_counter()) < deadline:
            replica.pull(TABLE, asked[len(took) % 20])
            took.append(1000 * (time.perf_counter() - begun))
        return took

    asked = [rng.choice(keys, 5_000) for _ in range(20)]
    apply(0)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 2.0:
        apply(count)
        count += 1
    speed, idle, end = count * APPLIED / (time.perf_counter() - begun), pulls(2.0), threading.Event()

    def keep_applying() -> None:
        number = 0
        while not end.wait(0.05):  # 200,000 rows a second
            apply(number)
            number += 1

    thread = threading.Thread(target=keep_applying)
    thread.start()
    busy = pulls(3.0)
    end.set()
    thread.join()
    return {
        "apply_rows_per_second": speed,
        "pull_ms_p50_idle": float(np.percentile(idle, 50)),
        "pull_ms_p99_idle": float(np.percentile(idle, 99)),
        "pull_ms_p50_while_applying": float(np.percentile(busy, 50)),
        "pull_ms_p99_while_applying": float(np.percentile(busy, 99)),
    }


def rate(ask: Callable[[np.ndarray], Any], batches: list[np.ndarray], seconds: float) -> float:
    """Keys a second, one call at a time."""
    begun, count = time.perf_counter(), 0
    while (now := time.perf_counter()) - begun < seconds:
        ask(batches[count % len(batches)])
        count += 1
    return count * len(batches[0]) / (now - begun)


def cpu_seconds(server: int) -> float:
    """Of this process and a server's so far."""
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def replica_process(directory: Path, batch: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--serve", str(directory), "--batch", str(batch)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the replica process ended: see above")
        yield json.loads(line)
    finally:
        process.stdin.close()
        process.wait(20)


@contextmanager
def redis_process(folder: Path) -> Iterator[Any]:
    import redis

    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("no redis-server on the path: apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    client = redis.Redis("127.0.0.1", port)
    try:
        for attempt in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if attempt == 99:
                    raise
                time.sleep(0.1)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def fill(client: Any, rows: int) -> float:
    """Seconds to have the same rows in Redis."""
    keys, begun = keys_of(rows), time.perf_counter()
    for first in range(0, rows, FILL):
        some = keys[first : first + FILL]
        names, values = some.tobytes(), values_of(some).tobytes()
        pairs = {names[8 * i : 8 * i + 8]: values[64 * i : 64 * i + 64] for i in range(len(some))}
        client.mset(pairs)
        if sys.stderr.isatty():
            print(f"\r{first + len(some)} rows in Redis", end="", file=sys.stderr)
    return time.perf_counter() - begun


def compare(rows: int, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows", rows)
        with redis_process(folder) as redis, replica_process(folder / "rows", batch) as said:
            fill_seconds = fill(redis, rows)
            client = RowsClient(said.pop("address"))

            def from_redis(keys: np.ndarray) -> np.ndarray:
                names = keys.tobytes()
                found = redis.mget([names[at : at + 8] for at in range(0, len(names), 8)])
                return np.frombuffer(b"".join(found), np.float32).reshape(-1, DIM)

            def from_replica(keys: np.ndarray) -> np.ndarray:
                return client.lookup(TABLE, keys)

            rng, keys = np.random.default_rng(5), keys_of(rows)
            batches = [rng.choice(keys, batch) for _ in range(50)]
            for some in batches[:3]:
                wanted = values_of(some)
                np.testing.assert_array_equal(from_redis(some), wanted)
                # The batches that were applied have the values that the rows had.
                np.testing.assert_array_equal(from_replica(some), wanted)
            sides: list[tuple[str, Callable[[np.ndarray], Any]]] = [("replica", from_replica), ("redis", from_redis)]
            pids = {"replica": said.pop("pid"), "redis": redis.info("server")["process_id"]}
            found: dict[str, list[float]] = {"replica": [], "redis": []}
            costs: dict[str, list[float]] = {"replica": [], "redis": []}
            for number in range(rounds):
                for side, ask in sides if number % 2 else sides[::-1]:
                    cpu, num_keys = cpu_seconds(pids[side]), 0

                    def counted(keys: np.ndarray, ask: Callable[[np.ndarray], Any] = ask) -> None:
                        nonlocal num_keys
                        ask(keys)
                        num_keys += len(keys)

                    found[side].append(rate(counted, batches, seconds))
                    costs[side].append(1e9 * (cpu_seconds(pids[side]) - cpu) / num_keys)
            client.close()
            version, used = redis.info("server")["redis_version"], redis.info("memory")["used_memory"]
    medians = {side: statistics.median(rates) for side, rates in found.items()}
    cpu_ns = {side: statistics.median(each) for side, each in costs.items()}
    return {
        "ratio_lookup_vs_redis": medians["replica"] / medians["redis"],
        "replica_keys_per_second": medians["replica"],
        "redis_keys_per_second": medians["redis"],
        "ratio_cpu_redis_vs_replica": cpu_ns["redis"] / cpu_ns["replica"],
        "replica_cpu_ns_per_key": cpu_ns["replica"],
        "redis_cpu_ns_per_key": cpu_ns["redis"],
        **said,
        "redis_fill_seconds": fill_seconds,
        "redis_bytes_per_row": used / rows,
        "rows": rows,
        "batch": batch,
        "rounds": found,
        "redis_version": version,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}",
    }


def as_markdown(answer: dict[str, Any]) -> str:
    lines = [f"{answer['rows']:,} rows, {answer['batch']:,} keys a call; Redis {answer['redis_version']}; "]
    lines[0] += answer["machine"]
    lines += ["", "| figure | value |", "|---|---|"]
    for name, value in answer.items():
        if isinstance(value, float):
            lines.append(f"| {name} | {value:,.2f} |" if value < 1000 else f"| {name} | {value:,.0f} |")
    for side, rates in answer["rounds"].items():
        lines.append(f"| {side}, rounds | {', '.join(f'{each / 1e6:.2f} M' for each in rates)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10^6 rows, shorter rounds")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.batch)
        return
    rows = options.rows or (1_000_000 if options.quick else 10_000_000)
    answer = compare(rows, options.batch, options.rounds, 2.0 if options.quick else 5.0)
    print(as_markdown(answer), file=sys.stderr)
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(answer))
    if options.json:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
