"""Where samples come from, in which form, order and size of batch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from workers.config.section import Section

Split = Literal["train", "valid", "test"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _shuffle(value: Any) -> Any:
    if value in ("full", "none") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be full, none or a number of rows, found {value!r}")


Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Generated(Section):
    """The generated click log; workers/samples/generated.py says how a row and its probability are made.

    rows: of each split, one after another in event time. keys: distinct keys of each categorical field; the first two
    are the ones whose latent vectors matter most (user and item). tag_keys, max_tags: the multi-valued field `tags`;
    0 keys for none. zipf: exponent of the keys' popularity. positions, position_bias: P(seen) = (1 + position) **
    -position_bias. dim: of the teacher's latent vectors. linear, pairs, crosses, numeric: standard deviations that
    each part of the teacher adds to the logit. bias: its mean. drift: 0 a teacher that stays, 1 one that is another
    by the end of the log. noise: share of the labels that are a coin's. days: length of the log.
    """

    train_rows: int = Field(default=400_000, ge=1)
    valid_rows: int = Field(default=50_000, ge=1)
    test_rows: int = Field(default=50_000, ge=1)
    keys: dict[str, Annotated[int, Field(ge=2, le=1 << 40)]] = {
        "user": 1500,
        "item": 400,
        "category": 30,
        "city": 60,
        "hour": 24,
        "device": 6,
    }
    tag_keys: int = Field(default=200, ge=0)
    max_tags: int = Field(default=4, ge=1, le=64)
    zipf: float = Field(default=1.05, ge=0)
    positions: int = Field(default=5, ge=1, le=1000)
    position_bias: float = Field(default=0.3, ge=0)
    dim: int = Field(default=3, ge=1, le=256)
    linear: float = Field(default=0.8, ge=0)
    pairs: float = Field(default=1.9, ge=0)
    crosses: float = Field(default=0.5, ge=0)
    numeric: float = Field(default=0.6, ge=0)
    bias: float = -1.0
    drift: float = Field(default=0.06, ge=0, le=1)
    noise: float = Field(default=0.02, ge=0, le=1)
    days: float = Field(default=14.0, gt=0)
    seed: int = Field(default=1, ge=0, lt=1 << 63)

    @field_validator("keys")
    @classmethod
    def _two_or_more(cls, keys: dict[str, int]) -> dict[str, int]:
        taken = {"position", "tags", "price", "click", "propensity", "event_time"} & set(keys)
        if len(keys) < 2 or taken:
            raise ValueError(f"needs two or more fields, none named {', '.join(sorted(taken)) or 'as another column'}")
        return keys

    def columns(self) -> list[str]:
        """The columns of the log."""
        tags = ["tags"] if self.tag_keys else []
        return [*self.keys, *tags, "position", "price", "propensity", "event_time", "click"]


class Data(Section):
    """Behaviour: the files and how they are read, batch_size, shuffle, drop_last. Cost only: prefetch_batches.


    root: relative to the current directory. train, valid, test: paths or globs relative to root, in this order (a
    glob sorted). columns: names, for files without a header. quote: whether "..." protects a delimiter (csv yes, tsv
    no by default). shuffle: full (the split is held in memory and permuted every epoch), a number of rows (permuted
    window by window while streaming) or none. drop_last: leave out the last batch of an epoch where it is not full.

    """

    root: str = "."
    format: Literal["csv", "tsv", "libsvm", "parquet", "generated"] = "csv"
    header: bool = True
    columns: tuple[str, ...] = ()
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quote: bool | None = None
    train: Paths = ()
    valid: Paths = ()
    test: Paths = ()
    generated: Generated | None = None
    batch_size: int = Field(default=1024, ge=1)
    shuffle: Annotated[Literal["full", "none"] | int, BeforeValidator(_shuffle)] = "full"
    drop_last: bool = False
    prefetch_batches: int = Field(default=4, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if self.format == "generated":
            given = [name for name in ("train", "valid", "test", "columns") if getattr(self, name)]
            if given:
                raise ValueError(f"'{given[0]}' is for files, found format: generated")
            return self
        if self.generated is not None:
            raise ValueError(f"'generated' is only for format: generated, found format: {self.format}")
        if not self.train:
            raise ValueError("'train' is missing: one or more paths relative to data.root")
        if self.format in ("csv", "tsv"):
            if self.header and self.columns:
                raise ValueError(
                    "'columns' names the columns of files without a header; remove it or add header: false"
                )
            if not self.header and not self.columns:
                raise ValueError("header: false needs 'columns', the names of the columns in their order")
            if len(set(self.columns)) < len(self.columns):
                twice = next(name for name in self.columns if self.columns.count(name) > 1)
                raise ValueError(f"'columns' has '{twice}' twice")
        else:
            given = [name for name in ("columns", "delimiter", "quote") if getattr(self, name) not in (None, ())]
            if given:
                raise ValueError(f"'{given[0]}' is for csv and tsv, found format: {self.format}")
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the job has."""
        names: tuple[Split, ...] = ("train", "valid", "test")
        return tuple(name for name in names if self.format == "generated" or getattr(self, name))

    @property
    def log(self) -> Generated:
        """The generated log's parameters."""
        return self.generated or Generated()
