"""A message taken apart and checked, before it reaches the thread of work. Pure functions; they run on the receiving
threads.

Everything that can be told without the rows is told here, once: lengths, names, arguments, finite numbers. Below, it
is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import ps.psfuncs  # noqa: F401  registers what every shard knows
from ps.envelope import Bytes, Reader
from ps.errors import RequestError
from ps.keys import bucket_of
from ps.psfunc import BucketNumbers, Psfunc, decode_args
from ps.security import Limits
from ps.shared_memory import Mappings
from ps.spec import ClusterSpec, TableSpec
from ps.synchronous import MAX_WORLD, Place
from ps.types import Buckets, Floats, Gradients, UniqueKeys
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import ITEM_BYTES, decode_floats

WIRE_VERSION = 1
_MAX_SEQUENCE = 1 << 62
_MAX_ARGS_BYTES = 1 << 20
_MAX_NAME = 255


@dataclass(frozen=True, eq=False)
class Keyed:
    """The keys of a call. key_buckets: int32 [n], ascending; buckets: the distinct ones."""

    keys: UniqueKeys
    key_buckets: Buckets
    buckets: BucketNumbers

    @classmethod
    def of(cls, keys: UniqueKeys, num_buckets: int) -> Keyed:
        """Raises RequestError when keys are not grouped by bucket in ascending order."""
        key_buckets = bucket_of(keys, num_buckets)
        steps = np.diff(key_buckets)
        if len(steps) and int(steps.min()) < 0:
            raise RequestError("keys are not grouped by bucket in ascending bucket order")
        first = np.concatenate([[True], steps > 0]) if len(keys) else np.zeros(0, np.bool_)
        return cls(keys, key_buckets, key_buckets[first].astype(np.int64))


@dataclass(frozen=True, eq=False)
class CheckedCall:
    """One call. keyed: None for a table-wide one. learning_rates: float32 [num_segments]. room: shared with the client,
    for the payload of the reply, or None. counts: float32 [n, 2], shows and clicks of each key, or None.
    """

    table: str
    psfunc: Psfunc
    keyed: Keyed | None
    payload: Gradients | None
    dtype: int
    learning_rates: Floats
    drop_above: float
    drop_below: float
    room: Bytes | None = None
    counts: Floats | None = None

    @property
    def is_update(self) -> bool:
        return self.psfunc.kind == "update"


@dataclass(frozen=True, eq=False)
class CheckedRequest:
    """One message. place: its stand in a synchronous group, or None. event_time: seconds since 1970."""

    routing_epoch: int
    client: int
    sequence: int
    step: int
    place: Place | None
    calls: tuple[CheckedCall, ...]
    event_time: int = 0

    @property
    def is_update(self) -> bool:
        return self.place is not None or any(call.is_update for call in self.calls)


def check_request(
    message: pb.Request, spec: ClusterSpec, mappings: Mappings | None = None, limits: Limits | None = None
) -> CheckedRequest:
    """mappings: where shared buffers are opened. Raises RequestError naming the call and what is wrong with it,
    NotSharedError for a buffer out of reach.
    """
    if message.wire_version != WIRE_VERSION:
        raise RequestError(
            f"wire version {message.wire_version} is unknown, this is {WIRE_VERSION}; use the same weir-ps at both ends"
        )
    if message.step < 0:
        raise RequestError(f"step is {message.step}; it must not be negative")
    if not 0 <= message.event_time < 1 << 32:
        raise RequestError(f"event_time is {message.event_time}; it must be seconds since 1970, below 2^32")
    place = _place(message) if message.HasField("group") else None
    limits = limits or Limits()
    _check_sizes(message, limits)
    arrays = Reader(message, mappings)
    calls = []
    for number, call in enumerate(message.calls):
        try:
            calls.append(_check_call(call, spec, arrays, grouped=place is not None))
        except RequestError as error:
            raise type(error)(f"call {number} ({call.psfunc!r} on table {call.table!r}): {error}") from error
    request = CheckedRequest(
        message.routing_epoch,
        message.client,
        message.sequence,
        message.step,
        place,
        tuple(calls),
        message.event_time,
    )
    if request.is_update and not (message.client and 1 <= message.sequence < _MAX_SEQUENCE):
        raise RequestError(
            f"an update needs an identity: client is {message.client}, sequence {message.sequence}; both start at 1"
        )
    if place is not None:
        _check_group_calls(calls)
    _check_reply(calls, spec, limits)
    return request


def _check_sizes(message: pb.Request, limits: Limits) -> None:
    """Names, arguments and keys, before any of them is used."""
    for number, call in enumerate(message.calls):
        if max(len(call.table), len(call.psfunc)) > _MAX_NAME:
            raise RequestError(f"call {number}: the name of a table or psfunc has more than {_MAX_NAME} characters")
        if len(call.args) > _MAX_ARGS_BYTES:  # unpacked they take up to a hundred times as much
            raise RequestError(
                f"call {number} ({call.psfunc!r} on table {call.table!r}): arguments of {len(call.args)} bytes; the "
                f"limit is {_MAX_ARGS_BYTES}: send them as payload"
            )
    _check_limit(
        sum(max(len(call.keys), call.shared_keys.length) // 8 for call in message.calls),
        "the message has {} keys",
        limits.max_keys_per_request,
        "max_keys_per_request",
    )


def _check_reply(calls: list[CheckedCall], spec: ClusterSpec, limits: Limits) -> None:
    """Before any of its rows is made."""
    _check_limit(
        sum(
            len(call.keyed.keys) * call.psfunc.row_width(spec.tables[call.table]) * ITEM_BYTES[call.dtype]
            for call in calls
            if call.keyed is not None and call.psfunc.gives_rows
        ),
        "the rows of the reply would take {} bytes",
        limits.max_message_bytes,
        "max_message_bytes",
    )


def _check_limit(found: int, what: str, limit: int, name: str) -> None:
    if found > limit:
        raise RequestError(
            f"{what.format(found)}; the limit is {limit}: send fewer keys at a time, or raise "
            f"cluster.security.limits.{name}"
        )


def _place(message: pb.Request) -> Place:
    group = message.group
    if not 1 <= group.world <= MAX_WORLD or group.rank >= group.world:
        raise RequestError(f"rank {group.rank} of world {group.world}: need 0 <= rank < world <= {MAX_WORLD}")
    return Place(group.generation, message.step, group.rank, group.world)


def _check_group_calls(calls: list[CheckedCall]) -> None:
    names = [call.psfunc.name for call in calls]
    pushed = [call.table for call in calls if call.psfunc.name == "push"]
    if names != ["push"] * len(pushed) + ["sweep"] * (len(names) - len(pushed)) or len(set(pushed)) < len(pushed):
        raise RequestError(
            f"a group message holds at most one push a table, then sweeps; this one holds: {', '.join(names)}"
        )


def _check_call(call: pb.Call, spec: ClusterSpec, arrays: Reader, *, grouped: bool) -> CheckedCall:
    table = spec.tables.get(call.table)
    if table is None:
        raise RequestError(f"no such table; there are: {', '.join(sorted(spec.tables))}")
    psfunc = decode_args(call.psfunc, call.args)
    psfunc.check(table)
    if call.dtype not in ITEM_BYTES:
        raise RequestError(f"dtype {call.dtype} is unknown; known are {', '.join(pb.Dtype.keys())}")
    keyed = _keyed(arrays.keys(call), psfunc, spec.num_buckets)
    drops = (call.drop_above, call.drop_below)
    if not all(np.isfinite(drop) and drop >= 0 for drop in drops):
        raise RequestError(f"gradient thresholds {drops} must be finite and not negative")
    if any(drops) and not grouped:
        raise RequestError("gradient thresholds travel with group messages only; else the client applies them")
    return CheckedCall(
        call.table,
        psfunc,
        keyed,
        _payload(arrays.payload(call), call.dtype, psfunc, table, keyed),
        call.dtype,
        _learning_rates(call, psfunc, table),
        *drops,
        room=arrays.room(call),
        counts=_counts(arrays.counts(call), psfunc, table, keyed),
    )


def _keyed(keys: UniqueKeys, psfunc: Psfunc, num_buckets: int) -> Keyed | None:
    if psfunc.takes_keys == "never" and len(keys):
        raise RequestError("it takes no keys")
    if not len(keys) and psfunc.takes_keys != "always":
        return None
    return Keyed.of(keys, num_buckets)


def _payload(
    data: bytes | Bytes, dtype: int, psfunc: Psfunc, table: TableSpec, keyed: Keyed | None
) -> Gradients | None:
    if not psfunc.takes_payload:
        if len(data):
            raise RequestError("it takes no payload")
        return None
    width = psfunc.payload_width(table)
    rows = decode_floats(data, dtype, width)
    num_keys = 0 if keyed is None else len(keyed.keys)
    if len(rows) != num_keys:
        raise RequestError(f"the payload has {len(rows)} rows of width {width} for {num_keys} keys")
    return rows


def _counts(data: bytes | Bytes, psfunc: Psfunc, table: TableSpec, keyed: Keyed | None) -> Floats | None:
    if not len(data):
        return None
    if psfunc.name != "push" or not table.wants_counts or keyed is None:
        raise RequestError("shows and clicks travel with pushes to tables that keep or count them")
    counts = decode_floats(data, pb.FLOAT32, 2)
    if len(counts) != len(keyed.keys):
        raise RequestError(f"shows and clicks of {len(counts)} keys for {len(keyed.keys)}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise RequestError("shows and clicks must be finite and not negative")
    return counts


def _learning_rates(call: pb.Call, psfunc: Psfunc, table: TableSpec) -> Floats:
    """The call's, or by default those of the segments' optimizers."""
    if not psfunc.takes_learning_rates:
        return np.empty(0, np.float32)
    given = call.learning_rates or [segment.optimizer.learning_rate for segment in table.segments.values()]
    rates: NDArray[np.float32] = np.array(given, np.float32)
    if len(rates) != len(table.segments):
        raise RequestError(f"{len(rates)} learning rates for {len(table.segments)} segments")
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise RequestError(f"learning rates {rates.tolist()} must be finite and not negative")
    return rates
