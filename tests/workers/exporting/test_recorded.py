"""Recorded samples: what a request carries makes the very keys and dense values that training made."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workers.training.recipe import load
from workers.exporting.recorded import record
from workers.samples.chunk import Chunk
from workers.samples.errors import DataError
from workers.samples.schema import Schema

CSV = "click,user,price,tags\n1,a,2.5,x|y\n0,,,\n1,ümlaut,-1e3,x\n0,007, 4 ,y|y|z\n"
FIELDS = {
    "user": "categorical",
    "tags": {"type": "multi", "pooling": "mean"},
    "price": {"type": "numeric", "transform": "log", "missing": 2.0},
    "level": {"type": "numeric", "column": "price", "transform": "buckets", "boundaries": [0, 3]},
}
FILES = {"data.generated": None, "group": None, "data.batch_size": 2, "fields": FIELDS}


def parsed_again(config, found):
    """The batch of the request's columns, after JSON."""
    columns = json.loads(json.dumps(found.columns, allow_nan=False))
    arrays = {name: pa.array(values) for name, values in columns.items()}
    size = found.batch.size
    labels = {"click": pa.array(np.zeros(size))}
    return Schema(config).parse(Chunk({**arrays, **labels}, size, lambda row: f"request {row}"))


def assert_same_features(config, found):
    again = parsed_again(config, found)
    for table, bags in found.batch.bags.items():
        np.testing.assert_array_equal(again.bags[table].keys, bags.keys)
        np.testing.assert_array_equal(again.bags[table].offsets, bags.offsets)
    np.testing.assert_array_equal(again.dense, found.batch.dense)


def test_text_files(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    config = load(tmp_path, {**FILES, "data.format": "csv", "data.train": "train.csv", "data.root": str(tmp_path)})
    found = record(config, Schema(config), 100)
    assert found.split == "train"
    assert found.columns == {
        "user": ["a", "", "ümlaut", "007"],
        "tags": ["x|y", "", "x", "y|y|z"],
        "price": [2.5, None, -1000.0, 4.0],
    }
    assert_same_features(config, found)
    assert record(config, Schema(config), 2).batch.size == 2


def test_typed_files(tmp_path):
    now = datetime(2026, 1, 2, tzinfo=UTC)
    table = pa.table(
        {
            "click": [1, 0, 1, 0],
            "user": pa.array([1.0, 2.5, None, 1e20]),
            "city": pa.array(["a", None, "b", "a"]).dictionary_encode(),
            "bot": pa.array([True, False, None, True]),
            "big": pa.array([2**63 - 1, None, -5, 0], pa.int64()),
            "tags": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int64())),
            "at": pa.array([now, None, now, now], pa.timestamp("us", tz="UTC")),
            "price": pa.array([0.1, None, 3.0, 4.0], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    fields = {
        **dict.fromkeys(("user", "city", "bot", "big"), "categorical"),
        "tags": "multi",
        "at": {"type": "numeric", "transform": "log"},
        "price": "numeric",
    }
    files = {"data.format": "parquet", "data.train": "train.parquet", "data.root": str(tmp_path)}
    config = load(tmp_path, {**FILES, **files, "fields": fields})
    found = record(config, Schema(config), 100)
    assert found.columns["user"][1:] == ["2.5", None, "1e+20"]
    assert found.columns["bot"] == ["true", "false", None, "true"]
    assert found.columns["big"] == [2**63 - 1, None, -5, 0]
    assert found.columns["at"] == [now.timestamp(), None, now.timestamp(), now.timestamp()]
    assert_same_features(config, found)


def test_the_generated_log_gives_its_test_split(tmp_path):
    config = load(tmp_path)
    found = record(config, Schema(config), 100)
    assert (found.split, found.batch.size) == ("test", 100)
    assert_same_features(config, found)
    keys = found.keys["main"]
    assert (np.diff(keys.astype(object)) > 0).all()


def test_a_split_without_rows_is_refused(tmp_path):
    schema = pa.schema([("click", pa.int64()), ("user", pa.string()), ("price", pa.float64()), ("tags", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "train.parquet")
    files = {"data.format": "parquet", "data.train": "train.parquet", "data.root": str(tmp_path)}
    config = load(tmp_path, {**FILES, **files})
    with pytest.raises(DataError, match="empty: no rows"):
        record(config, Schema(config), 100)
