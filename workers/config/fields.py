"""Fields and labels: which columns of the data mean what.

Options that change behaviour only; every one is part of what a trained model is. `column` is the field's own name
unless given.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ps.keys import MAX_SLOT
from workers.config.section import Section

Slot = Annotated[int | None, Field(ge=0, le=MAX_SLOT)]


class Categorical(Section):
    """One value a sample, hashed as text. An empty or missing value is a feature of its own: the hash of ''."""

    type: Literal["categorical"] = "categorical"
    column: str | None = None
    table: str | None = None
    slot: Slot = None


class Multi(Section):
    """Any number of values a sample: text split at `separator`, or a Parquet list. The first `max_length` values count.

    An empty text or list is an empty bag: a row of zeros.
    """

    type: Literal["multi"] = "multi"
    column: str | None = None
    table: str | None = None
    slot: Slot = None
    separator: str = Field(default="|", min_length=1)
    pooling: Literal["sum", "mean"] = "sum"
    max_length: int | None = Field(default=None, ge=1)


class Numeric(Section):
    """A number. `raw` and `log` go to the dense vector; `buckets` makes a key of the interval that it falls into.

    log: sign(x) * log(1 + |x|), so that negative values keep their sign. A missing number reads as `missing`. buckets:
    interval i holds boundaries[i - 1] <= x < boundaries[i]; a missing number is an interval of its own.
    """

    type: Literal["numeric"] = "numeric"
    column: str | None = None
    transform: Literal["raw", "log", "buckets"] = "raw"
    missing: float = 0.0
    boundaries: tuple[float, ...] = ()
    table: str | None = None
    slot: Slot = None

    @property
    def is_dense(self) -> bool:
        return self.transform != "buckets"

    @model_validator(mode="after")
    def _consistent(self) -> Numeric:
        if self.is_dense:
            given = [name for name in ("boundaries", "table", "slot") if getattr(self, name) not in (None, ())]
            if given:
                raise ValueError(f"'{given[0]}' is only for transform: buckets, found transform: {self.transform}")
        elif not self.boundaries or any(b <= a for a, b in itertools.pairwise(self.boundaries)):
            raise ValueError(f"boundaries must be one or more growing numbers, found {list(self.boundaries)}")
        return self


def _typed(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


FeatureField = Annotated[Categorical | Multi | Numeric, Field(discriminator="type"), BeforeValidator(_typed)]


class Label(Section):
    """What is to be predicted, one task each.

    binary: 0 or 1, or made so by a rule: `equals` (1 where the text is this one) or `at_least` (1 where the number is
    this or more). weight: a number >= 0, for weighted logistic regression (watch time: a positive of that weight, a
    negative at 0). real: any number. `empty: masked` lets a value be missing: that sample does not count for the
    task.
    """

    column: str | None = None
    type: Literal["binary", "weight", "real"] = "binary"
    equals: str | None = None
    at_least: float | None = None
    empty: Literal["error", "masked"] = "error"

    @model_validator(mode="after")
    def _one_rule(self) -> Label:
        rules = [name for name in ("equals", "at_least") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError("'equals' and 'at_least' are both given; a label has one rule")
        if rules and self.type != "binary":
            raise ValueError(f"'{rules[0]}' makes a binary label, found type: {self.type}")
        return self


LabelField = Annotated[Label, BeforeValidator(_typed)]
