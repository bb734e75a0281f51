"""Delta streams in tests: batches written by hand, and what a follower that keeps the rules has of them."""

import time

import numpy as np

from ps.deltas.reading import PartitionReader, find_partitions
from ps.keys import bucket_of
from ps.serving_rows import RowEncoder, serving_spec
from tests.ps.driving import SPEC


def deltas_of(folder, **options):
    """A spec's options: published at once unless they say else."""
    return {"directory": str(folder), "window_seconds": 0, **options}


def with_deltas(folder, spec=SPEC, **options):
    return type(spec).model_validate({**spec.model_dump(), "deltas": deltas_of(folder, **options)})


class Follower:
    """Rows of serving tables by table and key, from the batches of any partitions: the rules, and nothing else."""

    def __init__(self, spec, codec="fp32"):
        self.spec = spec
        self.serving = serving_spec(spec, codec)
        self.layouts = {name: RowEncoder(table) for name, table in self.serving.tables.items()}
        self.rows = {name: {} for name in spec.tables}
        self.epochs = np.zeros(spec.num_buckets, np.int64)
        self.markers = []

    def follow(self, directory, positions=None, last=None):
        """All that the partitions below a directory have, from the given next offsets on. last: of partitions that are
        named, up to these offsets, and nothing of others.
        """
        for shard, folder in find_partitions(directory).items():
            reader = PartitionReader(folder, (positions or {}).get(shard, 0))
            while batches := reader.read():
                for batch in batches:
                    if last is None or batch.offset <= last.get(shard, 0):
                        self.apply(batch, shard)
            reader.close()
        return self

    def apply(self, batch, shard=0):
        buckets = {int(b) for frame in batch.rows for b in frame.dropped}
        for frame in batch.rows:
            for keys in (frame.full[0], frame.removed):
                buckets |= set(bucket_of(keys, self.spec.num_buckets).tolist())
        wanted = {bucket for bucket in buckets if batch.epoch >= self.epochs[bucket]}
        self.epochs[list(wanted)] = batch.epoch
        for frame in batch.rows:
            rows = self.rows[frame.table]
            for bucket in set(frame.dropped) & wanted:
                for key in [key for key in rows if self._bucket(key) == bucket]:
                    del rows[key]
            for key, image in zip(frame.full[0].tolist(), frame.full[1], strict=True):
                if self._bucket(key) in wanted:
                    rows[key] = image.tobytes()
            for key in frame.removed.tolist():
                if self._bucket(key) in wanted:
                    rows.pop(key, None)
        if batch.marker is not None:
            self.markers.append((shard, batch.offset, batch.marker))

    def _bucket(self, key):
        return int(bucket_of(np.array([key], np.uint64), self.spec.num_buckets)[0])


def rows_of(holdings, codec="fp32"):
    """By table and key, the serving images of the rows that some shards hold and own."""
    holdings = list(holdings)
    spec = holdings[0].spec
    encoders = {name: RowEncoder(table) for name, table in serving_spec(spec, codec).tables.items()}
    found = {name: {} for name in spec.tables}
    for holding in holdings:
        for name, table in holding.tables.items():
            for bucket in holding.owned.tolist():
                for block in table.scan(bucket):
                    images = encoders[name].encode(block.values)
                    found[name] |= {key: row.tobytes() for key, row in zip(block.keys.tolist(), images, strict=True)}
    return found


def settle(shard, seconds=20.0):
    """Run a shard without a thread until all that has changed is written."""
    deadline = time.monotonic() + seconds
    publisher = shard.outlet.publisher
    while True:
        busy = shard.run_slice()
        if not busy and publisher.idle_seconds is None and publisher.writer.end_offset == publisher.writer.next_offset:
            return publisher
        if publisher.idle_seconds is not None and not publisher.writer.is_ready:
            time.sleep(0.001)
        assert time.monotonic() < deadline, publisher.writer.trouble
