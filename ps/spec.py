"""What a table is: segments with their initializer, optimizer and codec. The same models are read from YAML and from
Python.

Options that change behaviour (what is learnt): dim, initializer, optimizer, codec, seed, num_buckets.
Options that change only cost: memory_limit_bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Immutable, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class SGD(Spec):
    """w -= lr * (g + l2 * w)."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.01, ge=0)
    l2: float = Field(0.0, ge=0)


class AdaGrad(Spec):
    """Duchi et al. 2011, per element: a += g^2; w -= lr * g / (sqrt(a) + eps); g includes l2 * w. As
    torch.optim.Adagrad.
    """

    name: Literal["adagrad"] = "adagrad"
    learning_rate: float = Field(0.01, ge=0)
    initial_accumulator: float = Field(0.0, ge=0)
    eps: float = Field(1e-10, gt=0)
    l2: float = Field(0.0, ge=0)


class RowWiseAdaGrad(Spec):
    """One accumulator a row: a += mean(g^2); w -= lr * g / (sqrt(a) + eps); g includes l2 * w. FBGEMM's
    EXACT_ROWWISE_ADAGRAD.
    """

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: float = Field(0.01, ge=0)
    eps: float = Field(1e-8, gt=0)
    l2: float = Field(0.0, ge=0)


class Adam(Spec):
    """Kingma and Ba 2015. Lazy: only pushed rows move, each with its own step count, for bias correction.

    With `sweep`, a push only accumulates, and one table-wide update a step applies Adam and L2 to every existing row,
    as dense Adam does; the step count is then the push's `step`.

    l2_per "push": a push adds l2 * w to the gradient. "step": it adds l2 * w for every step since the row's last push,
    the whole-table pull in expectation, so that rare features are regularised as they are by a sweep.
    """

    name: Literal["adam"] = "adam"
    learning_rate: float = Field(0.001, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    l2: float = Field(0.0, ge=0)
    l2_per: Literal["push", "step"] = "push"
    sweep: bool = False

    @model_validator(mode="after")
    def _one_way_to_make_up(self) -> Adam:
        if self.sweep and self.l2_per == "step":
            raise ValueError(
                "sweep moves every row at every step already; l2_per: step is for rows that are only pushed"
            )
        return self


class FTRL(Spec):
    """FTRL-proximal, McMahan et al. 2013, algorithm 1; `learning_rate` is its alpha."""

    name: Literal["ftrl"] = "ftrl"
    learning_rate: float = Field(0.05, gt=0)
    beta: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Initializer = Annotated[Zeros | Constant | Uniform | Normal, Field(discriminator="name"), BeforeValidator(_named)]
Optimizer = Annotated[
    SGD | AdaGrad | RowWiseAdaGrad | Adam | FTRL, Field(discriminator="name"), BeforeValidator(_named)
]
CodecName = Literal["fp32", "fp16", "bf16"]


class SegmentSpec(Spec):
    """Part of a row with its own dim, initializer, optimizer and codec."""

    dim: int = Field(ge=1, le=4096)
    initializer: Initializer = Zeros()
    optimizer: Optimizer = AdaGrad()
    codec: CodecName = "fp32"


class TableSpec(Spec):
    """One row layout. Segments keep their order; a row is their values side by side."""

    segments: dict[str, SegmentSpec] = Field(min_length=1)
    memory_limit_bytes: int | None = Field(None, gt=0)

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
    psfunc_modules: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _power_of_two(self) -> ClusterSpec:
        if not 1 <= self.num_buckets <= 1 << 20 or self.num_buckets & (self.num_buckets - 1):
            raise ValueError(f"num_buckets is {self.num_buckets}; it must be a power of two between 1 and {1 << 20}")
        return self
