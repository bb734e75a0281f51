"""What a table is: segments with their initializer, optimizer and codec. The same models are read from YAML and from
Python.

Options that change behaviour (what is learnt): dim, initializer, optimizer, codec, state_codec, late, seed,
num_buckets, admission, eviction, score, and memory_limit_bytes where it is reached. Options that change only cost:
keep_counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, WrapValidator, model_validator
from pydantic_core import PydanticKnownError

from ps.byte_sizes import ByteSize
from ps.delta_options import DeltaOptions
from ps.durability import Durability
from ps.errors import RequestError
from ps.lifetime import Admission, Always, BySlot, Eviction, Score
from ps.row_code import Float64
from ps.strict import Spec
from ps.types import CodecName
from ps.user_modules import load_modules


class Zeros(Spec):
    name: Literal["zeros"] = "zeros"


class Constant(Spec):
    name: Literal["constant"] = "constant"
    value: float


class Uniform(Spec):
    """Uniform on [-scale, scale)."""

    name: Literal["uniform"] = "uniform"
    scale: float = Field(1e-4, ge=0)


class Normal(Spec):
    """Mean 0 and standard deviation `std`; a sum of twelve uniforms, so bounded by 6 std."""

    name: Literal["normal"] = "normal"
    std: float = Field(1e-4, ge=0)


OPTIMIZER_ROLES = ("init_state", "update", "sweep", "rebase_state")


class RowOptimizer(Spec):
    """What every optimizer of a segment is: a name, a learning rate, fields of its own.

    A user's derives from it, is registered with `@ps.register("name")`, and has methods that are compiled into the
    shard's loop: `update(self, values, state, gradient)` and, where it needs them, `init_state`, `sweep`,
    `rebase_state`. docs/psfuncs.md.
    """

    name: str = ""
    learning_rate: float = Field(0.01, ge=0)

    def state_dim(self, dim: int) -> int:
        """Floats of state that a row of `dim` values keeps."""
        return 0

    def needs_exact_state(self) -> bool:
        """Whether state holds numbers that must not be rounded, such as steps: then it is kept in fp32 only."""
        return False


class SGD(RowOptimizer):
    """w -= lr * (g + l2 * w)."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.01, ge=0)
    l2: float = Field(0.0, ge=0)


class AdaGrad(RowOptimizer):
    """Duchi et al. 2011, per element: a += g^2; w -= lr * g / (sqrt(a) + eps); g includes l2 * w. As
    torch.optim.Adagrad.
    """

    name: Literal["adagrad"] = "adagrad"
    learning_rate: float = Field(0.01, ge=0)
    initial_accumulator: float = Field(0.0, ge=0)
    eps: float = Field(1e-10, gt=0)
    l2: float = Field(0.0, ge=0)


class RowWiseAdaGrad(RowOptimizer):
    """One accumulator a row: a += mean(g^2); w -= lr * g / (sqrt(a) + eps); g includes l2 * w. FBGEMM's
    EXACT_ROWWISE_ADAGRAD.
    """

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: float = Field(0.01, ge=0)
    eps: float = Field(1e-8, gt=0)
    l2: float = Field(0.0, ge=0)


class Adam(RowOptimizer):
    """Kingma and Ba 2015. Lazy: only pushed rows move, each with its own step count, for bias correction.

    With `sweep`, a push only accumulates, and one table-wide update a step applies Adam and L2 to every existing row,
    as dense Adam does; the step count is then the push's `step`.

    l2_per "push": a push adds l2 * w to the gradient. "step": it adds l2 * w for every step since the row's last push,
    the whole-table pull in expectation, so that rare features are regularised as they are by a sweep.
    """

    name: Literal["adam"] = "adam"
    learning_rate: float = Field(0.001, ge=0)
    beta1: Float64 = Field(0.9, ge=0, lt=1)
    beta2: Float64 = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    l2: Float64 = Field(0.0, ge=0)
    l2_per: Literal["push", "step"] = "push"
    sweep: bool = False

    @model_validator(mode="after")
    def _one_way_to_make_up(self) -> Adam:
        if self.sweep and self.l2_per == "step":
            raise ValueError(
                "sweep moves every row at every step already; l2_per: step is for rows that are only pushed"
            )
        return self

    def needs_exact_state(self) -> bool:
        return self.l2_per == "step"


class FTRL(RowOptimizer):
    """FTRL-proximal, McMahan et al. 2013, algorithm 1; `learning_rate` is its alpha."""

    name: Literal["ftrl"] = "ftrl"
    learning_rate: float = Field(0.05, gt=0)
    beta: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Initializer = Annotated[Zeros | Constant | Uniform | Normal, Field(discriminator="name"), BeforeValidator(_named)]
_USERS: dict[str, type[RowOptimizer]] = {}  # registered by users' modules
OptimizerClass = TypeVar("OptimizerClass", bound=type[RowOptimizer])


def register_optimizer(name: str, cls: OptimizerClass) -> OptimizerClass:
    """Make a user's optimizer known under `name`. Raises RequestError when another one has it; running the same module
    again replaces its own.
    """
    present = _USERS.get(name)
    if name in _OURS or (present and (present.__module__, present.__qualname__) != (cls.__module__, cls.__qualname__)):
        owner = present.__module__ if present else "Weir itself"
        raise RequestError(f"optimizer {name!r} of {cls.__module__} is registered by {owner}; choose another name")
    if not name.isidentifier():
        raise RequestError(f"optimizer {name!r}: a name is of letters, digits and underscores")
    if not callable(getattr(cls, "update", None)):
        raise RequestError(f"optimizer {name!r} needs a method update(self, values, state, gradient)")
    named: type[RowOptimizer] = cls
    field = named.model_fields["name"]
    field.default, field.annotation = name, Literal[name]  # type: ignore[assignment]
    named.model_rebuild(force=True)
    _USERS[name] = cls
    return cls


def checked_state_dim(optimizer: RowOptimizer, dim: int) -> int:
    """A user's `state_dim`. Raises RequestError for what is no number of floats."""
    found = optimizer.state_dim(dim)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= 1 << 16:
        raise RequestError(f"optimizer {optimizer.name!r}: state_dim({dim}) is {found!r}; it must be 0 to {1 << 16}")
    return found


def _chosen(value: Any, ours: Callable[[Any], RowOptimizer]) -> RowOptimizer:
    """A user's optimizer by its name, or one of ours."""
    value = _named(value)
    if isinstance(value, RowOptimizer):
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if name in _USERS:
        return _USERS[name].model_validate(value)
    if isinstance(name, str) and name not in _OURS and _USERS:
        known = ", ".join(repr(each) for each in (*_OURS, *sorted(_USERS)))
        context = {"discriminator": "'name'", "tag": name, "expected_tags": known}
        raise PydanticKnownError("union_tag_invalid", context)
    return ours(value)


_OURS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl")
Optimizer = Annotated[
    SerializeAsAny[Annotated[SGD | AdaGrad | RowWiseAdaGrad | Adam | FTRL, Field(discriminator="name")]],
    WrapValidator(_chosen),
]
StateCodecName = Literal["fp32", "bf16"]


class SegmentSpec(Spec):
    """Part of a row with its own dim, initializer, optimizer and codec.

    late: the score of a row (TableSpec.score) from which it has the segment, the push that brings it included. Until
    then the segment takes no memory, reads as its initial value, and its gradient is dropped.
    """

    dim: int = Field(ge=1, le=4096)
    initializer: Initializer = Zeros()
    optimizer: Optimizer = AdaGrad()  # one of ours or a user's RowOptimizer
    codec: CodecName = "fp32"
    state_codec: StateCodecName = "fp32"  # of the optimizer's state
    late: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _exact_state(self) -> SegmentSpec:
        if self.state_codec != "fp32" and self.optimizer.needs_exact_state():
            variant = " with l2_per: step" if isinstance(self.optimizer, Adam) else ""
            raise ValueError(
                f"state_codec {self.state_codec} would round the state of {self.optimizer.name}{variant}, which holds "
                "numbers that must stay exact, such as steps; use fp32"
            )
        return self


class TableSpec(Spec):
    """One row layout. Segments keep their order; a row is their values side by side.

    memory_limit_bytes: of this table at each shard, a number or text as 8GiB; at start it must lie below what kills the
    process (ps/memory_limits.py).
    admission, eviction: which keys earn a row and which rows lose it. score: how shows and clicks are weighed there.
    keep_counts: rows keep shows, clicks and the time of their last push though nothing needs them. when_full: what a
    push with new keys does at the memory limit: raise MemoryLimitError, or make no row for them and count them refused.
    """

    segments: dict[str, SegmentSpec] = Field(min_length=1)
    memory_limit_bytes: Annotated[ByteSize, Field(gt=0)] | None = None
    when_full: Literal["error", "refuse"] = "error"
    admission: Admission = Always()
    eviction: Eviction | None = None
    score: Score = Score()
    keep_counts: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TableSpec:
        eviction = self.eviction
        if eviction is not None:
            if eviction.norm_segment is not None and eviction.norm_segment not in self.segments:
                raise ValueError(
                    f"eviction.norm_segment: no segment {eviction.norm_segment!r}; there are {', '.join(self.segments)}"
                )
            if eviction.when_full is not None and self.memory_limit_bytes is None:
                raise ValueError("eviction.when_full: needs memory_limit_bytes")
        return self

    @model_validator(mode="after")
    def _late_segments(self) -> TableSpec:
        scores = {name: segment.late for name, segment in self.segments.items()}
        if None not in scores.values():
            raise ValueError("every segment is late; a row begins with one that is not, such as linear: {dim: 1}")
        if len(set(scores.values()) - {None}) > 1:
            given = ", ".join(f"{name}: {score}" for name, score in scores.items() if score is not None)
            raise ValueError(f"late is {given}; a row gets all its late segments at one score")
        return self

    @property
    def late(self) -> float | None:
        """The score from which a row has its late segments; None where there are none."""
        return next((segment.late for segment in self.segments.values() if segment.late is not None), None)

    def with_slots(self, slots: Mapping[str, int]) -> TableSpec:
        """The spec with fields' names in admission and eviction replaced by their slots. Raises ValueError for an
        unknown one.
        """
        changed: dict[str, Any] = {}
        for name in ("admission", "eviction"):
            options = getattr(self, name)
            if isinstance(options, BySlot):
                try:
                    changed[name] = options.with_slots(slots)
                except ValueError as error:
                    raise ValueError(f"{name}.{error}") from error
        return self.model_copy(update=changed)

    @property
    def keeps_counts(self) -> bool:
        """Whether rows keep shows and clicks."""
        eviction = self.eviction
        by_score = eviction is not None and (eviction.min_score or eviction.when_full == "lowest_score")
        return self.keep_counts or bool(by_score) or self.late is not None

    @property
    def keeps_time(self) -> bool:
        """Whether rows keep the event time of their last push."""
        eviction = self.eviction
        by_age = eviction is not None and (eviction.by_age or eviction.when_full == "oldest")
        return self.keeps_counts or by_age

    @property
    def wants_counts(self) -> bool:
        """Whether a push says how often its keys were shown and clicked."""
        return self.keeps_counts or self.admission.name in ("count", "score")

    @property
    def width(self) -> int:
        """Floats of a decoded row: the sum of the segments' dims."""
        return sum(segment.dim for segment in self.segments.values())

    def columns(self) -> dict[str, slice]:
        """Columns of each segment in a decoded row."""
        slices, start = {}, 0
        for name, segment in self.segments.items():
            slices[name] = slice(start, start + segment.dim)
            start += segment.dim
        return slices


class ClusterSpec(Spec):
    """Everything that shards must agree on before the first row exists. It never changes afterwards."""

    tables: dict[str, TableSpec] = Field(min_length=1)
    num_buckets: int = 256  # at least 64 per shard at the largest planned number of shards
    seed: int = 0
    psfunc_modules: tuple[str, ...] = ()  # users' modules: imported before the rest is read, for it may name theirs
    durability: Durability = Durability()
    deltas: DeltaOptions | None = None  # None: nothing is published
    check: bool = False  # users' row functions are compiled with bounds checks: slower, to find mistakes

    def rows_only(self) -> ClusterSpec:
        """Without what may differ between two starts over the same rows."""
        return self.model_copy(update={"durability": Durability(), "deltas": None, "check": False})

    @model_validator(mode="before")
    @classmethod
    def _load_modules(cls, given: Any) -> Any:
        return with_modules(given)

    @model_validator(mode="after")
    def _consistent(self) -> ClusterSpec:
        if not 1 <= self.num_buckets <= 1 << 20 or self.num_buckets & (self.num_buckets - 1):
            raise ValueError(f"num_buckets is {self.num_buckets}; it must be a power of two between 1 and {1 << 20}")
        if self.durability.keeps_journal and not self.durability.directory:
            raise ValueError(
                f"durability.directory: missing; mode {self.durability.mode!r} needs a folder for the journals"
            )
        if self.deltas is not None:
            self.deltas.check({name: table.segments for name, table in self.tables.items()})
        for name, table in self.tables.items():
            try:
                table.with_slots({})
            except ValueError as error:
                raise ValueError(f"tables.{name}.{error}") from error
        return self


def with_modules(given: Any) -> Any:
    """Import the `psfunc_modules` of a spec or configuration that is about to be validated; returns it."""
    modules = given.get("psfunc_modules") if isinstance(given, Mapping) else None
    if isinstance(modules, Sequence) and all(isinstance(module, str) for module in modules):
        load_modules([modules] if isinstance(modules, str) else modules)
    return given
