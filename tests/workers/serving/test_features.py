"""Requests become the very keys, dense values and pooled rows that training makes of the same raw rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.serving_rows import serving_spec
from ps.storage.unique import unique_by_bucket
from workers.config import Config
from workers.exporting.bundling import resolved_fields
from workers.samples.chunk import Chunk
from workers.samples.schema import Schema
from workers.serving.client import encode
from workers.serving.columns import from_json
from workers.serving.errors import MalformedError
from workers.serving.features import Features
from workers.serving.model import Model
from workers.serving.request import Request, read_message
from workers.training.lookup import RowLeaves

SEGMENTS = {"linear": {"dim": 1}, "embedding": {"dim": 3}}
CONFIG = Config.model_validate(
    {
        "name": "parity",
        "data": {"format": "parquet", "train": "x"},
        "labels": {"click": "binary"},
        "fields": {
            "user": {"type": "categorical", "table": "users", "slot": 9},
            "tags": {"type": "multi", "table": "items", "pooling": "mean", "max_length": 2},
            "words": {"type": "multi", "table": "items", "separator": ", "},
            "item": {"type": "categorical", "table": "items"},
            "price": "numeric",
            "price_log": {"type": "numeric", "column": "price", "transform": "log", "missing": 2.5},
            "price_bucket": {
                "type": "numeric", "column": "price", "transform": "buckets", "boundaries": [-1, 0.1, 7],
                "table": "users",
            },
        },
        "tables": {"users": {"segments": SEGMENTS}, "items": {"segments": SEGMENTS}},
        "model": "deepfm",
    }
)  # fmt: skip
FEATURES = Features(resolved_fields(CONFIG))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
PRICE = st.one_of(st.none(), st.floats(-1e30, 1e30), st.sampled_from([0.1, -1.0, 7.0, 0.0, -0.0]))
ROW = st.fixed_dictionaries(
    {
        "user": st.one_of(st.none(), TEXT),
        "tags": st.one_of(st.none(), st.lists(TEXT, max_size=4)),
        "words": st.one_of(st.none(), st.lists(TEXT, max_size=3).map(", ".join)),
        "item": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "price": PRICE,
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=5)
TYPES = {
    "user": pa.string(),
    "tags": pa.list_(pa.string()),
    "words": pa.string(),
    "item": pa.int64(),
    "price": pa.float64(),
}


def training_batch(rows):
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    columns["click"] = pa.array([0.0] * len(rows))
    return Schema(CONFIG).parse(Chunk(columns, len(rows), lambda row: f"row {row}"))


def bags_of(sample):
    """By table and field, the keys of each candidate's bag; of fields that are not pooled, bags of one key."""
    found = {}
    for table, names in FEATURES.tables.items():
        own = sample.tables[table]
        for f, name in enumerate(names):
            bags = []
            first, count, _, step = next(run for run in own.runs.tolist() if run[2] == f)
            assert count == (sample.num_candidates if step else 1)
            for place in [first + step * candidate for candidate in range(sample.num_candidates)]:
                if place < len(own.keys):
                    bags.append([int(own.keys[place])])
                else:
                    members = own.bags.keys[own.bags.bags == place - len(own.keys)]
                    bags.append(own.keys[members].tolist())
            found[table, name] = bags
    return found


def training_bags(batch):
    found = {}
    for table, bags in batch.bags.items():
        width = len(bags.fields)
        offsets = np.arange(batch.size * width + 1) if bags.offsets is None else bags.offsets
        for f, name in enumerate(bags.fields):
            places = range(f, batch.size * width, width)
            found[table, name] = [bags.keys[offsets[p] : offsets[p + 1]].tolist() for p in places]
    return found


def json_sample(rows, shared=()):
    request = Request(
        "r",
        "",
        len(rows),
        {name: from_json(name, [rows[0][name]]) for name in shared},
        {name: from_json(name, [row[name] for row in rows]) for name in TYPES if name not in shared},
    )
    return FEATURES.read(request)


def packed_sample(rows):
    message = encode({}, {name: [row[name] for row in rows] for name in TYPES})
    return FEATURES.read(read_message(message, 1000))


@pytest.mark.parametrize("read", [json_sample, packed_sample])
@given(ROWS)
def test_keys_and_dense_values_are_those_of_training(read, rows):
    batch, sample = training_batch(rows), read(rows)
    assert bags_of(sample) == training_bags(batch)
    assert sample.dense.tobytes() == batch.dense.tobytes()


@given(ROW, st.integers(1, 3), st.sets(st.sampled_from(sorted(TYPES)), min_size=1, max_size=4))
def test_shared_columns_read_as_if_they_were_repeated(row, count, shared):
    repeated, sample = training_batch([row] * count), json_sample([row] * count, shared)
    assert bags_of(sample) == training_bags(repeated)
    assert sample.dense.tobytes() == repeated.dense.tobytes()


class Random:
    """Rows that depend on their key, of any table."""

    def pull(self, table, keys):
        lanes = [np.random.default_rng(int(key)).standard_normal(4) for key in keys]
        return np.array(lanes, np.float32).reshape(len(keys), 4), 0

    def spread(self, table, keys, spread):
        spread.put(self.pull(table, keys)[0])
        return 0


@given(ROWS)
def test_rows_are_pooled_and_ordered_as_in_training(rows):
    batch, sample, source = training_batch(rows), json_sample(rows), Random()
    spec = serving_spec(CONFIG.cluster_spec(), "fp32")
    order = tuple(CONFIG.slots())
    model = Model("m", "v", FEATURES, source, None, spec.tables, dict.fromkeys(SEGMENTS, order), {})
    found, _ = model.feeds([sample])
    unique = {table: unique_by_bucket(bags.keys, 1)[:2] for table, bags in batch.bags.items()}
    pulled = {table: source.pull(table, keys)[0] for table, (keys, _) in unique.items()}
    inverse = {table: places for table, (_, places) in unique.items()}
    leaves = RowLeaves(batch, pulled, inverse, CONFIG.cluster_spec().tables, order, train=False)
    for segment, expected in leaves.segments.items():
        assert found[segment].tobytes() == expected.contiguous().numpy().tobytes()


GOOD = {"user": "u", "tags": ["a"], "words": "x, y", "item": 3, "price": 1.5}


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"user": None, "uesr": "u"}, "candidates.uesr", "unknown column; did you mean 'user'"),
        ({"user": 1.5}, "candidates.user", "numbers with fractions are no categories"),
        ({"user": ["a"]}, "candidates.user", "lists, where each row has one value"),
        ({"price": "cheap"}, "candidates.price", "'cheap' is not a finite number"),
        ({"price": [1.0]}, "candidates.price", "lists, where each row has one value"),
        ({"price": 1e39}, "candidates.price", "beyond float32"),
    ],
)
def test_columns_that_do_not_fit_are_named(changes, field, text):
    row = {**GOOD, **changes}
    request = Request("r", "", 1, {}, {name: from_json(f"candidates.{name}", [value]) for name, value in row.items()})
    with pytest.raises(MalformedError, match=text) as caught:
        FEATURES.read(request)
    assert caught.value.field == field


def test_each_column_stands_in_one_place():
    columns = {name: from_json(name, [value]) for name, value in GOOD.items()}
    without = {name: column for name, column in columns.items() if name != "item"}
    for shared, candidates, text in (
        ({}, without, "item: missing; give it under shared or under candidates"),
        ({"item": columns["item"]}, columns, "candidates.item: stands under shared too"),
    ):
        with pytest.raises(MalformedError, match=text):
            FEATURES.read(Request("r", "", 1, shared, candidates))
    with pytest.raises(MalformedError, match="1 rows; there are 2 candidates"):
        FEATURES.read(Request("r", "", 2, {}, columns))
    with pytest.raises(MalformedError, match="2 rows; a shared column has one row"):
        FEATURES.read(Request("r", "", 1, {**columns, "item": from_json("shared.item", [1, 2])}, {}))
