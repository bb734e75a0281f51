"""What a shard holds: its tables, what was applied to them, which buckets are its own, and at which routing epoch.

Single-threaded. Changed by the jobs of ps/shard.py only; other threads may read its counters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ps.applied import Applied
from ps.errors import RequestError, WrongEpochError
from ps.journal.changes import Changes
from ps.psfunc import BucketNumbers, Counts
from ps.psfuncs.compiled import row_psfuncs
from ps.record import Record
from ps.request import CheckedRequest
from ps.routing import Routing
from ps.spec import ClusterSpec
from ps.storage.eviction import Evictor
from ps.storage.table import Table
from ps.user_modules import load_modules


class Holding:
    """Made by the first Assign, moved forward by later ones."""

    def __init__(self, spec: ClusterSpec) -> None:
        load_modules(spec.psfunc_modules)
        self.spec = spec
        self.routing = Routing(0, np.empty(0, np.int32), ())
        self.shard = 0
        self.least_epoch = 0  # messages of older epochs were sent before a restore
        self.owned: BucketNumbers = np.empty(0, np.int64)
        self._is_owned: NDArray[np.bool_] = np.zeros(spec.num_buckets, np.bool_)
        self.is_leaving: NDArray[np.bool_] = np.zeros(spec.num_buckets, np.bool_)  # given away: no messages any more
        self.is_arriving: NDArray[np.bool_] = np.zeros(spec.num_buckets, np.bool_)  # taken, and not owned yet
        self.tables = {
            name: Table(name, table, seed=spec.seed, num_buckets=spec.num_buckets, check=spec.check)
            for name, table in spec.tables.items()
        }
        self.counts = Counts()  # of all updates so far
        self.changes: Changes | None = None  # gathers what a journal writes
        self.applied = {name: Applied(spec.num_buckets) for name in spec.tables}
        self.evictions = {
            name: Evictor(table) for name, table in self.tables.items() if table.spec.eviction is not None
        }

    def warm_up(self) -> Iterator[None]:
        """Compile what the tables need, before the shard says that it is ready."""
        for table in self.tables.values():
            table.warm_up()
            yield
            for psfunc in row_psfuncs(self.spec.psfunc_modules):
                table.programs.compile(psfunc.code(), psfunc.role)
                yield

    def move(self, routing: Routing, shard: int, *, drops: bool = True) -> None:
        """Take a place in a routing. Buckets that another shard owns now are dropped, unless the caller does that.
        Raises WrongEpochError going backwards.
        """
        if routing.num_buckets != self.spec.num_buckets:
            raise RequestError(
                f"routing has {routing.num_buckets} buckets, the cluster spec says {self.spec.num_buckets}"
            )
        if shard >= routing.num_shards:
            raise RequestError(f"shard {shard} is not among the {routing.num_shards} addresses of the routing")
        if routing.epoch < self.routing.epoch:
            raise WrongEpochError(f"this shard is at routing epoch {self.routing.epoch}; {routing.epoch} is older")
        same_place = shard == self.shard and np.array_equal(routing.owners, self.routing.owners)
        if routing.epoch == self.routing.epoch and not same_place:
            raise RequestError(f"another routing has epoch {routing.epoch} already; give a changed one a higher epoch")
        owned = routing.owned(shard)
        for bucket in np.setdiff1d(self.held, owned).tolist() if drops else ():
            self.drop_bucket(bucket)
        self.is_leaving[:] = self.is_arriving[:] = False
        self.least_epoch = self.least_epoch or routing.epoch
        self.routing, self.shard, self.owned = routing, shard, owned
        self._is_owned[:] = False
        self._is_owned[owned] = True

    @property
    def held(self) -> BucketNumbers:
        """int64 [k]: the buckets whose rows are here, owned or arriving; ascending."""
        buckets: BucketNumbers = np.flatnonzero(self._is_owned | self.is_arriving)
        return buckets

    @property
    def num_rows(self) -> int:
        """Of all tables."""
        return sum(table.num_rows for table in self.tables.values())

    def drop_bucket(self, bucket: int) -> None:
        """Forget the rows of a bucket and what was applied to it."""
        for name, table in self.tables.items():
            table.drop_bucket(bucket)
            self.applied[name].drop_bucket(bucket)

    def check_routing(self, request: CheckedRequest) -> None:
        """Raise WrongEpochError unless epoch and buckets are this shard's.

        A message of keys may be of an older epoch: it belongs here when all its buckets do. One that covers a whole
        table, or belongs to a group, is complete in its own epoch only.
        """
        epoch, is_keyed = request.routing_epoch, all(call.keyed is not None for call in request.calls)
        may_be_older = is_keyed and request.place is None
        if epoch != self.routing.epoch and not (may_be_older and self.least_epoch <= epoch < self.routing.epoch):
            raise WrongEpochError(
                f"message of routing epoch {epoch} at shard {self.shard}, now at {self.routing.epoch}"
            )
        takes = self._is_owned & ~self.is_leaving
        if not is_keyed and self.is_leaving.any():
            raise WrongEpochError(f"buckets of shard {self.shard} are moving to another")
        for call in request.calls:
            if call.keyed is not None and not takes[call.keyed.buckets].all():
                foreign = call.keyed.buckets[~takes[call.keyed.buckets]]
                raise WrongEpochError(f"bucket {int(foreign[0])} is not owned by shard {self.shard}")

    def makes_room(self, table: str) -> bool:
        """Whether the table, at its memory limit, has rows to evict. Says that it wants to."""
        return table in self.evictions and self.evictions[table].ask_for_room(self.owned)

    def records_of(self, bucket: int) -> Iterator[Record]:
        """Every row of a bucket and what was applied to it, of all tables."""
        for name in self.tables:
            yield from self._records(name, bucket)

    def _records(self, name: str, bucket: int) -> Iterator[Record]:
        table = self.tables[name]
        layout, once = table.image_layout(), (self.applied[name].entries(bucket), table.admission.save(bucket))
        for keys, images in table.read_images(bucket):
            yield Record(name, bucket, layout, keys, images, *once)
            once = (b"", b"")
        if any(once):
            yield Record(name, bucket, layout, np.empty(0, np.uint64), np.empty((0, 0), np.uint8), *once)

    def layouts(self) -> dict[str, str]:
        """The row layout of each table, as text."""
        return {name: table.image_layout() for name, table in self.tables.items()}

    def expired_ids(self) -> dict[str, list[int]]:
        """By table, the clients that are refused."""
        return {name: applied.expired_ids() for name, applied in self.applied.items()}

    def clear(self) -> None:
        """Drop every row and all that was applied."""
        for name, table in self.tables.items():
            table.clear()
            self.applied[name].clear()

    def owns(self, bucket: int) -> bool:
        return bool(self._is_owned[bucket])

    def load(self, record: Record, *, now: float, expected: int = 0) -> int:
        """Add a record's rows. Returns how many. expected: how many its bucket is to have in the end, about."""
        if record.applied:
            self.applied[record.table].load(record.bucket, record.applied, now=now)
        if record.admission:
            self.tables[record.table].admission.load(record.bucket, record.admission)
        if len(record.keys):
            self.tables[record.table].load_images(record.bucket, record.keys, record.images, expected=expected)
        return len(record.keys)
