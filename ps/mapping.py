"""What of a checkpoint becomes what of a cluster: tables and segments match by name, a mapping says where they do not.

    {"user": "people"}                             table user takes the rows of the checkpoint's table people
    {"user.embedding": "emb"}                      its segment embedding takes those of segment emb
    {"user.embedding": None}                       starts at its initial value, whatever the checkpoint has
    {"user.embedding": {"from": "emb", "resize": True}}
                                                   may have another dim: what is cut off is lost, what is added starts
                                                   at its initial value, and the optimizer's state starts anew; `from`
                                                   may be left out

What has no counterpart starts at its initial value; what nobody takes is dropped; a segment of another dim is an error
unless it is resized. Optimizers, codecs, admission, metadata, buckets and seed may differ. Whatever is not as it was
is said in Plan.changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from ps.errors import RequestError
from ps.spec import ClusterSpec, SegmentSpec, TableSpec
from ps.storage.kernels.optimizers import kernel_name, state_dim
from ps.strict import Spec


class Source(Spec):
    """Where a table or a segment takes its rows from. name: the checkpoint's, None: nowhere, "": of the same name."""

    name: str | None = Field("", alias="from")
    resize: bool = False


def _source(value: Any) -> Any:
    return {"from": value} if value is None or isinstance(value, str) else value


Sources: TypeAlias = dict[str, Annotated[Source, BeforeValidator(_source)]]  # by "table" or "table.segment" of here
_ADAPTER: TypeAdapter[Sources] = TypeAdapter(Sources)


def read_mapping(mapping: Mapping[str, Any]) -> Sources:
    """A mapping as the file's head has it. Raises RequestError."""
    try:
        return _ADAPTER.validate_python(dict(mapping))
    except ValidationError as error:
        raise _unreadable(error) from None


def encode_mapping(sources: Sources) -> bytes:
    """For a message to a shard."""
    return _ADAPTER.dump_json(sources, by_alias=True)


def decode_mapping(data: bytes) -> Sources:
    """The reverse. Raises RequestError."""
    try:
        return _ADAPTER.validate_json(data) if data else {}
    except ValidationError as error:
        raise _unreadable(error) from None


def _unreadable(error: ValidationError) -> RequestError:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "all of it"
    return RequestError(
        f"the mapping of a restore cannot be read: {place}: {first['msg']}; an entry is an old name, null, or "
        "{from: name, resize: true}"
    )


@dataclass(frozen=True)
class TablePlan:
    """One table of the checkpoint (old) and what takes its rows (new). segments: by name here that of the checkpoint,
    None: as initial. keeps_buckets: whether both have the same ones, so that what a bucket has had comes along.
    keeps_admission: whether what its keys without rows have gathered does then.
    """

    old: str
    new: str
    segments: Mapping[str, str | None]
    keeps_buckets: bool = True
    keeps_admission: bool = True


@dataclass(frozen=True)
class Plan:
    """tables: by the checkpoint's name, those whose rows are wanted. changes: a line for all that is not as it was."""

    tables: Mapping[str, TablePlan]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Restored:
    """What a restore has done: rows over all shards, and Plan.changes."""

    rows: int
    changes: tuple[str, ...]


def plan_restore(old: ClusterSpec, new: ClusterSpec, sources: Sources) -> Plan:
    """Match a checkpoint's tables with a cluster's. Raises RequestError for what does not fit and how to map it."""
    _check_names(new, sources)
    changes = _changes_of_all(old, new)
    tables: dict[str, TablePlan] = {}
    for name, spec in new.tables.items():
        source = sources.get(name, Source())
        wanted = name if source.name == "" else source.name
        if source.name and wanted not in old.tables:
            raise RequestError(
                f"mapping {name}: the checkpoint has no table {wanted!r}; it has: {', '.join(old.tables)}"
            )
        if wanted is None or wanted not in old.tables:
            changes.append(f"new: table {name} starts without rows")
            continue
        if wanted in tables:
            raise RequestError(f"mapping: tables {tables[wanted].new} and {name} both take the rows of table {wanted}")
        found, said = _plan_table(name, spec, wanted, old.tables[wanted], sources)
        tables[wanted] = replace(found, keeps_buckets=old.num_buckets == new.num_buckets)
        changes += said
    changes += [f"dropped: table {name}" for name in old.tables if name not in tables]
    return Plan(tables, tuple(changes))


def _check_names(spec: ClusterSpec, sources: Sources) -> None:
    segments = {f"{table}.{name}" for table, each in spec.tables.items() for name in each.segments}
    for name, source in sources.items():
        if name not in spec.tables and name not in segments:
            known = ", ".join((*spec.tables, *sorted(segments)))
            raise RequestError(f"mapping {name}: no such table or segment here; there are: {known}")
        if name in spec.tables and source.resize:
            raise RequestError(f"mapping {name}: a table has no dim; resize its segments")


def _changes_of_all(old: ClusterSpec, new: ClusterSpec) -> list[str]:
    changes = []
    if old.num_buckets != new.num_buckets:
        changes.append(
            f"num_buckets: {old.num_buckets} -> {new.num_buckets}: which updates were applied, and what admission had "
            "gathered, is forgotten"
        )
    if old.seed != new.seed:
        changes.append(f"seed: {old.seed} -> {new.seed}: rows made from now on begin otherwise")
    return changes


def _plan_table(
    name: str, spec: TableSpec, old_name: str, old: TableSpec, sources: Sources
) -> tuple[TablePlan, list[str]]:
    changes = [f"renamed: table {name} was {old_name}"] if name != old_name else []
    segments: dict[str, str | None] = {}
    for segment, here in spec.segments.items():
        place = f"{name}.{segment}"
        source = sources.get(place, Source())
        wanted = segment if source.name == "" else source.name
        if source.name and wanted not in old.segments:
            raise RequestError(
                f"mapping {place}: table {old_name!r} of the checkpoint has no segment {wanted!r}; it has: "
                f"{', '.join(old.segments)}"
            )
        segments[segment] = wanted = wanted if wanted in old.segments else None
        if wanted is None:
            changes.append(f"new: {place} starts at its initial value")
            continue
        if wanted != segment:
            changes.append(f"renamed: {place} was {wanted}")
        if old.segments[wanted].dim != here.dim and not source.resize:
            raise RequestError(
                f"{place} has dim {here.dim}, the checkpoint {old.segments[wanted].dim}; map it: "
                f"{{{place}: {{resize: true}}}} cuts it or fills it up with initial values, {{{place}: null}} "
                "starts it anew"
            )
        changes += _changes_of_segment(place, old.segments[wanted], here)
    changes += [f"dropped: {old_name}.{each}" for each in old.segments if each not in segments.values()]
    before, after = metadata_of(old), metadata_of(spec)
    if before != after:
        changes.append(f"metadata: rows of table {name} keep {after}, in the checkpoint {before}")
    keeps_admission = (spec.admission, spec.score) == (old.admission, old.score)
    if not keeps_admission and old.admission.name in ("count", "score"):
        changes.append(f"admission: table {name} has other options; what keys without rows had gathered is forgotten")
    return TablePlan(old_name, name, segments, keeps_admission=keeps_admission), changes


def metadata_of(spec: TableSpec) -> str:
    """What each row keeps beside values and state, in words."""
    return "last_seen, shows, clicks" if spec.keeps_counts else "last_seen" if spec.keeps_time else "nothing"


def keeps_state(old: SegmentSpec, new: SegmentSpec) -> bool:
    """Whether the optimizer's state of a segment means the same in both."""
    before, after = ((kernel_name(s.optimizer), s.dim, state_dim(s.optimizer, s.dim)) for s in (old, new))
    return before == after


def _changes_of_segment(place: str, old: SegmentSpec, new: SegmentSpec) -> Iterator[str]:
    if old.dim != new.dim:
        fate = "cut" if new.dim < old.dim else "the rest starts at its initial value"
        yield f"resized: {place} {old.dim} -> {new.dim}: {fate}"
    names = kernel_name(old.optimizer), kernel_name(new.optimizer)
    if names[0] != names[1]:
        yield f"optimizer: {place} {names[0]} -> {names[1]}: its state starts anew"
    elif not keeps_state(old, new):
        yield f"state: that of {place} starts anew"
    if old.codec != new.codec:
        yield f"codec: {place} {old.codec} -> {new.codec}"
    if old.state_codec != new.state_codec and keeps_state(old, new):
        yield f"state_codec: {place} {old.state_codec} -> {new.state_codec}"
    if (old.late is None) != (new.late is None):
        yield f"late: {place} {'is late now' if old.late is None else 'is not late any more'}"
