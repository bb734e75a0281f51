"""Every file that Weir reads back, and how: what the fuzz test of files damages.

One more kind of file is one more Reader in READERS: who writes a right one, which file is damaged, who reads it.
"""

import atexit
import json
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack
import numpy as np
import torch

from ps import chain, checkpoint
from ps.delta_options import DeltaOptions
from ps.deltas.alive import NAME as ALIVE
from ps.deltas.alive import read_beat
from ps.deltas.partition import Partition
from ps.deltas.reading import PartitionReader, partition_folder
from ps.deltas.retention import keep, kept_from
from ps.journal.lock import Lock
from ps.journal.recovery import recover
from ps.journal.snapshot import POINTER
from ps.opening import open_shard
from ps.routing import Routing
from ps.security import SecurityOptions, TlsOptions, client_identity, read_token
from ps.shard import Shard
from ps.spec import ClusterSpec
from ps.storage.layout import layout_of
from ps.wire import weir_pb2 as pb
from ps.work import WorkThread
from tests.ps.certificates import Authority
from tests.ps.driving import NUM_BUCKETS, TWO_TABLES, call, keys_in, message, push
from tests.workers.training.recipe import load, write
from workers.config import load_config
from workers.inspect import inspect
from workers.planning.figures import read_figures
from workers.samples.open import open_splits
from workers.training.dense import FILE as DENSE
from workers.training.dense import load_dense, save_dense
from workers.training.position import POSITION_FILE, Position, read_position, write_position
from workers.training.runs import open_run
from workers.training.schedule import Schedule

KEYS = keys_in(range(NUM_BUCKETS), each=3)


@dataclass(frozen=True)
class Reader:
    """make(folder): writes a right one, and whatever it needs beside it. file: which one is damaged, a glob. read:
    all that is done with it. seal: puts checksums right, so that damage is found by what stands behind them.
    """

    make: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]
    seal: Callable[[bytes], bytes] = bytes


def scratch():
    """A folder for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="weir-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# Checkpoints.


def placed(work, spec=TWO_TABLES):
    """The thread of work, of a shard that owns all buckets."""
    routing = Routing.initial(NUM_BUCKETS, ["here:1"]).to_message()
    work.assign(pb.AssignRequest(cluster_spec=spec.model_dump_json().encode(), routing=routing)).result(120)
    return work


def updated(work, sequences=(1, 2)):
    for sequence in sequences:
        calls = [push(KEYS, table="user"), push(KEYS, table="item", width=2), call("sweep", table="item")]
        work.execute(message(*calls, sequence=sequence, step=sequence)).result(30)
    work.execute(message(call("delete", keys=KEYS[:5]), sequence=max(sequences) + 1)).result(30)
    return work


@cache
def running():
    """A shard with rows, to save from and to restore to."""
    return updated(placed(WorkThread(Shard())))


def make_checkpoint(folder):
    source = running_checkpoint()
    shutil.copytree(source, folder, dirs_exist_ok=True)


@cache
def running_checkpoint():

    folder = scratch()
    part = running().save(str(folder)).manifest
    checkpoint.write_manifest(folder, TWO_TABLES, [part], {"step": 2})
    return folder


def make_increment(folder):
    shutil.copytree(increment(), folder, dirs_exist_ok=True)


@cache
def increment():
    """An increment of the checkpoint in its folder `below`."""
    folder, work = scratch(), updated(placed(WorkThread(Shard())))

    def part(where, cut, since=0):
        work.save(str(where), cut, begin=True, since=since, tracks=True)
        return work.save(str(where), cut).manifest

    below = checkpoint.write_manifest(folder / "below", TWO_TABLES, [part(folder / "below", 1)], id=1)
    calls = [push(KEYS[6:9], table="user"), call("delete", table="item", keys=KEYS[9:20])]
    for sequence, each in enumerate(calls, start=8):
        work.execute(message(each, sequence=sequence)).result(30)
    checkpoint.write_manifest(folder, TWO_TABLES, [part(folder, 2, since=1)], {"step": 2}, id=2, base=below)
    work.close()
    return folder


def with_length(folder):
    """The manifest says how long the damaged file of rows is, as if that were right."""
    path = folder / checkpoint.MANIFEST
    body = json.loads(path.read_text())
    body["parts"][0]["bytes"] = (folder / body["parts"][0]["file"]).stat().st_size
    path.write_bytes(sealed_json(json.dumps(body).encode()))


def read_rows(folder):
    with_length(folder)
    chain.find_row(folder, "user", int(KEYS[7]))
    chain.verify(folder)
    inspect(folder, slots=True)
    running().restore(str(folder))


def sealed_json(data):
    """JSON with its crc32 over all else."""
    try:
        body = json.loads(data)
        body.pop("crc32", None)
        return json.dumps({**body, "crc32": zlib.crc32(json.dumps(body, sort_keys=True).encode())}).encode()
    except (ValueError, AttributeError, RecursionError):
        return data


def sealed_frames(data):
    """A file of frames (ps/record.py) with right checksums of headers and bodies, as far as its lengths go."""
    out, at = bytearray(data), 8
    while at + 8 <= len(out):
        (length,) = struct.unpack_from("<I", out, at)
        if at + 8 + length > len(out):
            break
        packed = bytes(out[at + 8 : at + 8 + length])
        struct.pack_into("<I", out, at + 4, zlib.crc32(packed))
        at += 8 + length
        try:
            size = body_bytes(msgpack.unpackb(packed))
        except Exception:  # whatever msgpack raises on damage; the reader will say more
            break
        if isinstance(size, int) and 0 <= size <= len(out) - at - 4:
            struct.pack_into("<I", out, at + size, zlib.crc32(bytes(out[at : at + size])))
            at += size + 4
        elif size is not None:
            break
    return bytes(out)


def body_bytes(header):
    """Of a frame of rows, of a checkpoint or of a journal; None: it has no body."""
    if header["kind"] != "rows":
        return None
    if "count" in header:
        return header["count"] * (8 + header["image_bytes"])
    rows = sum(count * (8 + size) for count, size in (header["full"], header["early"]))
    return rows + 8 * header["removed"] + 12 * header["gathered"]


# Journals.


@cache
def journal():
    """A folder with two segments and a snapshot, of a shard that has ended."""
    folder = scratch() / "journal"
    durability = {"mode": "journal", "directory": str(folder.parent), "snapshot_after_bytes": 4096}
    spec = ClusterSpec.model_validate({**TWO_TABLES.model_dump(), "durability": durability})
    for start in (1, 101):
        work = placed(WorkThread(open_shard(folder)), spec)
        updated(work, (start, start + 1))
        deadline = time.monotonic() + 20
        while not (folder / POINTER).exists():  # so many bytes make a snapshot
            assert time.monotonic() < deadline
            time.sleep(0.02)
        updated(work, (start + 10,))
        work.close()
    return folder


def make_journal(folder):
    shutil.copytree(journal(), folder, dirs_exist_ok=True)


def read_journal(folder):
    lock = Lock(folder, takes_over=False)
    try:
        found = recover(folder, lock, now=0.0)
    except BaseException:
        lock.close()
        raise
    if found is not None:
        found.journal.close()


# Delta streams.


@cache
def deltas():
    """A directory with the partition of a shard that has ended: a whole beginning, updates, tombstones, a marker."""
    folder = scratch()
    spec = ClusterSpec.model_validate({**TWO_TABLES.model_dump(), "deltas": {"directory": str(folder)}})
    work = updated(placed(WorkThread(Shard()), spec))
    work.mark(pb.MarkRequest(version="v1", step=2, data_time=1.5, routing_epoch=1)).result(30)
    work.close()
    return folder


def make_deltas(folder):
    shutil.copytree(deltas(), folder, dirs_exist_ok=True)
    keep(folder, "v1", {0: 1})


def read_deltas(folder):
    reader = PartitionReader(partition_folder(folder, 0))
    while reader.read():
        pass
    reader.close()
    kept_from(folder, 0)
    layouts = {name: layout_of(table).text() for name, table in TWO_TABLES.tables.items()}
    Partition(partition_folder(folder, 0), 0, DeltaOptions(directory=str(folder)), layouts).close()


# Runs.


def tower():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def make_dense(folder):
    model, optimizer = tower()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    save_dense(folder, model, optimizer)


def make_position(folder):
    write_position(folder, Position(1, 2, 3, 4, 5.0, {"main": 6.0}), 7.5, Schedule(True, 2).state())


def make_run(folder):
    """A run that was begun, with one complete checkpoint."""
    run, _ = open_run(folder, "small", load(folder).model_dump(mode="json"), resume=True)
    make_checkpoint(Path(run.checkpoints) / "step-2")


def read_run(folder):
    config = load_config(folder / "recipe.yaml").model_dump(mode="json")
    (checkpoint_folder,) = (folder / "small/0001/checkpoints").iterdir()
    open_run(folder, "small", config, resume=True)
    inspect(checkpoint_folder)


# What people write.


def make_data(suffix, text):
    def make(folder):
        (folder / f"train.{suffix}").write_text(text)

    return make


def read_data(form, **parts):
    def read(folder):
        data = {"data.format": form, "data.generated": None, "data.root": str(folder), "data.batch_size": 4}
        config = load(folder, {**data, "data.train": f"train.{form}", "group": None, **parts})
        for batch in open_splits(config)["train"].batches(drop_last=False):
            assert np.isfinite(batch.dense).all()

    return read


CSV = "click,user,price\n" + "".join(f'{i % 2},"u{i}, x",{i}.5\n' for i in range(9))
TWO_FIELDS = {"fields": {"user": "categorical", "price": {"type": "numeric"}}}


def make_identity(folder):
    ours = Authority(folder)
    ours.sign("client")
    (folder / "token").write_text("correct-horse")
    (folder / "token").chmod(0o600)


def read_identity(folder):
    options = TlsOptions(
        authority=str(folder / "authority.pem"),
        client_certificate=str(folder / "client.pem"),
        client_key=str(folder / "client.key"),
    )
    client_identity(SecurityOptions(tls=options))


READERS = {
    "manifest": Reader(make_checkpoint, checkpoint.MANIFEST, checkpoint.read_manifest, sealed_json),
    "rows": Reader(make_checkpoint, "rows-*.weir", read_rows, sealed_frames),
    "increment": Reader(make_increment, checkpoint.MANIFEST, checkpoint.read_manifest, sealed_json),
    "increment's rows": Reader(make_increment, "rows-*.weir", read_rows, sealed_frames),
    "journal": Reader(make_journal, "journal-*.weir", read_journal, sealed_frames),
    "acknowledged": Reader(make_journal, "ACKNOWLEDGED", read_journal),
    "pointer": Reader(make_journal, POINTER, read_journal, sealed_json),
    "snapshot": Reader(make_journal, "snapshot-*.weir", read_journal, sealed_frames),
    "lock": Reader(make_journal, "LOCK", read_journal),
    "deltas": Reader(make_deltas, "partition-0/*.deltas", read_deltas, sealed_frames),
    "sign of life": Reader(
        make_deltas, f"partition-0/{ALIVE}", lambda folder: read_beat(partition_folder(folder, 0)), sealed_json
    ),
    "kept deltas": Reader(make_deltas, "kept/v1.json", read_deltas, sealed_json),
    "position": Reader(make_position, POSITION_FILE, read_position),
    "dense": Reader(make_dense, DENSE, lambda folder: load_dense(folder, *tower())),
    "run": Reader(make_run, "small/0001/config.json", read_run),
    "recipe": Reader(write, "recipe.yaml", lambda folder: load_config(folder / "recipe.yaml")),
    "figures": Reader(
        lambda folder: shutil.copy("workers/planning/figures.json", folder),
        "figures.json",
        lambda folder: read_figures(folder / "figures.json"),
    ),
    "csv": Reader(make_data("csv", CSV), "train.csv", read_data("csv", **TWO_FIELDS)),
    "token": Reader(
        make_identity, "token", lambda folder: read_token(SecurityOptions(token_file=str(folder / "token")))
    ),
    "authority": Reader(make_identity, "authority.pem", read_identity),
    "key": Reader(make_identity, "client.key", read_identity),
}
