"""Shows and clicks of every key, counted at the shards, and the click-through rate that they give.

A segment of dim 2 holds them, say `counts: {dim: 2, optimizer: sgd}`, initially zero:

    client.update("item", CountClicks(segment="counts"), keys, np.array([[shows, clicks], ...], np.float32))
    client.get("item", ClickThroughRate(segment="counts"), keys)      # float32 [n, 1]
"""

from dataclasses import dataclass
from typing import ClassVar

import ps


@ps.register("count_clicks")
@dataclass(frozen=True)
class CountClicks(ps.UpdateRow):
    """Adds a payload row [shows, clicks]; what was counted before is multiplied by `decay`."""

    decay: float = 1.0
    payload_dim: ClassVar[int] = 2

    def update_row(self, values, payload):
        if payload[1] > payload[0]:
            raise ValueError("more clicks than shows")
        for j in range(2):
            values[j] = self.decay * values[j] + payload[j]


@ps.register("click_through_rate")
@dataclass(frozen=True)
class ClickThroughRate(ps.ReadRow):
    """(clicks + strength * prior) / (shows + strength): keys that were hardly shown have about the prior rate."""

    prior: float = 0.01
    strength: float = 20.0

    def read_row(self, values, out):
        out[0] = (values[1] + self.strength * self.prior) / (values[0] + self.strength)
