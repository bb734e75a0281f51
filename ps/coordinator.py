"""The coordinator: the one authority over a cluster's routing, epochs and leases. No I/O; time is an argument.

A shard process draws a random incarnation when it starts and renews its lease every few seconds, saying where it
listens and which epoch it holds. The coordinator remembers which incarnation it gave which buckets: another one in
its place holds no rows, and the shard counts as lost until a restore commits a new epoch. A coordinator that was
restarted itself takes routing over from the first renewals; shards and clients go on meanwhile. A process that
recovered its shard from a journal takes its predecessor's place at once: the same epoch and buckets, another address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.control import rows_lost
from ps.errors import RequestError, RowsLostError, UnavailableError
from ps.routing import Routing


@dataclass(frozen=True)
class Lease:
    """What a shard process said last. routing: that which it holds, None before its first Assign. recovered: whether
    it has all that its predecessor had.
    """

    shard: int
    address: str
    incarnation: int
    routing: Routing | None
    pid: int
    node: str
    renewed_at: float
    recovered: bool = False


class Coordinator:
    """Single-threaded."""

    def __init__(
        self, name: str, *, num_shards: int, num_buckets: int, lease_seconds: float = 10.0, first_epoch: int = 1
    ) -> None:
        """first_epoch: the least one that it proposes."""
        self.name = name
        self._first_epoch = first_epoch
        self.num_shards = num_shards
        self._num_buckets = num_buckets
        self._lease_seconds = lease_seconds
        self._leases: dict[int, Lease] = {}
        self._routing: Routing | None = None
        self._holders: dict[int, int] = {}  # shard -> incarnation that was given its buckets
        self._proposed: tuple[Routing, dict[int, int]] | None = None

    @property
    def leases(self) -> Mapping[int, Lease]:
        return self._leases

    @property
    def epoch(self) -> int:
        """Of the committed routing; 0 before the first."""
        return 0 if self._routing is None else self._routing.epoch

    def renew(self, lease: Lease) -> None:
        """A shard process lives. Raises RequestError for a shard that the cluster does not have."""
        if self._routing is None and self._proposed is None and lease.routing is not None:
            self.num_shards = lease.routing.num_shards  # this coordinator was restarted; shards may have come since
        if not 0 <= lease.shard < self.num_shards:
            raise RequestError(f"cluster {self.name!r} has shards 0..{self.num_shards - 1}, not {lease.shard}")
        self._leases[lease.shard] = lease
        if lease.routing is not None:
            self._take_over(lease, lease.routing)

    def ready(self) -> bool:
        """Whether every shard has reported."""
        return len(self._leases) == self.num_shards

    def lost(self) -> list[int]:
        """Shards whose process is not the one that was given rows."""
        if self._routing is None:
            return []
        return [
            shard
            for shard, lease in sorted(self._leases.items())
            if shard < self._routing.num_shards and self._holders.get(shard) != lease.incarnation
        ]

    def silent(self, now: float) -> list[int]:
        """Shards that never reported, or not within the lease."""
        return [
            shard
            for shard in range(self.num_shards)
            if shard not in self._leases or now - self._leases[shard].renewed_at > self._lease_seconds
        ]

    def routing(self) -> Routing:
        """The committed routing. Raises RowsLostError after a shard came back empty, UnavailableError before the
        first commit.
        """
        if self._routing is None:
            raise UnavailableError(
                f"cluster {self.name!r} is not ready: {len(self._leases)} of {self.num_shards} shards have reported"
            )
        if lost := self.lost():
            raise RowsLostError(rows_lost(self.name, lost))
        return self._routing

    def resize(self, num_shards: int) -> None:
        """So many shards from now on. The committed routing stays until the next one."""
        self.num_shards = num_shards
        self._leases = {shard: lease for shard, lease in self._leases.items() if shard < num_shards}

    def propose(self, owners: NDArray[np.int32] | None = None) -> Routing:
        """A routing of a new epoch over the processes that live now. owners: int32 [num_buckets]; default: as committed
        last. Raises UnavailableError while a shard has not reported.
        """
        if not self.ready():
            missing = sorted(set(range(self.num_shards)) - self._leases.keys())
            raise UnavailableError(
                f"cluster {self.name!r}: shards {missing} have not reported yet; try again in a few seconds"
            )
        addresses = tuple(self._leases[shard].address for shard in range(self.num_shards))
        # Two proposals never share an epoch, even when the first is never committed.
        newest = max([self.epoch, *(each.routing.epoch for each in self._leases.values() if each.routing is not None)])
        if self._proposed is not None:
            newest = max(newest, self._proposed[0].epoch)
        if owners is not None:
            routing = Routing(newest + 1, owners, addresses)
        elif self._routing is None:
            routing = Routing.initial(self._num_buckets, addresses, max(newest + 1, self._first_epoch))
        else:
            routing = Routing(newest + 1, self._routing.owners, addresses)
        self._proposed = (routing, {shard: lease.incarnation for shard, lease in self._leases.items()})
        return routing

    def commit(self, epoch: int) -> None:
        """The proposal of that epoch was assigned. Raises RequestError for another one."""
        if self._proposed is None or self._proposed[0].epoch != epoch:
            raise RequestError(f"cluster {self.name!r}: epoch {epoch} was not proposed last; another restore has begun")
        self._routing, self._holders = self._proposed
        self._proposed = None

    def _take_over(self, lease: Lease, routing: Routing) -> None:
        """After a restart of the coordinator: what the shards hold is what was committed."""
        if self._routing is None and self._proposed is None:
            self._routing = routing
        if self._routing is None or routing.epoch != self._routing.epoch:
            return
        if lease.shard not in self._holders or lease.recovered:
            self._holders[lease.shard] = lease.incarnation
        addresses = list(self._routing.addresses)
        if self._holders[lease.shard] == lease.incarnation and addresses[lease.shard] != lease.address:
            addresses[lease.shard] = lease.address
            self._routing = Routing(self._routing.epoch, self._routing.owners, tuple(addresses))
