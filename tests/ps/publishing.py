"""A cluster that publishes deltas, as a plain model for tests: what its rows are, and the batches of partitions."""

import time
from dataclasses import replace

import msgpack
import numpy as np

from ps.checkpoint import end_frame, start_frame, write_manifest, write_part
from ps.delta_options import DeltaOptions
from ps.deltas.batches import Batch, Marker, encode_end
from ps.deltas.partition import Partition
from ps.deltas.reading import partition_folder
from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, RowsFrame, encode_rows, with_checksum
from ps.keys import bucket_of
from ps.record import Record, encode_record, layout_digest
from ps.replica import Replica
from ps.serving_rows import RowEncoder, serving_spec
from ps.spec import ClusterSpec
from tests.ps.test_serving_rows import TRAINED as TRAINED_ROWS

NUM_BUCKETS = 16
# One row layout for both tables, and that of another test: each costs seconds to compile the first time.
TRAINED = ClusterSpec(tables={"user": TRAINED_ROWS, "item": TRAINED_ROWS}, num_buckets=NUM_BUCKETS, seed=9)
SERVED = serving_spec(TRAINED, "int8")


def keys_from(start, stop):
    return np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def values_for(keys, width, version):
    """float32 [n, width] that tell key and version in every element."""
    rng = np.random.default_rng(version)
    return rng.normal(size=(len(keys), width)).astype(np.float32)


class Publisher:
    """`at` counts the batches of all partitions, as their times. folder: batches are written there too, as a shard
    writes them.
    """

    def __init__(self, trained=TRAINED, served=SERVED, shards=1, folder=None, **options):
        self.folder, self.options, self.files = folder, DeltaOptions(directory=str(folder), **options), {}
        self.trained, self.served = trained, served
        self.encoders = {name: RowEncoder(spec) for name, spec in served.tables.items()}
        self.layouts = {name: layout_digest(encoder.image_layout) for name, encoder in self.encoders.items()}
        self.rows = {name: {} for name in served.tables}  # key -> image
        self.partitions = {shard: [] for shard in range(shards)}
        self.owners = np.arange(served.num_buckets) % shards
        self.epoch, self.version, self.at = 1, 0, 1000.0

    def images(self, table, keys):
        self.version += 1
        return self.encoders[table].encode(values_for(keys, self.served.tables[table].width, self.version))

    def frame(self, table, keys=NO_KEYS, images=None, removed=NO_KEYS, dropped=()):
        full = (keys, images) if len(keys) else NO_ROWS
        return RowsFrame(0, table, self.layouts[table], full, NO_ROWS, removed, NOTHING_GATHERED, tuple(dropped))

    def publish(self, shard, frames=(), marker=None):
        frames, batches = tuple(frames), self.partitions.setdefault(shard, [])
        self.at += 1
        total = batches[-1].total + batches[-1].records if batches else 0
        records = sum(len(frame.full[0]) + len(frame.removed) for frame in frames)
        # Offsets leave gaps, as where a shard was started anew.
        offset = 10 * len(batches) + 1
        batch = Batch(offset, self.epoch, self.at, self.at - 0.5, records, total, marker, frames)
        if self.folder is not None:
            batch = self.write(shard, batch)
        batches.append(batch)
        return batch

    def write(self, shard, batch):
        if shard not in self.files:
            texts = {name: encoder.image_layout for name, encoder in self.encoders.items()}
            self.files[shard] = Partition(partition_folder(self.folder, shard), shard, self.options, texts)
        file = self.files[shard]
        batch = replace(batch, offset=file.next_offset, at=time.time())
        batch = replace(batch, rows=tuple(replace(frame, number=batch.offset) for frame in batch.rows))
        pieces = [piece for frame in batch.rows for piece in with_checksum(encode_rows(frame))]
        said = {name: getattr(batch, name) for name in ("epoch", "at", "since", "records", "total", "marker")}
        file.append([*pieces, encode_end(batch.offset, **said)], records=batch.records)
        file.roll(time.time())
        return batch

    def beat(self):
        """Every shard says that it lives."""
        for file in self.files.values():
            file.beat(time.time(), epoch=self.epoch, shards=len(self.files))

    def close(self):
        """As a shard that ends: its folders can be taken by another."""
        for file in self.files.values():
            file.close()
        self.files = {}

    def owned(self, shard, keys):
        return keys[self.owners[bucket_of(keys, len(self.owners))] == shard]

    def set(self, table, keys):
        """Every owner publishes its part."""
        images = dict(zip(keys.tolist(), self.images(table, keys)))
        self.rows[table] |= images
        for shard in sorted(self.partitions):
            if len(own := self.owned(shard, keys)):
                self.publish(shard, [self.frame(table, own, np.stack([images[key] for key in own.tolist()]))])

    def delete(self, table, keys):
        for key in keys.tolist():
            self.rows[table].pop(key, None)
        for shard in sorted(self.partitions):
            if len(own := self.owned(shard, keys)):
                self.publish(shard, [self.frame(table, removed=own)])

    def whole(self, buckets):
        """Frames that replace buckets with what they have."""
        for table, rows in self.rows.items():
            keys = np.array(list(rows), np.uint64)
            keys = keys[np.isin(bucket_of(keys, len(self.owners)), buckets)]
            images = np.stack([rows[key] for key in keys.tolist()]) if len(keys) else None
            yield self.frame(table, keys, images, dropped=buckets)

    def move(self, buckets, shard):
        """Resharding: the new owner publishes them whole."""
        self.epoch += 1
        self.owners[list(buckets)] = shard
        self.publish(shard, self.whole(list(buckets)))

    def mark(self, version, step):
        for shard in sorted(self.partitions):
            self.publish(shard, marker=Marker(version, step, float(step)))

    def positions(self):
        """Next offsets."""
        return {shard: batches[-1].offset + 1 for shard, batches in self.partitions.items() if batches}

    def save(self, directory):
        """A checkpoint of the rows as they are served."""
        self_spec, layouts = self.served, {name: each.image_layout for name, each in self.encoders.items()}
        pieces, records = [start_frame(shard=0, spec=self_spec, layouts=layouts, expired={})], 0
        for table, rows in self.rows.items():
            keys = np.array(list(rows), np.uint64)
            buckets = bucket_of(keys, len(self.owners))
            for bucket in np.unique(buckets).tolist():
                held = keys[buckets == bucket]
                images = np.stack([rows[key] for key in held.tolist()])
                pieces.append(encode_record(Record(table, bucket, layouts[table], held, images)))
                records += 1
        counts = {table: len(rows) for table, rows in self.rows.items() if rows}
        pieces.append(end_frame(num_records=records, rows=counts))
        part = write_part(directory, 0, 1, pieces)
        part |= {"rows": counts, "num_owned_buckets": self_spec.num_buckets}
        write_manifest(directory, self_spec, [msgpack.packb(part)])
        return directory

    def replica(self):
        return Replica(self.trained, self.served)

    def assert_served_by(self, pull):
        """Every row, and no other: pull(table, keys) -> (rows, number of unknown keys)."""
        for table, rows in self.rows.items():
            keys = np.array(list(rows), np.uint64)
            found, unknown = pull(table, keys)
            assert unknown == 0
            if len(keys):
                wanted = self.encoders[table].decode(np.stack(list(rows.values())))
                np.testing.assert_array_equal(found, wanted)
