"""What every part of the configuration is: immutable, without unknown keys, without NaN and infinity."""

from __future__ import annotations

from pydantic import ConfigDict

from ps.strict import Spec


class Section(Spec):
    """A mapping in the YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
