"""Synchronous groups: the `world` messages of one (generation, step) become one update of the global batch.

A step is open from its first message until the last rank's has come. A newer generation (the group was restarted)
closes the open steps of older ones for good. Plain logic: messages in, complete steps out; who waits for what is the
caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from ps.errors import ExpiredError, RequestError
from ps.storage.unique import sum_by_key, unique_by_bucket
from ps.thresholds import judge
from ps.types import Floats, Gradients, UniqueKeys

MAX_WORLD = 64  # ranks; each of their messages holds a server thread while it waits
M = TypeVar("M")


@dataclass(frozen=True)
class Place:
    """Where a message stands among those of its step."""

    generation: int
    step: int
    rank: int
    world: int


@dataclass
class Arrival(Generic[M]):
    """What a message caused. complete: all messages of the step in rank order, or None while ranks are missing.
    dropped: (message, why) of waiting ones that will never be applied."""

    complete: list[M] | None = None
    dropped: list[tuple[M, ExpiredError]] = field(default_factory=list)


class Groups(Generic[M]):
    """The open steps of the newest generation."""

    def __init__(self) -> None:
        self.generation = 0
        self._open: dict[int, tuple[int, dict[int, M]]] = {}  # step -> (world, rank -> message)

    @property
    def num_waiting(self) -> int:
        """Messages that wait for other ranks."""
        return sum(len(ranks) for _, ranks in self._open.values())

    def waiting(self, place: Place) -> M | None:
        """The message that already waits at this place."""
        if place.generation != self.generation or place.step not in self._open:
            return None
        return self._open[place.step][1].get(place.rank)

    def add(self, place: Place, message: M) -> Arrival[M]:
        """Take a message in. Raises ExpiredError for an old generation, RequestError when it contradicts the step's
        others.
        """
        if place.generation < self.generation:
            raise ExpiredError(
                f"step {place.step} of generation {place.generation} came after {self.generation} had begun; "
                "the group was restarted"
            )
        arrival: Arrival[M] = Arrival()
        if place.generation > self.generation:
            arrival.dropped = self._drop_open(place.generation)
            self.generation = place.generation
        world, ranks = self._open.get(place.step, (place.world, {}))
        if world != place.world:
            raise RequestError(
                f"step {place.step}: rank {place.rank} says world {place.world}, other ranks say {world}"
            )
        if place.rank in ranks:
            raise RequestError(
                f"step {place.step} of generation {place.generation} has two messages of rank {place.rank}"
            )
        ranks[place.rank] = message
        if len(ranks) == world:
            self._open.pop(place.step, None)
            arrival.complete = [ranks[rank] for rank in range(world)]
        else:
            self._open[place.step] = (world, ranks)
        return arrival

    def clear(self) -> list[M]:
        """Close every open step; the messages that waited."""
        waiting = [message for _, ranks in self._open.values() for _, message in sorted(ranks.items())]
        self._open.clear()
        return waiting

    def _drop_open(self, newer: int) -> list[tuple[M, ExpiredError]]:
        dropped = []
        for step, (world, ranks) in sorted(self._open.items()):
            error = ExpiredError(
                f"step {step} of generation {self.generation} had {len(ranks)} of {world} ranks when generation "
                f"{newer} began; it is not applied"
            )
            dropped += [(message, error) for _, message in sorted(ranks.items())]
        self._open.clear()
        return dropped


@dataclass(frozen=True)
class RankPart:
    """What one rank pushes to one table. shown: float32 [n, 2], shows and clicks of each key; None: each shown once."""

    keys: UniqueKeys
    gradients: Gradients
    shown: Floats | None = None


@dataclass(frozen=True)
class GlobalBatch:
    """Gradients of one table after the sum over ranks. The counts are of rows that thresholds left out; what was shown
    is counted for the others only.
    """

    keys: UniqueKeys
    gradients: Gradients
    shown: Floats | None
    num_nonfinite: int
    num_above: int
    num_below: int


def global_batch(
    parts: list[RankPart],
    *,
    world: int,
    num_buckets: int,
    drop_above: float = 0.0,
    drop_below: float = 0.0,
) -> GlobalBatch:
    """Sum per key in rank order, divided by `world`, then judged by the thresholds. parts: in rank order. Shows and
    clicks are summed, not divided.
    """
    shown = None
    if len(parts) == 1:
        keys, sums, shown = parts[0].keys, parts[0].gradients / np.float32(world), parts[0].shown
    else:
        keys, inverse, _ = unique_by_bucket(np.concatenate([part.keys for part in parts]), num_buckets)
        sums = sum_by_key(np.concatenate([part.gradients for part in parts]), inverse, len(keys))
        sums /= np.float32(world)
        if any(part.shown is not None for part in parts):
            once = [np.tile(np.array([1, 0], np.float32), (len(part.keys), 1)) for part in parts]
            counts = [own if part.shown is None else part.shown for own, part in zip(once, parts, strict=True)]
            shown = sum_by_key(np.concatenate(counts), inverse, len(keys))
    judged = judge(sums, drop_above=drop_above, drop_below=drop_below)
    if judged.keep is not None:
        keys, sums = keys[judged.keep], np.ascontiguousarray(sums[judged.keep])
        shown = None if shown is None else np.ascontiguousarray(shown[judged.keep])
    return GlobalBatch(keys, sums, shown, judged.num_nonfinite, judged.num_above, judged.num_below)
