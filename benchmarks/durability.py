"""What a journal costs, and how fast checkpoints, restores and recoveries are against the disk itself.

    python benchmarks/durability.py [--json] [--quick] [--folder DIR] [--parts training checkpoint ...]

training    that of train_throughput.py (its batches, tower and Trainer, staleness 1, two Ray shards), on clusters that
            differ in their durability; a window each in turns, ratios within a round. Snapshots of the rows fall where
            they fall.
    ratio_training_with_journal     mode journal, fsync never, against mode none: the process may die, not the machine
    ratio_training_with_journal_fsync_{1s,always}     the same with the disk told every second, and for each update
    ratio_cores_training_with_...   core-milliseconds a step of trainer and shards together, without over with: what
                                    remains of the speed on cores that are all busy, and little troubled by neighbours
checkpoint  a cluster of two processes saves; another one, just started, restores, and restores once more over the rows
            that it has then. The peer, one process, writes and reads as many bytes one after another, 4 MiB at a time.
            Both sides end with fsync; before reads the page cache is told to drop the files.
    ratio_checkpoint_vs_sequential_write, ratio_restore_vs_sequential_read, ratio_restore_over_vs_sequential_read
            the peer's seconds over ours
recovery    SIGKILL of one of two processes; seconds until it has acknowledged a push. And a journal alone:
    journal_megabytes_per_second    one shard in this process, pushes of 40,000 rows, from the first push to the last
                                    byte in the journal; recovery_... the same bytes read, checked and replayed
standby     a pair of processes: SIGKILL of the primary; seconds until the standby has acknowledged a push
resharding  two processes become four, and two again, while a client pushes 4,096 rows at a time: bytes that moved a
            second, and how long pushes take meanwhile, beside how long they take before
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from train_throughput import BATCH, FIELD_NAMES, FIELDS, Weir, fill, machine, make_batches, spec, to_keys

import ps
from ps import control
from ps.actor import start_cluster, stop_cluster
from ps.journal.segments import find_segments
from ps.opening import open_shard
from ps.placement import LocalCluster, journal_folder
from ps.session import close_ray, open_ray
from ps.transport import GrpcTransport
from workers.readiness import make_ready
from workers.samples.batch import Bags, Batch
from workers.training.process import use_threads

PIECE_BYTES = 4 << 20
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "journal": {"fsync": "never"},
    "journal_fsync_1s": {"fsync": 1.0},
    "journal_fsync_always": {"fsync": "always"},
}
PARTS = ["training", "checkpoint", "recovery", "standby", "resharding"]
_READY_SECONDS = 60.0


def with_journal(rows: int, folder: Path, **options: Any) -> ps.ClusterSpec:
    """The cluster of train_throughput.py, with a journal. options: of ps.Durability."""
    durability = ps.Durability(**{"mode": "journal", "directory": str(folder), **options})
    return spec(rows, "fp32").model_copy(update={"durability": durability})


def training(folder: Path, rows: int, rounds: int, seconds: float) -> dict[str, Any]:
    per_field = rows // FIELDS
    use_threads(2)
    numbers, dense, labels = make_batches(48, per_field)
    batches = [
        Batch(len(n), {"ctr": Bags(to_keys(n), FIELD_NAMES)}, d.numpy(), y.numpy())
        for n, d, y in zip(numbers, dense, labels, strict=True)
    ]
    speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
    cores: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}  # ms a step: of all, of the shards
    with ExitStack() as stack:
        open_ray(num_cpus=2)
        stack.callback(close_ray)
        sides: dict[str, Weir] = {}
        for mode, options in MODES.items():
            cluster = f"durability-{mode.replace('_', '-')}"
            chosen = with_journal(rows, folder / "training", **options) if options else spec(rows, "fp32")
            start_cluster(chosen, shards=2, name=cluster, cpus_per_shard=0.25, fresh=True, on_loopback=True)
            stack.callback(stop_cluster, cluster)
            fill(cluster, per_field)
            sides[mode] = Weir(cluster, batches, stack, staleness=1)
        make_ready()
        for side in sides.values():
            side.window(seconds)
        for number in range(rounds):
            for mode, side in sides.items():
                before, started = cores_used(side), time.perf_counter()
                speeds[mode].append(side.window(seconds))
                steps = speeds[mode][-1] * (time.perf_counter() - started) / BATCH
                trainer, shards = (1e3 * (b - a) / steps for a, b in zip(before, cores_used(side), strict=True))
                cores[mode].append((trainer + shards, shards))
                os.sync()  # what a window left to the disk is not the next one's load
            show(f"round {number + 1}: " + "  ".join(f"{mode} {s[-1]:,.0f}" for mode, s in speeds.items()))
    shutil.rmtree(folder / "training")
    result: dict[str, Any] = {}
    for mode in MODES:
        result[f"samples_per_second_{mode}"] = round(statistics.median(speeds[mode]))
        result[f"core_ms_of_shards_a_step_{mode}"] = round(statistics.median(used for _, used in cores[mode]), 1)
        if mode != "none":
            ratios = [with_it / without for with_it, without in zip(speeds[mode], speeds["none"], strict=True)]
            result |= spread(f"ratio_training_with_{mode}", ratios)
            ratios = [without / with_it for (with_it, _), (without, _) in zip(cores[mode], cores["none"], strict=True)]
            result |= spread(f"ratio_cores_training_with_{mode}", ratios)
    return result


def cores_used(side: Weir) -> tuple[float, float]:
    """Seconds of this process and of the shards."""
    transport = GrpcTransport()
    found = control.statuses(transport, side.client.routing.addresses)
    transport.close()
    ticks = 0
    for status in found:
        assert status is not None
        fields = Path(f"/proc/{status.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time(), ticks / os.sysconf("SC_CLK_TCK")


def checkpoint(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    chosen = spec(rows, "fp32")
    seconds: dict[str, list[float]] = {name: [] for name in ("checkpoint", "write", "restore", "restore_over", "read")}
    with LocalCluster(chosen, shards=2, placement="process") as cluster, cluster.connect() as client:
        fill_client(client, rows)
        for number in range(rounds + 1):  # the first one warms up
            target = folder / f"save-{number}"
            took = {"checkpoint": timed(lambda target=target: client.save(str(target)))}
            files = sorted(path for path in target.iterdir())
            num_bytes = sum(path.stat().st_size for path in files)
            took["write"] = timed(lambda num_bytes=num_bytes: write_sequentially(folder / "peer", num_bytes))
            with LocalCluster(chosen, shards=2, placement="process", name="empty") as empty, empty.connect() as other:
                for name in ("restore", "restore_over"):
                    took[name] = after_dropping(files, lambda other=other, target=target: other.restore(str(target)))
            took["read"] = after_dropping(files, lambda files=files: read_sequentially(files))
            if number:
                for name, each in took.items():
                    seconds[name].append(each)
                show("  ".join(f"{name} {each:.2f} s" for name, each in took.items()))
            shutil.rmtree(target)
            (folder / "peer").unlink()
    megabytes = num_bytes / 1e6
    ratios = {"checkpoint_vs_sequential_write": ("write", "checkpoint")}
    ratios |= {f"{name}_vs_sequential_read": ("read", name) for name in ("restore", "restore_over")}
    result: dict[str, Any] = {"checkpoint_megabytes": round(megabytes)}
    for name, (peer, own) in ratios.items():
        result |= spread(f"ratio_{name}", [p / o for p, o in zip(seconds[peer], seconds[own], strict=True)])
    for name, each in seconds.items():
        result[f"{name}_megabytes_per_second"] = round(megabytes / statistics.median(each))
    return result


def recovery(folder: Path, sizes: list[int], rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for rows in sizes:
        chosen = with_journal(rows, folder / "recovery")
        seconds = []
        running = LocalCluster(chosen, shards=2, placement="process", name="killed", fresh=True)
        with running as cluster, cluster.connect() as client:
            fill_client(client, rows)
            keys = to_keys(np.arange(64).repeat(FIELDS).reshape(64, FIELDS))
            for step in range(rounds):
                cluster.processes[0].process.kill()
                started = time.perf_counter()
                client.push("ctr", keys, np.ones((len(keys), 20), np.float32), step=step).wait()
                seconds.append(time.perf_counter() - started)
                show(f"{rows} rows: {seconds[-1]:.2f} s from kill to the first acknowledged push")
        result[f"seconds_from_kill_to_acknowledged_{rows}_rows"] = round(statistics.median(seconds), 2)
    return result | journal_alone(folder / "alone", 400_000, rounds)


def standby(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    chosen = with_journal(rows, folder / "standby", mode="replicated")
    keys, seconds = to_keys(np.arange(64).repeat(FIELDS).reshape(64, FIELDS)), []
    with LocalCluster(chosen, placement="process", name="pair", fresh=True) as cluster, cluster.connect() as client:
        fill_client(client, rows)
        for step in range(rounds):
            cluster.pairs[0].wait_until_whole()
            primary = next(each for each in cluster.processes if each.address == cluster.addresses[0])
            primary.process.kill()
            seconds.append(timed(client.push("ctr", keys, np.ones((len(keys), 20), np.float32), step=step + 2).wait))
            show(f"{rows} rows: {seconds[-1]:.2f} s from kill to the first push that the standby acknowledged")
    return spread(f"seconds_to_take_over_{rows}_rows", seconds)


def resharding(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    chosen, rng = with_journal(rows, folder / "moved"), np.random.default_rng(0)
    gradients, speeds, quiet, moving = np.ones((4096, 20), np.float32), [], [], []
    running = LocalCluster(chosen, shards=2, placement="process", name="moved", fresh=True)
    with running as cluster, cluster.connect() as client:
        fill_client(client, rows)
        stop, target = threading.Event(), [quiet]

        def push_on() -> None:
            step = 2
            while not stop.is_set():
                numbers = np.repeat(rng.integers(0, rows // FIELDS, 158)[:, None], FIELDS, axis=1)
                keys = np.unique(to_keys(numbers))[:4096]
                target[0].append(timed(client.push("ctr", keys, gradients[: len(keys)], step=step).wait))
                step += 1

        thread = threading.Thread(target=push_on)
        thread.start()
        for _ in range(rounds):
            for shards in (4, 2):
                target[0] = quiet
                time.sleep(1.0)
                target[0] = moving
                moves = list(cluster.reshard(shards))
                speeds.append(sum(move.num_bytes for move in moves) / sum(move.seconds for move in moves) / 1e6)
                held = max(move.held_seconds for move in moves)
                show(f"to {shards} shards: {speeds[-1]:.0f} MB/s, buckets held for at most {1000 * held:.0f} ms")
        stop.set()
        thread.join()
    waits = {
        f"push_seconds_{name}_p{at}": round(float(np.percentile(times, at)), 4)
        for name, times in (("before_moving", quiet), ("while_moving", moving))
        for at in (50, 99)
    }
    return spread("resharding_megabytes_per_second", speeds) | waits


def journal_alone(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """One shard in this process: bytes of journal a second, and bytes replayed a second."""
    chosen = with_journal(rows, folder, snapshot_after_bytes=1 << 40)
    gradients = np.ones((40_000, 20), np.float32)
    keys = np.random.default_rng(0).permutation(rows).astype(np.uint64)
    written, replayed = [], []
    with LocalCluster(chosen, name="one", fresh=True) as cluster, cluster.connect(ps.ClientOptions(staleness=2)) as one:
        path = journal_folder(chosen, "one", 0)
        assert path is not None
        for number in range(rounds):
            before, started = journal_bytes(path), time.perf_counter()
            for at in range(0, rows, len(gradients)):
                one.push("ctr", keys[at : at + len(gradients)], gradients, step=number)
                one.settle(2)
            one.flush()
            written.append((journal_bytes(path) - before) / (time.perf_counter() - started) / 1e6)
        copy = shutil.copytree(path, folder / "copy")
    for number in range(rounds):
        drop_from_cache(list(copy.iterdir()))
        started = time.perf_counter()
        shard = open_shard(copy)
        replayed.append(journal_bytes(copy) / (time.perf_counter() - started) / 1e6)
        assert shard.journal is not None
        shard.journal.close()
        show(f"journal {written[number]:.0f} MB/s, recovery {replayed[number]:.0f} MB/s")
    return {
        "journal_megabytes_per_second": round(statistics.median(written)),
        "recovery_megabytes_per_second": round(statistics.median(replayed)),
    }


def fill_client(client: ps.Client, rows: int) -> None:
    """Create the rows of this many keys, spread over the fields as `fill` does."""
    for start in range(0, rows // FIELDS, 4096):
        numbers = np.arange(start, min(start + 4096, rows // FIELDS))
        keys = to_keys(np.repeat(numbers[:, None], FIELDS, axis=1))
        client.push("ctr", keys, np.zeros((len(keys), 20), np.float32), step=1).wait()


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def after_dropping(files: list[Path], work: Any) -> float:
    drop_from_cache(files)
    return timed(work)


def drop_from_cache(files: list[Path]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def write_sequentially(path: Path, num_bytes: int) -> None:
    piece = np.random.default_rng(0).bytes(PIECE_BYTES)
    with path.open("wb", buffering=0) as file:
        for start in range(0, num_bytes, PIECE_BYTES):
            file.write(piece[: num_bytes - start])
        os.fsync(file.fileno())


def read_sequentially(files: list[Path]) -> None:
    room = memoryview(bytearray(PIECE_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def journal_bytes(folder: Path) -> int:
    return sum((folder / str(name)).stat().st_size for name in find_segments(folder))


def spread(name: str, values: list[float]) -> dict[str, Any]:
    return {name: round(statistics.median(values), 3), f"{name}_spread": [round(min(values), 3), round(max(values), 3)]}


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at most 180 s: fewer rows, shorter windows, wider spread")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant (default: a temporary folder)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="of training; a fifth of them, at least a million, for checkpoints"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a window of training")
    arguments = parser.parse_args()
    sizes = [10_000, 1_000_000, 4_000_000]
    if arguments.quick:
        arguments.rows, arguments.rounds, arguments.seconds, sizes = 1_000_000, 5, 2.0, [10_000, 300_000]
    parts = arguments.parts or PARTS
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="weir-durability-") as name:
        folder = Path(name)
        if "training" in parts:
            result |= training(folder, arguments.rows, arguments.rounds, arguments.seconds)
        if "checkpoint" in parts:
            result |= checkpoint(folder, max(1_000_000, arguments.rows // 5), arguments.rounds)
        if "recovery" in parts:
            result |= recovery(folder, sizes, 3 if arguments.quick else arguments.rounds)
        if "standby" in parts:
            result |= standby(folder, sizes[1], 3)
        if "resharding" in parts:
            result |= resharding(folder, sizes[1], 1 if arguments.quick else 3)
    result |= {"rows": arguments.rows, "rounds": arguments.rounds, "machine": machine()}
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
