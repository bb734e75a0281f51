"""Psfuncs: code that runs at the rows. A class with a registered name, arguments, and `split`, `apply`, `merge`.

    client: psfunc.split(parts) -> one psfunc a shard
    shard:  psfunc.apply(task)  -> Answer
    client: psfunc.merge(answers) -> result

`kind` "get" reads rows, "update" writes them. A psfunc is a frozen dataclass whose fields are its arguments: numbers,
texts, bytes, lists and maps of them (they travel as msgpack). It holds no state: state lives in segments. pull, push,
delete and sweep are psfuncs like any other (`ps/psfuncs/`); docs/psfuncs.md has the list and a worked example of a
user's own.

`apply` runs on the shard's one thread of work. It returns an Answer, or is a generator that yields wherever it may be
interrupted and returns the Answer at its end: the shard runs it in slices, other requests between them. Its Task is
already checked, and cut down to the buckets that have not had this update. It raises before its first write or not at
all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.spec import RowOptimizer, TableSpec, register_optimizer
from ps.types import NOTHING_SEEN, Buckets, Floats, Gradients, Rows, Seen, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.table import Table

_MAX_DEPTH = 16  # of arguments
BucketNumbers: TypeAlias = NDArray[np.int64]  # [k]; ascending
Kind: TypeAlias = Literal["get", "update"]


@dataclass(frozen=True)
class Counts:
    """What an update did, in rows. `skipped`: rows (of a table-wide update: buckets) that had this update already;
    `refused`: keys that got no row, because they were not admitted or there was no room.
    """

    applied: int = 0
    created: int = 0
    nonfinite: int = 0
    dropped_above: int = 0
    dropped_below: int = 0
    skipped: int = 0
    refused: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class Answer:
    """What one shard gives back.

    values: numbers, texts, bytes, lists, maps. rows: float32 [n, width], one for each key of the task, in its order.
    positions: set at the client: where the shard's keys stand among the call's; None without keys.
    """

    values: Any = None
    rows: Rows | None = None
    counts: Counts = Counts()
    positions: slice | NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Task:
    """One call at one shard.

    keys: unique, grouped by bucket, or None for all existing rows of `buckets`. key_buckets: of each key. buckets:
    those that the call covers here, ascending: of the keys, or of the whole table as far as this shard owns it.
    payload: float32 [n, width], a row for each key, or None. learning_rates: float32 [num_segments], or empty.
    out: float32 [n, table width], or None: memory where rows for the answer are best put, for then they need no copy.
    seen: event time of an update, and of a push the shows and clicks of its keys.
    """

    table: Table
    keys: UniqueKeys | None
    key_buckets: Buckets | None
    buckets: BucketNumbers
    payload: Gradients | None
    step: int
    learning_rates: Floats
    out: Rows | None = None
    seen: Seen = NOTHING_SEEN


Running: TypeAlias = Generator[None, None, Answer]


class Psfunc:
    """What every psfunc is. Subclasses are frozen dataclasses registered with `@register("name")`."""

    name: ClassVar[str] = ""
    kind: ClassVar[Kind]
    takes_keys: ClassVar[Literal["always", "optional", "never"]] = "optional"
    takes_payload: ClassVar[bool] = False  # one row of floats for each key
    takes_learning_rates: ClassVar[bool] = False
    lets_updates_between: ClassVar[bool] = False  # an update whose slices may have others between them
    gives_rows: ClassVar[bool] = (
        False  # `merge` gives a row for each distinct key; the client spreads them over its own
    )

    def args(self) -> dict[str, Any]:
        """The arguments as a map that msgpack can carry; the shard rebuilds the psfunc from it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def check(self, spec: TableSpec) -> None:
        """Raise RequestError when the arguments do not fit the table. Runs before anything of the message does."""

    def payload_width(self, spec: TableSpec) -> int:
        """Floats of one row of the payload; by default as wide as the table."""
        return spec.width

    def row_width(self, spec: TableSpec) -> int:
        """Floats of one row of the answer, where it gives rows; by default as wide as the table."""
        return spec.width

    def split(self, parts: Sequence[slice | NDArray[np.int64] | None]) -> list[Psfunc]:
        """Client: the psfunc for each shard; parts[i] selects the call's keys that live there (None: no keys given)."""
        return [self] * len(parts)

    def apply(self, task: Task) -> Answer | Running:
        """Shard: run on the rows of the task."""
        raise NotImplementedError(f"psfunc {self.name!r} needs an `apply`")

    def merge(self, answers: Sequence[Answer]) -> Any:
        """Client: the shards' answers as one result. By default the sum of the counts."""
        return sum((answer.counts for answer in answers), Counts())


T = TypeVar("T", bound=type[Psfunc] | type[RowOptimizer])
_REGISTRY: dict[str, type[Psfunc]] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a psfunc, which must be a dataclass, or a RowOptimizer known under `name`, at shards and
    clients alike.

    Raises RequestError when another class has the name; running the same module again replaces its own.
    """

    def decorate(cls: T) -> T:
        if issubclass(cls, RowOptimizer):
            return register_optimizer(name, cls)
        present = _REGISTRY.get(name)
        if present is not None and (present.__module__, present.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RequestError(
                f"psfunc {name!r} of {cls.__module__} is registered by {present.__module__}; choose another name"
            )
        if "__dataclass_fields__" not in cls.__dict__:
            raise RequestError(
                f"psfunc {name!r}: put @dataclass(frozen=True) below @register, its fields are the arguments"
            )
        if getattr(cls, "kind", None) not in ("get", "update"):
            raise RequestError(f'psfunc {name!r}: set `kind` to "get" or "update"')
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_REGISTRY)


def lookup(name: str) -> type[Psfunc]:
    """The class of a name. Raises RequestError with the known names."""
    if name not in _REGISTRY:
        raise RequestError(
            f"no psfunc {name!r} here; known: {', '.join(names())}. A user's module must stand in psfunc_modules"
        )
    return _REGISTRY[name]


def encode_args(psfunc: Psfunc) -> bytes:
    """Arguments as the `args` of a call. Raises RequestError for what msgpack cannot carry."""
    args = psfunc.args()
    try:
        packed: bytes = msgpack.packb(args, default=_plain) if args else b""
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"psfunc {psfunc.name!r}: arguments must be numbers, texts, bytes, lists or maps: {error}"
        ) from error
    return packed


def _plain(value: Any) -> Any:
    """numpy scalars and arrays as numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def decode_args(name: str, data: bytes) -> Psfunc:
    """The psfunc of a call. Raises RequestError for an unknown name or arguments that do not fit."""
    cls = lookup(name)
    try:
        args = msgpack.unpackb(data) if data else {}
        if not isinstance(args, dict) or not all(isinstance(key, str) for key in args):
            raise ValueError("arguments are not a map by name")
        if _is_deeper(args, _MAX_DEPTH):
            raise ValueError(f"lists and maps are nested more than {_MAX_DEPTH} deep")
    except Exception as error:  # msgpack raises many classes on damaged bytes
        raise RequestError(f"psfunc {name!r}: arguments cannot be read: {error}") from error
    try:
        return cls(**args)
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        wanted = ", ".join(f.name for f in dataclasses.fields(cls)) or "none"  # type: ignore[arg-type]
        raise RequestError(f"psfunc {name!r}: arguments do not fit ({error}); it takes: {wanted}") from error


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and maps are nested deeper; printing such arguments could exhaust the stack."""
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(
        _is_deeper(each, depth - 1) for each in (value.values() if isinstance(value, dict) else value)
    )


def require_finite(name: str, **numbers: float) -> None:
    """Raise RequestError naming the first argument that is not a finite number."""
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RequestError(f"psfunc {name!r}: {argument} is {value!r}; it must be a finite number")


def columns_of(spec: TableSpec, segment: str | None) -> slice:
    """The columns of a segment in a row, of the whole row for None. Raises RequestError with the known segments."""
    if segment is None:
        return slice(0, spec.width)
    columns = spec.columns()
    if not isinstance(segment, str) or segment not in columns:
        raise RequestError(f"no segment {segment!r} in the table; it has: {', '.join(columns)}")
    return columns[segment]


def run_to_end(running: Answer | Running) -> Answer:
    """Run a psfunc's `apply` without interruption."""
    if isinstance(running, Answer):
        return running
    while True:
        try:
            next(running)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer


def bucket_slices(keys_buckets: NDArray[np.int32]) -> Iterator[tuple[int, slice]]:
    """(bucket, slice) of each group of a bucket-grouped array."""
    if len(keys_buckets) == 0:
        return
    starts = np.concatenate([[0], np.flatnonzero(np.diff(keys_buckets)) + 1, [len(keys_buckets)]])
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(keys_buckets[start]), slice(start, end)
