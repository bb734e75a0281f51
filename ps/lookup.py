"""The keys of a batch, made ready once: distinct, grouped by bucket, and validated."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ps.errors import RequestError
from ps.psfunc import Kind, Psfunc
from ps.spec import ClusterSpec, TableSpec
from ps.storage.unique import sum_by_key, unique_by_bucket
from ps.types import Floats, Gradients, Inverse, Keys, Offsets, Rows, UniqueKeys


@dataclass(frozen=True, eq=False)
class Lookup:
    """By table: keys, uint64 [u], unique and grouped by bucket; inverse, int64 [n], keys[inverse] are the raw keys;
    starts, int64 [num_buckets + 1], where each bucket's keys begin. Valid for the life of the cluster, whatever its
    routing."""

    keys: Mapping[str, UniqueKeys]
    inverse: Mapping[str, Inverse]
    starts: Mapping[str, Offsets]

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(self.keys)


def prepare(spec: ClusterSpec, keys: Mapping[str, Keys]) -> Lookup:
    """Raises RequestError for an unknown table or keys that are not uint64 [n]."""
    found = {
        table: unique_by_bucket(check_keys(spec, table, values), spec.num_buckets) for table, values in keys.items()
    }
    return Lookup(
        {table: parts[0] for table, parts in found.items()},
        {table: parts[1] for table, parts in found.items()},
        {table: parts[2] for table, parts in found.items()},
    )


def table_spec(spec: ClusterSpec, table: str) -> TableSpec:
    """Raises RequestError with the nearest names."""
    if table not in spec.tables:
        raise RequestError(f"no table {table!r}; {_known(table, spec.tables)}")
    return spec.tables[table]


def check_keys(spec: ClusterSpec, table: str, keys: Any) -> Keys:
    """uint64 [n], as given. An empty sequence of any kind passes."""
    table_spec(spec, table)
    array = np.asarray(keys)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.uint64)
    if array.dtype != np.uint64 or array.ndim != 1:
        raise RequestError(
            f"keys of table {table!r} are {_shape(array)}; they must be uint64 [n], as ps.keys.pack makes them"
        )
    return array


def check_rows(spec: ClusterSpec, table: str, gradients: Any, num_keys: int) -> Gradients:
    """float32 [num_keys, width], C-contiguous."""
    array, width = np.asarray(gradients), spec.tables[table].width
    if array.dtype != np.float32 or array.shape != (num_keys, width):
        raise RequestError(
            f"gradients of table {table!r} are {_shape(array)}; they must be float32 [{num_keys}, {width}]"
        )
    return np.ascontiguousarray(array)


def count_shown(spec: ClusterSpec, table: str, lookup: Lookup, shows: Any, clicks: Any) -> Floats | None:
    """float32 [u, 2]: shows and clicks of the lookup's keys, from those of each raw key (float32 [n]; None: one show,
    no click). None where the table wants none. Raises RequestError for wrong shapes or negative numbers.
    """
    inverse, num_keys = lookup.inverse[table], len(lookup.keys[table])
    given = {"shows": shows, "clicks": clicks}
    for name, values in given.items():
        if values is None:
            continue
        values = np.asarray(values)
        if not spec.tables[table].wants_counts:
            raise RequestError(
                f"{name} are given for table {table!r}, which neither keeps nor counts them; "
                "set keep_counts, or admission or eviction by score"
            )
        if values.dtype != np.float32 or values.shape != inverse.shape:
            raise RequestError(f"{name} of table {table!r} are {_shape(values)}; they must be float32 [{len(inverse)}]")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise RequestError(f"{name} of table {table!r} must be finite and not negative")
    if not spec.tables[table].wants_counts:
        return None
    raw = np.empty((len(inverse), 2), np.float32)
    raw[:, 0], raw[:, 1] = 1 if shows is None else shows, 0 if clicks is None else clicks
    return sum_by_key(raw, inverse, num_keys)


def check_psfunc(spec: ClusterSpec, table: str, psfunc: Any, kind: Kind, *, has_keys: bool, has_payload: bool) -> None:
    """Raises RequestError when the psfunc cannot be called like this."""
    layout = table_spec(spec, table)
    if not isinstance(psfunc, Psfunc):
        raise RequestError(f"{psfunc!r} is not a psfunc; give an object, such as ps.Sum()")
    if psfunc.kind != kind:
        raise RequestError(f"psfunc {psfunc.name!r} is of kind {psfunc.kind!r}; call client.{psfunc.kind}")
    if has_keys and psfunc.takes_keys == "never":
        raise RequestError(f"psfunc {psfunc.name!r} takes no keys: it works on all existing rows")
    if not has_keys and psfunc.takes_keys == "always":
        raise RequestError(f"psfunc {psfunc.name!r} needs keys")
    if has_payload != psfunc.takes_payload:
        raise RequestError(f"psfunc {psfunc.name!r} {'needs a' if psfunc.takes_payload else 'takes no'} payload")
    psfunc.check(layout)


def check_payload(spec: ClusterSpec, table: str, psfunc: Psfunc, lookup: Lookup, payload: Any) -> Rows:
    """float32 [u, w] in the order of the lookup's keys, from [n, w] in the order of raw ones, which must be unique."""
    array, width = np.asarray(payload), psfunc.payload_width(spec.tables[table])
    inverse, num_keys = lookup.inverse[table], len(lookup.keys[table])
    if array.dtype != np.float32 or array.shape != (len(inverse), width):
        raise RequestError(
            f"payload for table {table!r} is {_shape(array)}; it must be float32 [{len(inverse)}, {width}]"
        )
    if num_keys != len(inverse):
        raise RequestError(
            f"payload for table {table!r}: keys must be unique, and {len(inverse) - num_keys} are duplicates"
        )
    rows = np.empty_like(array)
    rows[inverse] = array
    return rows


def learning_rates(spec: ClusterSpec, table: str, given: float | Mapping[str, float] | None) -> list[float]:
    """One per segment: given for all, by segment, or else the optimizer's own. Raises RequestError for an unknown
    segment.
    """
    segments = table_spec(spec, table).segments
    if given is None:
        given = {}
    elif not isinstance(given, Mapping):
        given = dict.fromkeys(segments, given)
    for name, rate in given.items():
        if name not in segments:
            raise RequestError(f"table {table!r} has no segment {name!r}; {_known(name, segments)}")
        if not (np.isfinite(rate) and rate >= 0):
            raise RequestError(
                f"learning rate of segment {name!r} of table {table!r} is {rate}; it must be finite, >= 0"
            )
    return [float(given.get(name, segment.optimizer.learning_rate)) for name, segment in segments.items()]


def sweeps(spec: TableSpec) -> bool:
    """Whether a push to the table is followed by a table-wide update."""
    return any(getattr(segment.optimizer, "sweep", False) for segment in spec.segments.values())


def _shape(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _known(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(names))}"
