"""Checkpoints that stand on others: a full one, and increments, each of what has changed since the one before it.

Read newest first. A key that an increment names is settled, its row there or gone; so is a bucket that a checkpoint
holds wholly. What is older counts no more. So every row comes once, and 8 bytes are kept for each key of increments.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ps.checkpoint import Manifest, Part, Wanted, read_manifest
from ps.errors import CheckpointError
from ps.keys import bucket_of, slot_of
from ps.record import Record
from ps.storage.table import Table
from ps.types import Floats, Keys


def live_records(
    manifest: Manifest, wanted: Wanted = lambda table, bucket: True, *, reads_all: bool = False, first: int = 0
) -> Iterator[tuple[Record, int]]:
    """The rows that a checkpoint stands for, each once, with what was applied at its mark; and the shard that wrote
    them. reads_all: read, and so check, what is settled too. first: the shard whose files come first.
    """
    spec = manifest.spec
    settled_keys: dict[tuple[str, int], Keys] = {}  # ascending
    settled = {name: np.zeros(spec.num_buckets, np.bool_) for name in spec.tables}

    def is_wanted(table: str, bucket: int) -> bool:
        if table not in settled or bucket >= spec.num_buckets:
            raise CheckpointError(f"{manifest.directory} has rows of table {table!r}, bucket {bucket}: no such there")
        return reads_all or (wanted(table, bucket) and not settled[table][bucket])

    for member in reversed(manifest.chain):
        changed, named = _increments(member), dict[tuple[str, int], list[Keys]]()
        turn = first % len(member.parts)
        for part in member.parts[turn:] + member.parts[:turn]:
            with member.open(part, is_wanted) as opened:
                places = product(spec.tables, buckets_of(opened, spec.num_buckets))
                if not reads_all and not any(is_wanted(*place) for place in places):
                    continue
                for record in opened.records:
                    place = record.table, record.bucket
                    if settled[record.table][record.bucket] or not wanted(*place):
                        continue
                    live = _unsettled(record, settled_keys.get(place))
                    if changed[record.table][record.bucket]:
                        named.setdefault(place, []).append(record.keys.copy())  # without its images
                    if member is not manifest:
                        live = replace(live, applied=b"", admission=b"")
                    if record.is_gone:
                        live = replace(live, keys=live.keys[:0], images=live.images[:0], is_gone=False)
                    if len(live.keys) or live.applied or live.admission:
                        yield live, part["shard"]
        for table, buckets in changed.items():
            settled[table] |= ~buckets
        for place, keys in named.items():
            settled_keys[place] = np.sort(np.concatenate([settled_keys.get(place, keys[0][:0]), *keys]))


def starts_of(manifest: Manifest) -> Iterator[Part]:
    """Each file of a checkpoint, opened for its start alone. Raises CheckpointError for one of other buckets."""
    for part in manifest.parts:
        with manifest.open(part) as opened:
            for what, said in (("num_buckets", manifest.spec.num_buckets), ("seed", manifest.spec.seed)):
                if opened.start.get(what) != said:
                    raise CheckpointError(
                        f"{opened.shown} has {what} {opened.start.get(what)}, the manifest says {said}"
                    )
            if opened.start.get("increments") and not part.get("increment"):
                raise CheckpointError(f"{opened.shown} holds what has changed, the manifest says that it holds all")
            yield opened


def _increments(manifest: Manifest) -> dict[str, NDArray[np.bool_]]:
    """By table, bool [num_buckets]: of which a checkpoint holds only what has changed."""
    num_buckets = manifest.spec.num_buckets
    changed = {name: np.zeros(num_buckets, np.bool_) for name in manifest.spec.tables}
    if manifest.base is not None:
        for part in starts_of(manifest):
            for table, bits in part.start.get("increments", {}).items():
                if table not in changed or len(bits) != -(-num_buckets // 8):
                    raise CheckpointError(f"{part.shown}: its start has increments of no such table or buckets")
                found = np.unpackbits(np.frombuffer(bits, np.uint8), count=num_buckets, bitorder="little")
                changed[table] |= found.astype(np.bool_)
    return changed


def buckets_of(part: Part, num_buckets: int) -> Iterable[int]:
    """Those that a file may have records of."""
    bits = part.start.get("buckets")
    if not bits:  # of an older weir-ps, or not of a shard
        return range(num_buckets)
    if len(bits) != -(-num_buckets // 8):
        raise CheckpointError(f"{part.shown}: its start names other than {num_buckets} buckets; use another checkpoint")
    found: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()
    return found


def packed(buckets: NDArray[np.bool_]) -> bytes:
    """bool [num_buckets] as the start of a file has them."""
    return np.packbits(buckets, bitorder="little").tobytes()


def _unsettled(record: Record, settled: Keys | None) -> Record:
    """What of a record no newer one of its bucket names. settled: ascending."""
    if settled is None or not len(settled):
        return record
    places = np.minimum(np.searchsorted(settled, record.keys), len(settled) - 1)
    is_live = settled[places] != record.keys
    return record if is_live.all() else replace(record, keys=record.keys[is_live], images=record.images[is_live])


@dataclass(frozen=True)
class Summary:
    """What a verified checkpoint stands for, by table. num_bytes: of its files and of those that it needs. slots: rows
    of each slot. num_clients: whose updates are remembered.
    """

    manifest: Manifest
    num_bytes: int
    rows: Mapping[str, int]
    slots: Mapping[str, Mapping[int, int]]
    num_clients: Mapping[str, int]


def verify(directory: str | Path, visit: Callable[[Record], None] = lambda record: None) -> Summary:
    """Read every byte of a checkpoint and of those that it needs; `visit` gets each record of live rows. Raises
    CheckpointError naming file and byte.
    """
    manifest = read_manifest(directory)
    rows = dict.fromkeys(manifest.spec.tables, 0)
    slots: dict[str, Counter[int]] = {name: Counter() for name in manifest.spec.tables}
    clients: dict[str, set[int]] = {name: set() for name in manifest.spec.tables}
    for record, _ in live_records(manifest, reads_all=True):
        visit(record)
        numbers, counts = np.unique(slot_of(record.keys), return_counts=True)
        slots[record.table].update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        rows[record.table] += len(record.keys)
        clients[record.table].update(struct.unpack_from("<Q", record.applied, at)[0] for at in _entries(record))
    if rows != manifest.rows:
        raise CheckpointError(
            f"{directory} holds rows {rows}, its manifest says {manifest.rows}; use another checkpoint"
        )
    num_bytes = sum(member.num_bytes for member in manifest.chain)
    return Summary(manifest, num_bytes, rows, slots, {name: len(known) for name, known in clients.items()})


def _entries(record: Record) -> range:
    return range(0, len(record.applied), 24)


@dataclass(frozen=True)
class FoundRow:
    """One row of a checkpoint. shard: which one wrote it. values: float32 [dim] of each segment. image: with its
    state.
    """

    bucket: int
    shard: int
    values: Mapping[str, Floats]
    image: bytes


def find_row(directory: str | Path, table: str, key: int) -> FoundRow | None:
    """The row of a key, or None. Reads the records of the key's bucket only. Raises CheckpointError."""
    manifest = read_manifest(directory)
    spec = manifest.spec
    if table not in spec.tables:
        raise CheckpointError(f"{directory} has no table {table!r}; it has: {', '.join(spec.tables)}")
    keys = np.array([key], np.uint64)
    bucket = int(bucket_of(keys, spec.num_buckets)[0])
    for record, shard in live_records(manifest, lambda *at: at == (table, bucket)):
        places = np.flatnonzero(record.keys == keys[0])
        if len(places):
            image = record.images[places]
            holder = Table(table, spec.tables[table], seed=spec.seed, num_buckets=spec.num_buckets)
            holder.write_images(keys, image)
            row = holder.pull(keys)[0]
            values = {name: row[columns] for name, columns in spec.tables[table].columns().items()}
            return FoundRow(bucket, shard, values, image.tobytes())
    return None
