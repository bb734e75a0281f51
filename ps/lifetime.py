"""Which keys earn a row, how a row's score is counted, and which rows lose theirs: the options of a table.

All of them change what is learnt. Times are event times, in seconds since 1970: a push carries its own, so the same
stream gives the same rows whenever it is replayed. Slots are numbers here; a training configuration may name fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ps.strict import Spec

_SKETCH_BYTES = 16 << 20
_MAX_SLOT = 4095
_MAX_THRESHOLD = 4096


SlotName = Annotated[int | str, Field(union_mode="left_to_right")]  # a slot, or the field of a training configuration
PerSlot = Annotated[dict[SlotName, Annotated[float, Field(ge=0)]], Field(default_factory=dict)]


class Score(Spec):
    """score = show * (shows - clicks) + click * clicks; both counts are multiplied by `decay` at each new day.

    Paddle's CTR accessor. Decay is lazy: a row's counts are brought up to date when it is pushed or judged.
    """

    show: float = Field(0.1, ge=0)
    click: float = Field(1.0, ge=0)
    decay: float = Field(0.98, gt=0, le=1)


class Always(Spec):
    """The first push creates the row."""

    name: Literal["always"] = "always"


class Chance(Spec):
    """Every push of a key without a row creates it with this probability, drawn from seed, key and step."""

    name: Literal["chance"] = "chance"
    probability: float = Field(gt=0, le=1)


class BySlot(Spec):
    """Options with a number for single slots."""

    slots: PerSlot

    def with_slots(self, slots: Mapping[str, int]) -> Self:
        """The options with fields' names replaced by their slots. Raises ValueError for a name that is no field's."""
        found: dict[int | str, float] = {}
        for name, value in self.slots.items():
            slot = name if isinstance(name, int) else slots.get(name)
            if slot is None:
                raise ValueError(f"slots.{name}: no keyed field has this name; there are: {', '.join(slots) or 'none'}")
            if not 0 <= slot <= _MAX_SLOT:
                raise ValueError(f"slots.{name}: a slot is 0 to {_MAX_SLOT}")
            found[slot] = value
        return self.model_copy(update={"slots": found})


class Sketched(BySlot):
    """A key earns its row when what it has gathered reaches `threshold`, this push included.

    It is gathered in a sketch of bounded size, which may take a key for more than it is, never for less; when the
    sketch is full, all that it holds is halved. slots: thresholds of single slots.
    """

    threshold: float = Field(gt=0, le=_MAX_THRESHOLD)
    sketch_bytes: int = Field(_SKETCH_BYTES, ge=1 << 12, le=1 << 40)  # of the whole table, over all shards

    @model_validator(mode="after")
    def _counters_reach(self) -> Self:
        # All thresholds share one scale of 16-bit counters: a greater one would round the others away.
        for slot, threshold in self.slots.items():
            if threshold > _MAX_THRESHOLD:
                raise ValueError(f"slots.{slot}: a threshold is at most {_MAX_THRESHOLD}, found {threshold:g}")
        return self


class ByCount(Sketched):
    """Gathers shows: how often the key was pushed."""

    name: Literal["count"] = "count"


class ByScore(Sketched):
    """Gathers the table's score."""

    name: Literal["score"] = "score"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Admission = Annotated[Always | Chance | ByCount | ByScore, Field(discriminator="name"), BeforeValidator(_named)]


class Eviction(BySlot):
    """A row is evicted when one of the limits given says so.

    max_age_seconds: since its last push; slots: that of single slots. min_score: of the decayed score. min_norm: L2
    norm of the values of `norm_segment` (default: of all). min_rows: so many rows of the table stay, in even shares of
    its buckets. every_seconds: of event time, between two evictions by a training job. when_full: what goes first when
    the table nears its memory limit: rows that were not pushed for longest, or those of the lowest score.
    """

    max_age_seconds: float | None = Field(None, gt=0)
    min_score: float | None = Field(None, gt=0)
    min_norm: float | None = Field(None, gt=0)
    norm_segment: str | None = None
    min_rows: int = Field(0, ge=0)
    every_seconds: float = Field(3600.0, gt=0)
    when_full: Literal["oldest", "lowest_score"] | None = None

    needs: ClassVar[str] = "max_age_seconds, slots, min_score, min_norm or when_full"

    @model_validator(mode="after")
    def _says_something(self) -> Eviction:
        if not (self.limits_rows or self.when_full):
            raise ValueError(f"needs one of: {self.needs}")
        if self.norm_segment is not None and self.min_norm is None:
            raise ValueError("norm_segment is given without min_norm")
        return self

    @property
    def by_age(self) -> bool:
        return self.max_age_seconds is not None or bool(self.slots)

    @property
    def limits_rows(self) -> bool:
        """Whether there is something to evict though there is room."""
        return self.by_age or self.min_score is not None or self.min_norm is not None
