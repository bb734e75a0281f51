"""A user's psfunc that counts its calls at rows; shards and clients import this module by name."""

from dataclasses import dataclass

import ps


@ps.register("chaos_count")
@dataclass(frozen=True)
class CountCall(ps.RowUpdate):
    """One more in every element."""

    def compute(self, values, keys):
        return values + 1
