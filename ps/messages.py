"""The three kinds of rounds: pull, push, and any other psfunc. What each sends to a shard, and what it makes of the
replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ps.envelope import Envelope, reply_rows, room_for
from ps.errors import WeirError
from ps.lookup import Lookup
from ps.options import GroupOptions
from ps.psfunc import Answer, Counts, Psfunc, encode_args
from ps.rounds import Part
from ps.routing import Positions, Routing, count
from ps.shared_memory import Pool
from ps.types import Floats, Gradients, Offsets, Rows
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import ITEM_BYTES, decode_floats

WIRE_VERSION = 1


@dataclass(frozen=True)
class Identity:
    """Of an update: the client object's random id, and the sequence number that all its messages share; and when it
    was, in steps and in seconds of event time. READ: of reads.
    """

    client: int = 0
    sequence: int = 0
    step: int = 0
    event_time: int = 0


READ = Identity()


def request(routing: Routing, identity: Identity) -> pb.Request:
    return pb.Request(
        wire_version=WIRE_VERSION,
        routing_epoch=routing.epoch,
        client=identity.client,
        sequence=identity.sequence,
        step=identity.step,
        event_time=identity.event_time,
    )


def split_keys(starts: Mapping[str, Offsets], subsets: Mapping[str, NDArray[np.int64]], routing: Routing) -> list[Part]:
    """A part for every shard. subsets: by table, the ascending positions that the round is about; absent = all keys."""
    parts = [Part(shard) for shard in range(routing.num_shards)]
    for table, offsets in starts.items():
        subset = subsets.get(table)
        if subset is not None:
            offsets = np.searchsorted(subset, offsets).astype(np.int64)
        for part, positions in zip(parts, routing.split(offsets), strict=True):
            part.positions[table] = positions if subset is None else subset[positions]
    return parts


def split_part(part: Part, starts: Mapping[str, Offsets], routing: Routing) -> list[Part]:
    """A part's own keys under another routing."""
    subsets = {
        table: np.arange(positions.start, positions.stop) if isinstance(positions, slice) else positions
        for table, positions in part.positions.items()
    }
    return [each for each in split_keys(starts, subsets, routing) if any(map(count, each.positions.values()))]


def _envelope(message: pb.Request, part: Part, pool: Pool | None, *sizes: int) -> Envelope:
    """sizes: bytes of the arrays to come. Shared memory is taken where there is a pool and they are worth it."""
    if pool is not None and sum(sizes) >= pool.from_bytes:
        with suppress(OSError):  # no descriptor or memory left for it: the arrays travel in the message
            part.buffer = pool.lease(room_for(*sizes))
    return Envelope(message, part.buffer)


@dataclass(eq=False)
class Pull:
    """Reads rows of the lookup's keys, or of a subset of their positions by table, into `out`."""

    lookup: Lookup
    out: Mapping[str, Rows]  # float32 [u, width]
    subsets: Mapping[str, NDArray[np.int64]]
    dtype: int

    @property
    def what(self) -> str:
        return f"pull from {_names(self.lookup.tables)}"

    def split(self, routing: Routing) -> list[Part]:
        parts = split_keys(self.lookup.starts, self.subsets, routing)
        return [part for part in parts if any(map(count, part.positions.values()))]

    def split_again(self, part: Part, routing: Routing) -> list[Part]:
        return split_part(part, self.lookup.starts, routing)

    def request(self, part: Part, routing: Routing, pool: Pool | None) -> pb.Request:
        message, wanted = request(routing, READ), _wanted(part)
        replies = [ITEM_BYTES[self.dtype] * self.out[table].shape[1] * count(places) for table, places in wanted]
        envelope = _envelope(message, part, pool, *(8 * count(places) for _, places in wanted), *replies)
        for (table, positions), num_bytes in zip(wanted, replies, strict=True):
            call = message.calls.add(table=table, psfunc="pull", dtype=self.dtype)
            envelope.put_keys(call, self.lookup.keys[table][positions])
            envelope.expect(call, num_bytes)
        return message

    def accept(self, part: Part, request: pb.Request, reply: pb.Reply) -> None:
        results = _results(reply, len(request.calls))
        for (table, positions), call, result in zip(_wanted(part), request.calls, results, strict=True):
            out = self.out[table]
            rows = reply_rows(result, call, part.buffer, self.dtype, out.shape[1])
            if len(rows) != count(positions):
                raise WeirError(
                    f"pull from {table!r}: shard {part.shard} sent {len(rows)} rows for {count(positions)} keys"
                )
            out[positions] = rows


@dataclass(eq=False)
class Push:
    """Sends gradients of the lookup's keys, or of a subset, then table-wide updates of the tables that sweep.

    With a group, or a sweep, every shard gets a message, whether or not it owns one of the keys.
    """

    lookup: Lookup
    gradients: Mapping[str, Gradients]  # float32 [u, width]
    shown: Mapping[str, Floats]  # float32 [u, 2], shows and clicks, of tables that want them
    subsets: Mapping[str, NDArray[np.int64]]
    rates: Mapping[str, Sequence[float]]  # one per segment
    sweeps: Sequence[str]  # tables
    identity: Identity
    dtype: int
    group: GroupOptions | None = None
    drop_above: float = 0.0  # set with a group only
    drop_below: float = 0.0
    counts: dict[str, Counts] = field(default_factory=dict)

    @property
    def what(self) -> str:
        return f"push of step {self.identity.step} to {_names(self.lookup.tables)}"

    def split(self, routing: Routing) -> list[Part]:
        self.counts = {}
        parts = split_keys(self._starts, self.subsets, routing)
        return [part for part in parts if self._to_every_shard or any(map(count, part.positions.values()))]

    def split_again(self, part: Part, routing: Routing) -> list[Part] | None:
        return None if self._to_every_shard else split_part(part, self._starts, routing)

    def request(self, part: Part, routing: Routing, pool: Pool | None) -> pb.Request:
        message, wanted = request(routing, self.identity), _wanted(part)
        payloads = [ITEM_BYTES[self.dtype] * self.gradients[table].shape[1] * count(places) for table, places in wanted]
        shown = [8 * count(places) for table, places in wanted if table in self.shown]
        envelope = _envelope(message, part, pool, *(8 * count(places) for _, places in wanted), *payloads, *shown)
        if self.group is not None:
            message.group.generation, message.group.rank = self.group.generation, self.group.rank
            message.group.world = self.group.world
        for table, positions in wanted:
            call = message.calls.add(
                table=table,
                psfunc="push",
                dtype=self.dtype,
                learning_rates=self.rates[table],
                drop_above=self.drop_above,
                drop_below=self.drop_below,
            )
            envelope.put_keys(call, self.lookup.keys[table][positions])
            envelope.put_payload(call, self.gradients[table][positions], self.dtype)
            if table in self.shown:
                envelope.put_counts(call, self.shown[table][positions])
        for table in self.sweeps:
            message.calls.add(table=table, psfunc="sweep", learning_rates=self.rates[table])
        return message

    def accept(self, part: Part, request: pb.Request, reply: pb.Reply) -> None:
        tables = [table for table, _ in _wanted(part)]
        for table, result in zip(tables, _results(reply, len(tables) + len(self.sweeps)), strict=False):
            self.counts[table] = self.counts.get(table, Counts()) + counts_of(result)

    @property
    def _starts(self) -> Mapping[str, Offsets]:
        return {table: self.lookup.starts[table] for table in self.gradients}

    @property
    def _to_every_shard(self) -> bool:
        return self.group is not None or bool(self.sweeps)


@dataclass(eq=False)
class Execute:
    """Any psfunc on one table: on keys (lookup of that table) with or without a payload, or on all existing rows."""

    table: str
    psfunc: Psfunc
    identity: Identity
    lookup: Lookup | None = None
    payload: Rows | None = None  # float32 [u, w]
    rates: Sequence[float] = ()
    answers: dict[int, Answer] = field(default_factory=dict)  # by number of the answered part
    _split: dict[Part, Psfunc] = field(default_factory=dict)

    @property
    def what(self) -> str:
        return f"{self.psfunc.name} on {self.table!r}"

    def split(self, routing: Routing) -> list[Part]:
        self.answers = {}
        if self.lookup is None:
            parts = [Part(shard) for shard in range(routing.num_shards)]
            psfuncs = self.psfunc.split([None] * len(parts))
        else:
            parts = [part for part in split_keys(self.lookup.starts, {}, routing) if count(part.positions[self.table])]
            psfuncs = self.psfunc.split([part.positions[self.table] for part in parts])
        self._split = dict(zip(parts, psfuncs, strict=True))
        return parts

    def split_again(self, part: Part, routing: Routing) -> list[Part] | None:
        return None  # the psfunc's own split has to see all parts

    def request(self, part: Part, routing: Routing, pool: Pool | None) -> pb.Request:
        message = request(routing, self.identity)
        envelope = Envelope(message, None)  # replies of any size: they come in the message
        psfunc = self._split[part]
        call = message.calls.add(
            table=self.table, psfunc=psfunc.name, args=encode_args(psfunc), learning_rates=self.rates
        )
        if self.lookup is not None:
            positions = part.positions[self.table]
            envelope.put_keys(call, self.lookup.keys[self.table][positions])
            if self.payload is not None:
                envelope.put_payload(call, self.payload[positions], pb.FLOAT32)
        return message

    def accept(self, part: Part, request: pb.Request, reply: pb.Reply) -> None:
        (result,) = _results(reply, 1)
        positions = part.positions.get(self.table)
        rows = None
        if positions is not None and result.payload:
            rows = decode_floats(result.payload, pb.FLOAT32, len(result.payload) // (4 * count(positions)))
        values = msgpack.unpackb(result.values, strict_map_key=False) if result.values else None
        self.answers[part.shard] = Answer(values, rows, counts_of(result), positions)

    def merge(self) -> Any:
        """The shards' answers, in the order of shards, as one result."""
        return self.psfunc.merge([self.answers[number] for number in sorted(self.answers)])


def counts_of(result: pb.Result) -> Counts:
    return Counts(
        applied=result.num_applied,
        created=result.num_created,
        nonfinite=result.num_nonfinite,
        dropped_above=result.num_dropped_above,
        dropped_below=result.num_dropped_below,
        skipped=result.num_skipped,
        refused=result.num_refused,
    )


def _wanted(part: Part) -> list[tuple[str, Positions]]:
    return [(table, positions) for table, positions in part.positions.items() if count(positions)]


def _results(reply: pb.Reply, num_calls: int) -> Sequence[pb.Result]:
    if len(reply.results) != num_calls:
        raise WeirError(f"a shard sent {len(reply.results)} results for {num_calls} calls")
    return list(reply.results)


def _names(tables: Sequence[str]) -> str:
    return "table " + repr(tables[0]) if len(tables) == 1 else "tables " + ", ".join(map(repr, tables))
