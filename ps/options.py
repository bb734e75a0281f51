"""How a client behaves. Read from YAML or made in Python; immutable, refuses unknown keys.

Options that change what is learnt: wire, staleness, on_nonfinite, drop_above, drop_below, cache, group.
Options that change only cost and patience: share_from_bytes, retry.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ps.strict import Spec
from ps.wire.arrays import WireName


class CacheOptions(Spec):
    """The hot-key cache, per table. See docs/client.md."""

    rows: int = Field(default=65_536, ge=8)
    max_age_steps: int = Field(ge=1)  # age in pulls of this client; lies inside `staleness` where that is bounded
    min_count: int = Field(default=2, ge=1)  # sketch estimate from which a key may be kept
    # An approximation, 0 = off: gradients of keys held in the cache are summed here and pushed every so many steps. The
    # optimizer then sees one sum where it would have seen several gradients.
    aggregate_hot_gradients_steps: int = Field(default=0, ge=0)


class RetryOptions(Spec):
    """Patience. All retries live in ps/rounds.py."""

    timeout_seconds: float = Field(default=60.0, gt=0)  # one message; a shard that answers later counts as frozen
    unavailable_seconds: float = Field(default=5.0, ge=0)  # from the first failed try to the error
    overloaded_seconds: float = Field(default=60.0, ge=0)
    control_seconds: float = Field(default=600.0, gt=0)  # save and restore
    first_backoff_seconds: float = Field(default=0.02, gt=0)  # doubles up to:
    max_backoff_seconds: float = Field(default=0.5, gt=0)


class GroupOptions(Spec):
    """This client's place among the workers of a synchronous job. A restarted group takes a new, higher generation."""

    generation: int = Field(default=0, ge=0)
    rank: int = Field(ge=0)
    world: int = Field(ge=1)

    @model_validator(mode="after")
    def _rank_in_world(self) -> GroupOptions:
        if self.rank >= self.world:
            raise ValueError(f"rank {self.rank} is outside a world of {self.world}")
        return self


class ClientOptions(Spec):
    """What a client promises about precision and order."""

    wire: WireName = "fp32"  # precision of rows and gradients between client and shard
    staleness: int = Field(default=0, ge=-1)  # 0 synchronous, N bounded, -1 unbounded
    on_nonfinite: Literal["stop", "skip_row"] = "stop"
    drop_above: float = Field(default=0.0, ge=0)  # L2 norm of a row's gradient over all segments, 0 = off
    drop_below: float = Field(default=0.0, ge=0)
    cache: CacheOptions | None = None
    group: GroupOptions | None = None
    # Arrays of a message to a shard of the same machine lie in shared memory from so many bytes on; None: never.
    share_from_bytes: int | None = Field(default=65_536, ge=0)
    retry: RetryOptions = RetryOptions()

    @model_validator(mode="after")
    def _fit_together(self) -> ClientOptions:
        if self.drop_above and self.drop_below > self.drop_above:
            raise ValueError(
                f"drop_below {self.drop_below} is greater than drop_above {self.drop_above}: no row would remain"
            )
        if self.cache is not None and self.staleness == 0:
            raise ValueError("a cache needs staleness N or -1: at staleness 0 every pull must see every push")
        if self.cache is not None and 0 < self.staleness < self.cache.max_age_steps:
            raise ValueError(
                f"cache.max_age_steps {self.cache.max_age_steps} counts inside staleness {self.staleness}; "
                f"make it at most {self.staleness}"
            )
        return self

    @property
    def is_synchronous_group(self) -> bool:
        """Pushes of all workers meet at the shard, which sums them and judges the sum."""
        return self.group is not None and self.staleness == 0
