"""What a client counts about itself. Thread-safe."""

from __future__ import annotations

import threading

NAMES = (
    *("pulls", "pushes", "bytes_sent", "bytes_received", "bytes_shared", "retries"),
    *("cache_lookups", "cache_hits", "bytes_saved"),
    *("dropped_above", "dropped_below", "nonfinite_skipped", "keys_refused"),
)


class Tally:
    """One number per name of NAMES, from zero."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(NAMES, 0)
        self._lock = threading.Lock()

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def read(self) -> dict[str, float]:
        """All counts, and `cache_hit_rate`, 0 without lookups."""
        with self._lock:
            counts: dict[str, float] = dict(self._counts)
        counts["cache_hit_rate"] = counts["cache_hits"] / max(1, counts["cache_lookups"])
        return counts
