"""What reaches serving while training goes on: where versions are kept, and how often one is published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from workers.config.section import Section


class Serving(Section):
    """models: the model directory. publish_seconds, publish_steps: how often the tower is published, whichever comes
    first; rows go their own way, at once (cluster.deltas). A publication that is due while the one before is still
    written waits for its end. bundle_every: after so many towers rows are exported whole again, so that replicas start
    from there and older changes may go. keep: versions that stay. examples: requests recorded with each version, which
    a server scores before it takes the version.
    """

    models: Annotated[str, Field(min_length=1)]
    publish_seconds: float | None = Field(default=None, gt=0)
    publish_steps: int | None = Field(default=None, ge=1)
    bundle_every: int = Field(default=60, ge=1)
    keep: int = Field(default=10, ge=1)
    examples: int = Field(default=16, ge=1, le=1024)

    @model_validator(mode="after")
    def _has_time(self) -> Serving:
        if self.publish_seconds is None and self.publish_steps is None:
            raise ValueError("needs 'publish_seconds' or 'publish_steps'")
        return self
