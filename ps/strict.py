"""What options are made of: immutable, and no key is ignored."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Immutable, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
