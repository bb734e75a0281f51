"""How many shards, buckets and nodes a demand takes, and what they do: the formulas of docs/planning.md.

A request is one sample. Serving pulls its rows; training pulls and pushes them. Keys count as spread evenly over shards
and buckets, which distinct keys are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ps.errors import RequestError
from ps.lifetime import Sketched
from ps.spec import TableSpec
from ps.wire.arrays import DTYPES, ITEM_BYTES
from workers.config import Config
from workers.config.job import BUCKETS_PER_SHARD
from workers.planning.demand import Demand, Nodes
from workers.planning.figures import Figures, Verb
from workers.planning.footprint import Footprint

MAX_BUCKETS = 1 << 20
_FULLEST = 0.9  # of the rows that a bucket can hold: buckets differ a little
_LEAST_BUCKETS = 256


@dataclass(frozen=True)
class Calls:
    """One kind of call to one copy. keys: a second, by table. keys_per_call: of all tables."""

    verb: Verb
    keys: Mapping[str, float]
    keys_per_call: float

    def messages(self, shards: int) -> float:
        """A second: a call sends one to each shard that has some of its keys."""
        without = math.exp(self.keys_per_call * math.log1p(-1 / shards)) if shards > 1 else 0.0
        touched = min(shards * (1 - without), self.keys_per_call)
        return sum(self.keys.values()) / self.keys_per_call * max(touched, min(1.0, self.keys_per_call))


class Cores(NamedTuple):
    """Busy cores: for messages, for the bytes in them, for rows in tables."""

    messages: float
    array_bytes: float
    rows: float


class Sizing:
    """The least number of shards that bears the load and fills the nodes it needs.

    copies; shards: of each copy; processes_each: of a shard, 2 where it has a standby; buckets; nodes, and `nodes_by`,
    what asked for so many; memory_bytes: resident, of all shard processes; journal_bytes: on their disks. Everything
    that is said of a second is of one copy.
    """

    def __init__(self, config: Config, demand: Demand, nodes: Nodes, figures: Figures) -> None:
        """Raises RequestError for what no cluster can hold."""
        self.demand, self.figures, self.copies = demand, figures, 1 + nodes.replicas
        self.tables: Mapping[str, TableSpec] = config.tables
        self._durability = config.cluster.durability
        self.processes_each = 1 + self._durability.is_replicated
        self._item_bytes = ITEM_BYTES[DTYPES[config.cluster.client.wire]]
        self.footprints = {name: Footprint(name, table) for name, table in self.tables.items()}
        fields = [config.table_of(field) for field in config.slots()]
        of_field = demand.keys_per_request / len(fields)
        self._keys = {name: of_field * fields.count(name) for name in self.tables}
        self.calls = (
            self._calls("pull", demand.requests / self.copies, demand.requests_per_call),
            self._calls("pull", demand.updates, demand.updates_per_call),
            self._calls("push", demand.updates, demand.updates_per_call),
        )
        self.shards = self._shards_for(nodes.load)
        self._fill(nodes)

    def messages(self) -> float:
        """A second."""
        return sum(calls.messages(self.shards) for calls in self.calls)

    def shard_cores(self) -> Cores:
        """Of all shards."""
        return self._cores(self.shards)

    def client_cores(self) -> float:
        """Of those who call."""
        total = 0.0
        for calls in self.calls:
            figure = self.figures.messages[calls.verb]
            total += calls.messages(self.shards) / figure.client_messages_per_core_second
            total += self._array_bytes(calls) / figure.client_bytes_per_core_second
        return total

    def network(self) -> tuple[float, float]:
        """Bytes a second that all shards receive, and send. Of what is beside the arrays, half goes each way."""
        received = sent = 0.0
        for calls in self.calls:
            beside = calls.messages(self.shards) * self.figures.messages[calls.verb].message_bytes / 2
            keys = 8 * sum(calls.keys.values())
            rows = self._array_bytes(calls) - keys
            received += beside + keys + (rows if calls.verb == "push" else 0)
            sent += beside + (rows if calls.verb == "pull" else 0)
        return received + self.standby_traffic(), sent + self.standby_traffic()

    def standby_traffic(self) -> float:
        """Bytes a second of after-images that primaries send and standbys receive."""
        if self.processes_each == 1:
            return 0.0
        pushed = (calls.keys for calls in self.calls if calls.verb == "push")
        return sum(n * (8 + self.footprints[name].image_bytes) for keys in pushed for name, n in keys.items())

    def table_bytes(self, name: str) -> float:
        """What one copy of a table reports, over all shards."""
        return self.footprints[name].memory_bytes(self.demand.rows[name], self.buckets)

    def checkpoint_bytes(self) -> float:
        """Of one copy: replicas save nothing."""
        return sum(self.footprints[name].checkpoint_bytes(self.demand.rows[name], self.buckets) for name in self.tables)

    @property
    def journal_bytes(self) -> float:
        """Of all processes at most, while a snapshot is written: the one before, the new one, and what made it due."""
        if not self._durability.keeps_journal:
            return 0.0
        rows, least = self.checkpoint_bytes(), self.shards * self._durability.snapshot_after_bytes
        return self.copies * self.processes_each * (2 * rows + max(rows, least))

    def table_rate(self, verb: Verb, name: str) -> tuple[float, str]:
        """(rows a core-second, the measured layouts that it rests on). The widest segment's codec counts."""
        widest = max(self.tables[name].segments.values(), key=lambda segment: segment.dim)
        return self.figures.rows_per_core_second(verb, widest.codec, self.footprints[name].row_bytes)

    def _calls(self, verb: Verb, samples: float, samples_per_call: int) -> Calls:
        keys = {name: samples * count for name, count in self._keys.items()}
        return Calls(verb, keys, samples_per_call * self.demand.keys_per_request)

    def _cores(self, shards: int) -> Cores:
        messages = array_bytes = rows = 0.0
        for calls in self.calls:
            figure = self.figures.messages[calls.verb]
            messages += calls.messages(shards) / figure.shard_messages_per_core_second
            array_bytes += self._array_bytes(calls) / figure.shard_bytes_per_core_second
            rows += sum(keys / self.table_rate(calls.verb, name)[0] for name, keys in calls.keys.items())
        return Cores(messages, array_bytes, rows)

    def _array_bytes(self, calls: Calls) -> float:
        return sum(keys * (8 + self._item_bytes * self.tables[name].width) for name, keys in calls.keys.items())

    def _shards_for(self, load: float) -> int:
        """More shards mean more messages: the first number that is enough for its own."""
        shards = 1
        while (needed := math.ceil(sum(self._cores(shards)) / load)) > shards:
            if needed > MAX_BUCKETS:
                raise RequestError(
                    f"--requests: a copy would need {needed:,} shards, and a cluster has at most {MAX_BUCKETS:,}; take "
                    "more requests a call, or replicas"
                )
            shards = needed
        return shards

    def _fill(self, nodes: Nodes) -> None:
        """Nodes for the shards, and at least a shard for each node."""
        while True:
            self.buckets = self._buckets_for(self.shards)
            processes = self.copies * self.processes_each * self.shards
            each = self._table_memory() / self.shards + self.figures.process_bytes
            self.memory_bytes = processes * each
            busiest = max(self.network()) * self.copies / (nodes.network_bytes_per_second * nodes.load)
            needs = {
                "memory": math.ceil(self.memory_bytes / (nodes.node_memory * nodes.fill)),
                "cores": math.ceil(processes / nodes.node_cores),
                "network": math.ceil(busiest),
                "copies": self.copies * self.processes_each,
            }
            self.nodes_by, self.nodes = max(needs.items(), key=lambda need: need[1])
            if processes >= self.nodes:
                return
            self.shards = math.ceil(self.nodes / (self.copies * self.processes_each))

    def _table_memory(self) -> float:
        sketches = [t.admission.sketch_bytes for t in self.tables.values() if isinstance(t.admission, Sketched)]
        return self.figures.resident_share * sum(self.table_bytes(name) for name in self.tables) + sum(sketches)

    def _buckets_for(self, shards: int) -> int:
        holds = {name: _FULLEST * each.max_rows for name, each in self.footprints.items()}
        least = max(shards, *(rows / holds[name] for name, rows in self.demand.rows.items()))
        if least > MAX_BUCKETS:
            raise RequestError(
                f"--rows: {max(self.demand.rows.values()):.4g} rows of a table on {shards:,} shards need more than "
                f"{MAX_BUCKETS:,} buckets"
            )
        wanted = max(_LEAST_BUCKETS, BUCKETS_PER_SHARD * shards, least)
        return min(MAX_BUCKETS, 1 << math.ceil(math.log2(wanted)))
