"""Updates of values: Fill, Scale, Map, and the class that a user's own derive from. Optimizer state is left as it is.

Without keys they see existing rows only; with keys they create missing rows, from their initial values. A row whose
new values are not finite keeps the old ones and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.psfunc import Answer, Counts, Kind, Psfunc, Running, Task, columns_of, register, require_finite
from ps.spec import TableSpec
from ps.types import Keys, Rows, UniqueKeys

if TYPE_CHECKING:
    from ps.storage.reading import Block

_CHUNK_KEYS = 4096
Commit = Callable[[], Counts]


@dataclass(frozen=True)
class RowUpdate(Psfunc):
    """New values from old ones, block by block. A user's update sets `compute`.

    The results of all blocks go to scratch and are written after the last one, so that an error leaves the table as
    it was: the scratch takes as much memory as the values of the rows concerned. segment: the segment to write, None
    for the whole row.
    """

    kind: ClassVar[Kind] = "update"
    never_raises: ClassVar[bool] = False  # `compute` cannot fail: blocks are written at once, without scratch
    segment: str | None = field(default=None, kw_only=True)

    def compute(self, values: Rows, keys: Keys) -> Rows:
        """float32 [k, dim] from values: float32 [k, dim] (may be changed in place), keys: uint64 [k]."""
        raise NotImplementedError(f"update {self.name!r} needs a `compute`")

    def check(self, spec: TableSpec) -> None:
        columns_of(spec, self.segment)

    def apply(self, task: Task) -> Running:
        counts, pending = Counts(), list[Commit]()
        for commit in self._blocks(task) if task.keys is None else self._one_commit(task, task.keys):
            if commit is None:
                pass  # still computing
            elif self.never_raises:
                counts += commit()
            else:
                pending.append(commit)
            yield
        for commit in pending:
            counts += commit()
            yield
        return Answer(counts=counts)

    def _blocks(self, task: Task) -> Iterator[Commit]:
        """Existing rows: a commit for each block."""
        for bucket in task.buckets.tolist():
            for block in task.table.scan(bucket, self.segment):
                yield partial(_write_block, block, *self._computed(block.values, block.keys))

    def _one_commit(self, task: Task, keys: UniqueKeys) -> Iterator[Commit | None]:
        """Given keys: one commit at the end, because creating rows may pass the memory limit, and then nothing is
        written.
        """
        columns = columns_of(task.table.spec, self.segment)
        new = np.empty((len(keys), columns.stop - columns.start), np.float32)
        finite = np.empty(len(keys), np.bool_)
        for start in range(0, len(keys), _CHUNK_KEYS):
            part = slice(start, start + _CHUNK_KEYS)
            old = np.ascontiguousarray(task.table.pull(keys[part])[:, columns])
            new[part], finite[part] = self._computed(old, keys[part])
            yield None
        yield partial(self._write_keys, task, keys, new, finite)

    def _computed(self, values: Rows, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """(new values, which rows are finite); rows that are not finite get their old values back."""
        old = values.copy()
        with np.errstate(all="ignore"):
            new = np.asarray(self.compute(values, keys))
        if new.shape != old.shape or not np.issubdtype(new.dtype, np.number):
            raise RequestError(
                f"psfunc {self.name!r} returned {new.dtype} {new.shape}; it must return float32 {old.shape}"
            )
        with np.errstate(over="ignore"):
            new = np.ascontiguousarray(new, np.float32)
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(new), axis=1)
        if not finite.all():
            new = np.where(finite[:, None], new, old)
        return new, finite

    def _write_keys(self, task: Task, keys: UniqueKeys, new: Rows, finite: NDArray[np.bool_]) -> Counts:
        # A refused row is not created either.
        kept, values = (keys, new) if finite.all() else (keys[finite], new[finite])
        written = task.table.write_values(kept, values, self.segment, step=task.step, seen=task.seen)
        return Counts(**written._asdict()) + Counts(nonfinite=len(keys) - len(kept))


def _write_block(block: Block, new: Rows, finite: NDArray[np.bool_]) -> Counts:
    num_refused = block.write(new) + int(len(finite) - np.count_nonzero(finite))
    return Counts(applied=len(finite) - num_refused, nonfinite=num_refused)


@register("fill")
@dataclass(frozen=True)
class Fill(RowUpdate):
    """Set every element to `value`."""

    never_raises: ClassVar[bool] = True
    value: float

    def __post_init__(self) -> None:
        require_finite("fill", value=self.value)

    def compute(self, values: Rows, keys: Keys) -> Rows:
        return np.full_like(values, self.value)


@register("scale")
@dataclass(frozen=True)
class Scale(RowUpdate):
    """Multiply every element by `factor`."""

    never_raises: ClassVar[bool] = True
    factor: float

    def __post_init__(self) -> None:
        require_finite("scale", factor=self.factor)

    def compute(self, values: Rows, keys: Keys) -> Rows:
        return values * np.float32(self.factor)


# name: (number of arguments, function of float32 x and float32 arguments). In float32 throughout.
FUNCTIONS: dict[str, tuple[int, Callable[..., Rows]]] = {
    "abs": (0, np.abs),
    "add": (1, lambda x, a: x + a),
    "axpb": (2, lambda x, a, b: a * x + b),
    "clip": (2, np.clip),
    "div": (1, lambda x, a: x / a),
    "exp": (0, np.exp),
    "log": (0, np.log),
    "log1p": (0, np.log1p),
    "max": (1, np.maximum),
    "min": (1, np.minimum),
    "mul": (1, lambda x, a: x * a),
    "neg": (0, np.negative),
    "pow": (1, np.power),
    "sign": (0, np.sign),
    "sqrt": (0, np.sqrt),
    "square": (0, np.square),
}


@register("map")
@dataclass(frozen=True)
class Map(RowUpdate):
    """Apply a function of FUNCTIONS to every element: Map("sqrt"), Map("add", 1.0), Map("axpb", 2.0, 1.0),
    Map("clip", -1.0, 1.0).
    """

    never_raises: ClassVar[bool] = True
    function: str
    a: float | None = None
    b: float | None = None

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise RequestError(f"map has no function {self.function!r}; known: {', '.join(sorted(FUNCTIONS))}")
        wanted = FUNCTIONS[self.function][0]
        given = [value for value in (self.a, self.b) if value is not None]
        if len(given) != wanted:
            raise RequestError(f"map {self.function!r} takes {wanted} numbers after its name; {len(given)} given")
        require_finite(f"map {self.function}", **dict(zip("ab", given, strict=False)))

    def compute(self, values: Rows, keys: Keys) -> Rows:
        arguments = [np.float32(value) for value in (self.a, self.b) if value is not None]
        return FUNCTIONS[self.function][1](values, *arguments)
