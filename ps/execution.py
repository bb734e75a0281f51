"""Running the calls of a message on what a shard holds: freshness first, then call by call, then remembered as applied.

An update of a table is remembered when the last call of the message on that table has ended, or when the message
failed after one of them had: a call either happened and is remembered, or did not happen. Generators: they yield
where they may be interrupted.
"""

from __future__ import annotations

import inspect
import traceback
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgpack
import numpy as np

from ps.errors import MemoryLimitError, OverloadedError, RequestError, WeirError
from ps.holding import Holding
from ps.psfunc import Answer, BucketNumbers, Counts, Psfunc, Running, Task
from ps.request import CheckedCall, CheckedRequest, Keyed
from ps.synchronous import RankPart, global_batch
from ps.types import Floats, Gradients, Rows, Seen
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import ITEM_BYTES, encode_floats, encode_into

Identity: TypeAlias = tuple[int, int]  # client, sequence


@dataclass(frozen=True, eq=False)
class _Planned:
    """A call cut down to the buckets that have not had it. counts: what is known before it runs."""

    call: CheckedCall
    keyed: Keyed | None
    payload: Gradients | None
    buckets: BucketNumbers
    counts: Counts
    shown: Floats | None = None  # shows and clicks of the keys

    @property
    def is_empty(self) -> bool:
        """Nothing of an update is left to do."""
        return self.call.is_update and len(self.buckets) == 0


def execute(holding: Holding, request: CheckedRequest, *, now: float) -> Generator[None, None, pb.Reply]:
    """Run one message. Raises WrongEpochError and ExpiredError before anything is applied."""
    holding.check_routing(request)
    plans = [_plan(holding, request, call) for call in request.calls]
    identity = (request.client, request.sequence)
    return (yield from _run(holding, plans, request.step, request.event_time, [identity], now))


def is_new(holding: Holding, request: CheckedRequest) -> bool:
    """Whether any bucket of the message has not had it. Raises as `execute` does."""
    holding.check_routing(request)
    return any(len(_plan(holding, request, call).buckets) for call in request.calls)


def execute_group(
    holding: Holding, requests: Sequence[CheckedRequest], *, now: float
) -> Generator[None, None, list[pb.Reply]]:
    """Run the messages of all ranks, in rank order, as one update of the global batch. Every rank's reply counts all
    of it.
    """
    for request in requests:
        holding.check_routing(request)
    _agree(requests)
    pushes: dict[str, list[_Planned]] = defaultdict(list)
    sweeps: list[_Planned] = []
    for rank, request in enumerate(requests):
        for call in request.calls:
            if call.psfunc.name == "push":
                pushes[call.table].append(_plan(holding, request, call))
            elif rank == 0:
                sweeps.append(_plan(holding, request, call))
    merged = [_merge(holding, parts, len(requests)) for parts in pushes.values()]
    plans = merged + sweeps
    identities = [(request.client, request.sequence) for request in requests]
    event_time = max(request.event_time for request in requests)
    reply = yield from _run(holding, plans, requests[0].step, event_time, identities, now)
    by_call = {
        (plan.call.table, plan.call.psfunc.name): result for plan, result in zip(plans, reply.results, strict=True)
    }
    return [pb.Reply(results=[by_call[call.table, call.psfunc.name] for call in request.calls]) for request in requests]


def _agree(requests: Sequence[CheckedRequest]) -> None:
    """Raise RequestError when ranks differ in what must be equal."""
    seen: dict[tuple[str, str], tuple[Any, ...]] = {}
    for rank, request in enumerate(requests):
        for call in request.calls:
            what = (call.psfunc.args(), call.learning_rates.tolist(), call.drop_above, call.drop_below)
            if seen.setdefault((call.table, call.psfunc.name), what) != what:
                raise RequestError(
                    f"step {request.step}: rank {rank} gives {call.psfunc.name} on table {call.table!r} other learning "
                    "rates or thresholds than the ranks before it"
                )
        sweeps = [call.table for call in request.calls if call.psfunc.name == "sweep"]
        if sweeps != [call.table for call in requests[0].calls if call.psfunc.name == "sweep"]:
            raise RequestError(f"step {request.step}: rank {rank} sweeps other tables than rank 0: {sweeps}")


def _merge(holding: Holding, parts: list[_Planned], world: int) -> _Planned:
    """The pushes of one table as one push of the global batch. A rank may have none: it has no keys there."""
    call, num_buckets = parts[0].call, holding.spec.num_buckets
    batch = global_batch(
        [
            RankPart(part.keyed.keys, part.payload, part.shown)
            for part in parts
            if part.keyed is not None and part.payload is not None
        ],
        world=world,
        num_buckets=num_buckets,
        drop_above=call.drop_above,
        drop_below=call.drop_below,
    )
    counts = Counts(
        nonfinite=batch.num_nonfinite,
        dropped_above=batch.num_above,
        dropped_below=batch.num_below,
        skipped=sum(part.counts.skipped for part in parts),
    )
    buckets = np.unique(np.concatenate([part.buckets for part in parts]))
    return _Planned(call, Keyed.of(batch.keys, num_buckets), batch.gradients, buckets, counts, batch.shown)


def _plan(holding: Holding, request: CheckedRequest, call: CheckedCall) -> _Planned:
    covered = holding.owned if call.keyed is None else call.keyed.buckets
    if not call.is_update:
        return _Planned(call, call.keyed, call.payload, covered, Counts())
    fresh = holding.applied[call.table].fresh(request.client, request.sequence, covered)
    if fresh.all():
        return _Planned(call, call.keyed, call.payload, covered, Counts(), call.counts)
    buckets = covered[fresh]
    if call.keyed is None:
        return _Planned(call, None, call.payload, buckets, Counts(skipped=len(covered) - len(buckets)))
    keep = np.isin(call.keyed.key_buckets, buckets)
    keyed = Keyed(call.keyed.keys[keep], call.keyed.key_buckets[keep], buckets)
    payload = None if call.payload is None else np.ascontiguousarray(call.payload[keep])
    shown = None if call.counts is None else call.counts[keep]
    return _Planned(call, keyed, payload, buckets, Counts(skipped=int(len(keep) - np.count_nonzero(keep))), shown)


def _run(
    holding: Holding,
    plans: Sequence[_Planned],
    step: int,
    event_time: int,
    identities: Sequence[Identity],
    now: float,
) -> Generator[None, None, pb.Reply]:
    reply = pb.Reply()
    last = {plan.call.table: number for number, plan in enumerate(plans) if plan.call.is_update}
    unmarked: dict[str, list[BucketNumbers]] = defaultdict(list)

    def mark(table: str) -> None:
        for buckets in unmarked.pop(table, []):
            for client, sequence in identities:
                holding.applied[table].mark(client, sequence, buckets, now=now)
            if holding.changes is not None:
                holding.changes.mark(table, identities, buckets)

    try:
        for number, plan in enumerate(plans):
            answer = Answer() if plan.is_empty else (yield from _run_call(holding, plan, step, event_time))
            answer = replace(answer, counts=answer.counts + plan.counts)
            if plan.call.is_update:
                holding.counts += answer.counts
                unmarked[plan.call.table].append(plan.buckets)
                if last[plan.call.table] == number:
                    mark(plan.call.table)
            _write(answer, plan.call, reply.results.add())
            yield
    finally:
        for table in list(unmarked):
            mark(table)
    return reply


def _run_call(holding: Holding, plan: _Planned, step: int, event_time: int) -> Running:
    call = plan.call
    task = Task(
        table=holding.tables[call.table],
        keys=None if plan.keyed is None else plan.keyed.keys,
        key_buckets=None if plan.keyed is None else plan.keyed.key_buckets,
        buckets=plan.buckets,
        payload=plan.payload,
        step=step,
        learning_rates=call.learning_rates,
        out=_row_room(call, plan.keyed, holding.tables[call.table].spec.width),
        seen=Seen(event_time, plan.shown),
    )
    try:
        outcome = call.psfunc.apply(task)
        answer: Any = (yield from outcome) if isinstance(outcome, Generator) else outcome
    except MemoryLimitError as error:
        if holding.makes_room(call.table):
            raise OverloadedError(f"{error}; rows are being evicted to make room") from error
        raise
    except WeirError:
        raise
    except Exception as error:
        if type(call.psfunc).__module__.startswith("ps."):
            raise
        raise RequestError(_where(call.psfunc, error)) from error
    if not isinstance(answer, Answer):
        raise RequestError(
            f"psfunc {call.psfunc.name!r} returned {type(answer).__name__}; `apply` must return an Answer"
        )
    return answer


def _row_room(call: CheckedCall, keyed: Keyed | None, width: int) -> Rows | None:
    """The room for the reply as float32 [n, width], where rows travel as they are."""
    if call.room is None or keyed is None or call.dtype != pb.FLOAT32 or len(call.room) != 4 * width * len(keyed.keys):
        return None
    return call.room.view(np.float32).reshape(-1, width)


def _where(psfunc: Psfunc, error: Exception) -> str:
    """The message for an error of a user's psfunc: the deepest line of the user's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getfile(type(psfunc))]
    frame = (own or list(frames))[-1]
    return (
        f"psfunc {psfunc.name!r} failed at {frame.filename}:{frame.lineno} in {frame.name}: "
        f"{type(error).__name__}: {error}; at this shard the table is as it was"
    )


def _write(answer: Answer, call: CheckedCall, result: pb.Result) -> None:
    """Into the reply in place: a message that is put into another is copied, and rows are many megabytes. Rows go to
    shared memory where there is room.
    """
    counts = answer.counts
    try:
        if answer.values is not None:
            result.values = msgpack.packb(answer.values)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"psfunc {call.psfunc.name!r} returned values that msgpack cannot carry: {error}") from error
    if answer.rows is not None:
        num_bytes = ITEM_BYTES[call.dtype] * answer.rows.size
        if call.room is None or num_bytes > len(call.room):
            result.payload = encode_floats(answer.rows, call.dtype)
        else:
            if not np.may_share_memory(answer.rows, call.room):
                encode_into(answer.rows, call.dtype, call.room[:num_bytes])
            result.shared_bytes = num_bytes
    result.num_applied, result.num_created = counts.applied, counts.created
    result.num_nonfinite, result.num_skipped = counts.nonfinite, counts.skipped
    result.num_dropped_above, result.num_dropped_below = counts.dropped_above, counts.dropped_below
    result.num_refused = counts.refused
