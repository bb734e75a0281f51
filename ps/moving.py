"""Buckets on their way from one shard to another, while updates go on. Work for the thread of a shard; no I/O.

    giving    copy: every bucket, each between two updates; catch_up: what changed meanwhile, again and again;
              leave: the rest, and what was applied, after which the buckets take no more messages here
    taking    take: parts of that, in their order

The buckets change hands when a routing is assigned that says so: `Holding.move` then drops them here. Any other routing
leaves them where they were, and what was taken is dropped there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from ps.errors import JournalError, RequestError, WrongEpochError
from ps.holding import Holding
from ps.journal.changes import Changes
from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, JournalReader, RowsFrame, encode_rows, with_checksum
from ps.keys import bucket_of
from ps.psfunc import BucketNumbers
from ps.record import Buffer, layout_digest
from ps.storage.table import Table

Sink: TypeAlias = Callable[[bytes], bool]  # takes a frame; False: full, offer it again later
Work: TypeAlias = Generator[None, None, Any]


class Leaving:
    """Buckets that a shard gives away."""

    def __init__(self, holding: Holding, buckets: BucketNumbers) -> None:
        """From here on it sees what changes in them. Raises WrongEpochError unless all are owned."""
        if not len(buckets) or not np.isin(buckets, holding.owned).all() or holding.is_leaving[buckets].any():
            raise WrongEpochError(f"shard {holding.shard} does not own all of buckets {buckets.tolist()}")
        self.buckets, self.num_rows = buckets, 0
        self._holding = holding
        self._layouts = {name: layout_digest(text) for name, text in holding.layouts().items()}
        self._changes = Changes(holding.tables, only=_mask(holding, buckets))

    @property
    def num_changed(self) -> int:
        """Keys to be sent again."""
        return self._changes.num_keys

    def copy(self, bucket: int, sink: Sink) -> Work:
        """All rows of a bucket; no update may come between."""
        for name, table in self._holding.tables.items():
            for keys, images in table.read_images(bucket):
                self.num_rows += len(keys)
                kinds = [(keys, images), NO_ROWS]
                full, early = kinds if images.shape[1] == table.image_bytes else kinds[::-1]
                frame = RowsFrame(0, name, self._layouts[name], full, early, NO_KEYS, NOTHING_GATHERED)
                yield from _offer(sink, encode_rows(frame))

    def catch_up(self, sink: Sink) -> Work:
        """What changed since the last time; no update may come between."""
        for pieces in self._changes.rows(0):
            yield from _offer(sink, pieces)

    def leave(self, sink: Sink) -> Generator[None, None, bytes]:
        """What changed last; from its end on the shard takes no messages for the buckets. Returns what the other shard
        must know beside rows, as bytes.
        """
        holding = self._holding
        yield from self.catch_up(sink)
        windows = [
            [name, bucket, holding.applied[name].entries(bucket), table.admission.save(bucket)]
            for name, table in holding.tables.items()
            for bucket in self.buckets.tolist()
        ]
        holding.is_leaving[self.buckets] = True
        if holding.changes is not None:
            holding.changes.note("leaving", self.buckets.tolist())
        packed: bytes = msgpack.packb({"windows": windows, "expired": holding.expired_ids()})
        return packed

    def close(self) -> None:
        """See no more."""
        self._changes.close()


def take(holding: Holding, buckets: BucketNumbers, frames: bytes, windows: bytes, *, now: float) -> Work:
    """A part of what another shard gives. buckets: of the first part, those that are to come; else empty.

    Raises RequestError for what cannot be read, and WrongEpochError for rows of buckets that are not to come: a routing
    was assigned meanwhile.
    """
    if len(buckets):
        if np.isin(buckets, holding.owned).any():
            raise WrongEpochError(f"shard {holding.shard} owns some of buckets {buckets.tolist()} already")
        for bucket in buckets.tolist():
            holding.drop_bucket(bucket)
        holding.is_arriving[buckets] = True
        if holding.changes is not None:
            holding.changes.note("arriving", np.flatnonzero(holding.is_arriving).tolist())
    layouts = {name: layout_digest(text) for name, text in holding.layouts().items()}
    file = io.BytesIO(frames)
    reader = JournalReader(file, "a part of a moving bucket", num_bytes=len(frames))
    while file.tell() < len(frames):
        try:
            frame = reader.read_frame()
            rows = reader.read_rows(frame)
        except JournalError as error:
            raise RequestError(str(error)) from error
        if layouts.get(rows.table) != rows.layout:
            raise RequestError(f"rows of table {rows.table!r} come in another layout; the shards have different specs")
        for keys in (rows.full[0], rows.early[0], rows.removed):
            if not holding.is_arriving[bucket_of(keys, holding.spec.num_buckets)].all():
                raise WrongEpochError(f"shard {holding.shard} does not expect rows of these buckets (any more)")
        if not set(rows.dropped) <= set(np.flatnonzero(holding.is_arriving).tolist()):
            raise WrongEpochError(f"shard {holding.shard} does not expect these buckets (any more)")
        write_rows(holding.tables[rows.table], rows)
        yield
    if windows:
        arriving = set(np.flatnonzero(holding.is_arriving).tolist())
        load_windows(holding, windows, now=now, wanted=arriving.__contains__)
        if holding.changes is not None:
            holding.changes.note("windows", windows)


def write_rows(table: Table, frame: RowsFrame) -> None:
    """Make the rows of a frame what it says."""
    for bucket in frame.dropped:
        table.drop_bucket(bucket)
    for keys, images in (frame.full, frame.early):
        if len(keys):
            table.write_images(keys, images)
    if len(frame.removed):
        table.delete(frame.removed)


def load_windows(
    holding: Holding, windows: bytes, *, now: float, wanted: Callable[[int], bool] = lambda bucket: True
) -> None:
    """What was applied to buckets that came, and what their keys gathered. Raises RequestError."""
    try:
        told = msgpack.unpackb(windows)
        for name, bucket, entries, gathered in told["windows"]:
            if not wanted(bucket):
                continue
            holding.applied[name].load(int(bucket), entries, now=now)
            holding.tables[name].admission.drop_bucket(int(bucket))
            if gathered:
                holding.tables[name].admission.load(int(bucket), gathered)
        for name, ids in told["expired"].items():
            applied = holding.applied[name]
            applied.load_expired([client for client in ids if not applied.knows(client)])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RequestError(f"what was applied to moving buckets cannot be read: {error}") from error


def _mask(holding: Holding, buckets: BucketNumbers) -> NDArray[np.bool_]:
    mask = np.zeros(holding.spec.num_buckets, np.bool_)
    mask[buckets] = True
    return mask


def _offer(sink: Sink, pieces: list[Buffer]) -> Work:
    frame = b"".join(with_checksum(pieces))
    while not sink(frame):
        yield
    yield
