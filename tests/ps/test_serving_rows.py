"""Rows as they are served: codecs, initial values, images that are interchangeable with a table's."""

import numpy as np
import pytest

from ps.errors import RequestError
from ps.serving_rows import RowEncoder, serving_spec, serving_table, unserved_table
from ps.spec import ClusterSpec, SegmentSpec, TableSpec
from ps.storage.table import Table

TRAINED = TableSpec(
    segments={
        "linear": SegmentSpec(dim=1, optimizer={"name": "ftrl"}),
        "embedding": SegmentSpec(dim=5, initializer={"name": "normal", "std": 0.1}, codec="fp16", late=2.0),
    },
    keep_counts=True,
)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
def test_images_are_those_of_a_table_and_come_back(codec):
    spec = serving_table(TRAINED, codec)
    values = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    keys = np.arange(1, 10, dtype=np.uint64)
    encoder, table = RowEncoder(spec), Table("main", spec, seed=3, num_buckets=4)
    images = encoder.encode(values)
    assert images.shape == (9, encoder.image_bytes)
    table.write_images(keys, images)
    np.testing.assert_array_equal(table.pull(keys), encoder.decode(images))
    written = Table("main", spec, seed=3, num_buckets=4)
    written.write_values(keys, values)
    np.testing.assert_array_equal(written.pull(keys), table.pull(keys))
    if codec == "fp32":
        np.testing.assert_array_equal(encoder.decode(images), values)


def test_rows_that_do_not_exist_read_as_in_training():
    keys = np.arange(100, dtype=np.uint64)
    trained = Table("main", TRAINED, seed=3, num_buckets=4)
    served = Table("main", unserved_table(TRAINED), seed=3, num_buckets=4)
    np.testing.assert_array_equal(served.pull(keys), trained.pull(keys))


def test_saturated_elements_are_counted():
    encoder = RowEncoder(serving_table(TRAINED, "fp16"))
    encoder.encode(np.full((2, 6), 1e6, np.float32))
    assert encoder.saturated == 12


def test_a_codec_by_table_and_segment():
    spec = ClusterSpec(tables={"main": TRAINED}, seed=5, num_buckets=8)
    served = serving_spec(spec, {"main": {"linear": "fp32", "embedding": "int8"}})
    assert (served.seed, served.num_buckets) == (5, 8)
    assert {name: each.codec for name, each in served.tables["main"].segments.items()} == {
        "linear": "fp32",
        "embedding": "int8",
    }
    assert served.tables["main"].late is None
    assert not served.tables["main"].keeps_counts
    with pytest.raises(RequestError, match="codec: must name the segments linear, embedding; they differ in linear"):
        serving_spec(spec, {"main": {"embedding": "int8"}})
    with pytest.raises(RequestError, match="must name the tables main; found none"):
        serving_spec(spec, {})
