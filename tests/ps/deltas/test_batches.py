"""Batches as bytes: what was written is read, and damage is named."""

import numpy as np
import pytest

from ps.delta_options import DeltaOptions
from ps.deltas.batches import IncompleteError, Marker, has_end, read_batches
from ps.deltas.encoding import BatchEncoder
from ps.errors import DeltaError, RequestError
from ps.keys import bucket_of
from ps.serving_rows import RowEncoder, serving_spec
from ps.storage.table import Table
from tests.ps.driving import NUM_BUCKETS, TWO_TABLES, keys_of


@pytest.fixture(scope="module")
def tables():
    made = {
        name: Table(name, spec, seed=TWO_TABLES.seed, num_buckets=NUM_BUCKETS)
        for name, spec in TWO_TABLES.tables.items()
    }
    for name, width in (("user", 3), ("item", 2)):
        keys = keys_of(*range(1, 40))
        made[name].write_values(keys, np.arange(39 * width, dtype=np.float32).reshape(39, width))
    return made


@pytest.fixture(scope="module")
def encoder(tables):
    return BatchEncoder(TWO_TABLES, tables, DeltaOptions(directory="/unused", codec="fp16"))


def encoded(encoder, offset, *works, **end):
    encoder.begin(offset)
    for work in works:
        for _ in work:
            pass
    return b"".join(encoder.end(**{"epoch": 3, "at": 20.5, "since": 20.25, "total": 7, **end}))


def test_rows_and_tombstones_come_back(tables, encoder):
    keys = keys_of(1, 2, 100, 200)
    works = encoder.set_rows("user", keys), encoder.remove_rows("user", keys), encoder.remove_rows("item", keys_of(1))
    data = encoded(encoder, 9, *works, marker=Marker("v1", 12, 1.5))
    (batch,) = read_batches(data, "here")
    assert (batch.offset, batch.epoch, batch.at, batch.since, batch.total) == (9, 3, 20.5, 20.25, 7)
    assert (batch.records, batch.marker) == (4, Marker("v1", 12, 1.5))
    rows, gone = batch.rows  # a key that has a row is no tombstone
    assert set(rows.full[0].tolist()) == set(keys_of(1, 2).tolist())
    assert set(gone.removed.tolist()) == set(keys_of(100, 200).tolist())
    decoder = RowEncoder(serving_spec(TWO_TABLES, "fp16").tables["user"])
    np.testing.assert_array_equal(decoder.decode(rows.full[1]), tables["user"].pull(rows.full[0]).astype(np.float16))
    assert encoder.num_bytes == len(data)


def test_a_bucket_comes_whole_also_when_it_is_empty(tables, encoder):
    works = [encoder.replace_bucket(name, bucket) for bucket in (3, 5) for name in ("user", "item")]
    tables["user"].drop_bucket(5)
    (batch,) = read_batches(encoded(encoder, 1, *works), "here")
    there = [(frame.table, frame.dropped or set(frame.full[0].tolist())) for frame in batch.rows]
    third, fifth = (
        {key for key in keys_of(*range(1, 40)).tolist() if bucket_of(np.array([key], np.uint64), NUM_BUCKETS) == bucket}
        for bucket in (3, 5)
    )
    assert third
    assert fifth
    assert there[:4] == [("user", (3,)), ("user", third), ("item", (3,)), ("item", third)]
    assert there[4:] == [("user", (5,)), ("item", (5,)), ("item", fifth)]


def test_batches_stand_behind_one_another(encoder):
    data = b"".join(encoded(encoder, offset, encoder.set_rows("user", keys_of(offset))) for offset in (4, 5, 6))
    assert [batch.offset for batch in read_batches(data, "here")] == [4, 5, 6]


def test_damage_is_named_with_its_byte_and_an_end_inside_is_told_apart(encoder):
    data = encoded(encoder, 4, encoder.set_rows("user", keys_of(*range(6, 20))))
    assert has_end(data)
    for cut in range(1, len(data)):
        with pytest.raises(IncompleteError, match=r"here ends at byte \d+, inside"):
            read_batches(data[:cut], "here")
        assert not has_end(data[:cut])
    for at in range(len(data)):
        with pytest.raises(DeltaError, match=r"here (at|ends at) byte"):
            read_batches(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :], "here")


@pytest.mark.parametrize("marker", [("", 1, 2.0), ("v" * 201, 1, 2.0), ("v1", -1, 2.0), ("v1", 1 << 63, 2.0)])
def test_markers_that_could_not_be_read_are_refused(marker):
    with pytest.raises(RequestError, match="a version has 1 to 200 characters, a step is not negative"):
        Marker(*marker).check()
    with pytest.raises(RequestError, match="must be unix seconds"):
        Marker("v1", 1, float("nan")).check()
