"""Which shard owns which bucket, and where that shard listens. Immutable: a change is a new Routing with a higher
epoch.

A shard's buckets are contiguous in the initial assignment, so that its part of bucket-grouped keys is one slice and
needs no copy. Any other assignment works too; its parts are index arrays, still in ascending bucket order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.types import Offsets
from ps.wire import weir_pb2 as pb

Positions: TypeAlias = slice | NDArray[np.int64]  # of a shard's keys among the bucket-grouped unique ones, ascending


@dataclass(frozen=True, eq=False)
class Routing:
    """owners: int32 [num_buckets], the shard index of each bucket. addresses: one per shard. epoch: 0 = nothing
    assigned.
    """

    epoch: int
    owners: NDArray[np.int32]
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.owners) and not (int(self.owners.min()) >= 0 and int(self.owners.max()) < self.num_shards):
            raise RequestError(
                f"routing of epoch {self.epoch} names a shard outside 0..{self.num_shards - 1}; each shard needs one"
            )

    @classmethod
    def initial(cls, num_buckets: int, addresses: Sequence[str], epoch: int = 1) -> Routing:
        """Equal contiguous ranges of buckets. Raises RequestError with more shards than buckets."""
        if not 1 <= len(addresses) <= num_buckets:
            raise RequestError(f"{len(addresses)} shards for {num_buckets} buckets; need 1 to {num_buckets} shards")
        owners = np.arange(num_buckets, dtype=np.int64) * len(addresses) // num_buckets
        return cls(epoch, owners.astype(np.int32), tuple(addresses))

    @property
    def num_buckets(self) -> int:
        return len(self.owners)

    @property
    def num_shards(self) -> int:
        return len(self.addresses)

    def owned(self, shard: int) -> NDArray[np.int64]:
        """int64 [k]: the buckets of a shard, ascending."""
        buckets: NDArray[np.int64] = np.flatnonzero(self.owners == shard)
        return buckets

    def split(self, bucket_starts: Offsets) -> list[Positions]:
        """One Positions per shard, of keys grouped by bucket. bucket_starts: int64 [num_buckets + 1], starts of the
        groups.
        """
        parts: list[Positions] = []
        for shard in range(self.num_shards):
            buckets = self.owned(shard)
            if len(buckets) == 0:
                parts.append(slice(0, 0))
            elif buckets[-1] - buckets[0] + 1 == len(buckets):
                parts.append(slice(int(bucket_starts[buckets[0]]), int(bucket_starts[buckets[-1] + 1])))
            else:
                parts.append(ranges(bucket_starts[buckets], bucket_starts[buckets + 1]))
        return parts

    def to_message(self) -> pb.Routing:
        return pb.Routing(epoch=self.epoch, owners=self.owners.astype("<i4").tobytes(), addresses=self.addresses)

    @classmethod
    def from_message(cls, message: pb.Routing) -> Routing:
        """Raises RequestError for owners that name no address, and for more shards than buckets."""
        if len(message.addresses) > len(message.owners) // 4:
            raise RequestError(f"{len(message.addresses)} shards for {len(message.owners) // 4} buckets")
        return cls(message.epoch, np.frombuffer(message.owners, "<i4").astype(np.int32), tuple(message.addresses))


def ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of every [starts[i], ends[i]) one after another."""
    lengths = ends - starts
    total = int(lengths.sum())
    offsets = np.cumsum(lengths) - lengths
    positions: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - offsets, lengths)
    return positions


def count(positions: Positions) -> int:
    """How many keys a Positions selects."""
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)
