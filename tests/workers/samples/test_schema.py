"""Columns to keys, dense values and labels, against values worked out by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.keys import hash_texts
from tests.workers.samples.making import bag, config, key
from workers.samples.batch import Batch
from workers.samples.chunk import Chunk
from workers.samples.columns import hash_lists, hash_values
from workers.samples.errors import DataError
from workers.samples.schema import Schema


def parse(columns: dict[str, Any], fields: dict[str, Any], **parts: Any) -> Batch:
    columns = {"click": ["0"] * len(next(iter(columns.values())))} | columns
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    chunk = Chunk(arrays, len(arrays["click"]), lambda row: f"f.csv:{row + 2}")
    return Schema(config({"train": "none"}, fields, **parts)).parse(chunk)


@given(st.lists(st.text(max_size=40) | st.none()), st.integers(0, 5))
def test_texts_hash_as_their_bytes(values: list[str | None], cut: int) -> None:
    expected = hash_texts([value or "" for value in values]) if values else np.zeros(0, np.uint64)
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        array = pa.array(values, kind)
        np.testing.assert_array_equal(hash_values(array), expected)
        np.testing.assert_array_equal(hash_values(array.slice(cut)), expected[cut:])


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.none(), min_size=1))
def test_integers_hash_as_decimal_text(values: list[int | None]) -> None:
    texts = ["" if value is None else str(value) for value in values]
    np.testing.assert_array_equal(hash_values(pa.array(values, pa.int64())), hash_texts(texts))


def test_null_columns_and_whole_floats() -> None:
    np.testing.assert_array_equal(hash_values(pa.nulls(2)), hash_texts(["", ""]))
    np.testing.assert_array_equal(hash_values(pa.array([3.0, None])), hash_texts(["3", ""]))


@given(st.lists(st.lists(st.sampled_from(["", "a", "bc", "d"]), max_size=5)), st.none() | st.integers(1, 4))
def test_lists_and_separated_text_agree_with_plain_python(rows: list[list[str]], longest: int | None) -> None:
    kept = [[value for value in row if value][:longest] for row in rows]
    expected = hash_texts([value for row in kept for value in row]) if any(kept) else np.zeros(0, np.uint64)
    for array in (pa.array(rows, pa.list_(pa.string())), pa.array(["|".join(row) for row in rows], pa.string())):
        hashes, lengths = hash_lists(array, "|", longest)
        np.testing.assert_array_equal(hashes, expected)
        assert lengths.tolist() == [len(row) for row in kept]


def test_null_lists_are_empty_bags() -> None:
    for array in (pa.array([[1], None, []]), pa.array(["1", None, ""])):
        hashes, lengths = hash_lists(array, "|", None)
        assert lengths.tolist() == [1, 0, 0]
        np.testing.assert_array_equal(hashes, hash_texts(["1"]))


def test_single_keys_lie_sample_by_sample() -> None:
    batch = parse({"a": ["x", ""], "b": [7, None]}, {"b": {"type": "categorical", "slot": 9}, "a": "categorical"})
    bags = batch.bags["main"]
    assert bags.fields == ("b", "a")
    assert bags.offsets is None
    assert bags.keys.tolist() == [key(9, "7"), key(0, "x"), key(9, ""), key(0, "")]


def test_bags_of_several_fields() -> None:
    batch = parse(
        {"a": ["x", "y"], "t": ["p;q", ""], "u": [[1, 2, 3], [4]]},
        {
            "t": {"type": "multi", "separator": ";"},
            "a": "categorical",
            "u": {"type": "multi", "pooling": "mean", "max_length": 2},
        },
    )
    assert batch.bags["main"].mean == (False, False, True)
    assert bag(batch, 0, "t") == [key(0, "p"), key(0, "q")]
    assert bag(batch, 0, "a") == [key(1, "x")]
    assert bag(batch, 0, "u") == [key(2, "1"), key(2, "2")]
    assert bag(batch, 1, "t") == []
    assert bag(batch, 1, "a") == [key(1, "y")]
    assert bag(batch, 1, "u") == [key(2, "4")]


def test_each_table_has_its_fields() -> None:
    tables = {name: {"segments": {"embedding": {"dim": 2}}} for name in ("users", "items")}
    fields = {
        "item": {"type": "categorical", "table": "items"},
        "user": {"type": "categorical", "table": "users"},
        "brand": {"type": "categorical", "table": "items"},
    }
    batch = parse({"user": ["u"], "item": ["i"], "brand": ["b"]}, fields, tables=tables)
    assert batch.bags["users"].keys.tolist() == [key(1, "u")]
    assert batch.bags["items"].keys.tolist() == [key(0, "i"), key(2, "b")]


def test_numbers_raw_log_and_missing() -> None:
    batch = parse(
        {"a": ["1.5", "", " -2e1 "], "b": [-3.0, None, 0.0]},
        {"a": "numeric", "b": {"type": "numeric", "transform": "log", "missing": 1.0}},
    )
    expected = [[1.5, -np.log(4)], [0.0, np.log(2)], [-20.0, 0.0]]
    np.testing.assert_array_equal(batch.dense, np.array(expected, np.float32))


def test_buckets_are_keys_of_their_interval() -> None:
    field = {"type": "numeric", "transform": "buckets", "boundaries": [0, 10]}
    batch = parse({"a": ["-1", "0", "9.99", "10", ""]}, {"a": field})
    assert batch.bags["main"].keys.tolist() == [key(0, text) for text in ("0", "1", "1", "2", "")]
    assert batch.dense.shape == (5, 0)


def test_labels_of_every_type() -> None:
    labels = {
        "click": {"type": "binary", "empty": "masked"},
        "rich": {"column": "income", "equals": ">50K"},
        "liked": {"column": "rating", "at_least": 4, "empty": "masked"},
        "watched": {"type": "weight"},
        "delta": {"type": "real"},
    }
    batch = parse(
        {
            "click": ["1", "", "0"],
            "income": [" >50K", "<50K", ">50K "],
            "rating": ["4", "3", ""],
            "watched": [2.5, 0, 1],
            "delta": [-1, 0, 2],
            "a": ["", "", ""],
        },
        {"a": "categorical"},
        labels=labels,
    )
    nan = np.nan
    expected = [[1, 1, 1, 2.5, -1], [nan, 0, 0, 0, 0], [0, 1, nan, 1, 2]]
    np.testing.assert_array_equal(batch.labels, np.array(expected, np.float32))


def test_group_time_and_weight() -> None:
    time = pa.array([1_500_000, 2_000_000], pa.timestamp("us"))
    batch = parse(
        {"a": ["x", "y"], "w": ["0.5", "2"], "t": time},
        {"a": "categorical"},
        group="a",
        event_time="t",
        sample_weight="w",
    )
    assert batch.groups is not None
    np.testing.assert_array_equal(batch.groups, hash_texts(["x", "y"]))
    assert batch.event_time is not None
    assert batch.event_time.tolist() == [1.5, 2.0]
    assert batch.weights is not None
    assert batch.weights.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("columns", "fields", "parts", "expected"),
    [
        ({"a": ["1", "x1", "y"]}, {"a": "numeric"}, {}, "f.csv:3: column 'a': 'x1' is not a number"),
        ({"a": ["1", "2", "nan"]}, {"a": "numeric"}, {}, "f.csv:4: column 'a': 'nan' is not a finite number"),
        ({"a": ["1", "-inf", "2"]}, {"a": "numeric"}, {}, "f.csv:3: column 'a': '-inf' is not a finite number"),
        ({"a": [1.0, float("nan")]}, {"a": "numeric"}, {}, "f.csv:3: column 'a': nan is not a finite number"),
        ({"a": ["1e39"]}, {"a": "numeric"}, {}, "f.csv:2: column 'a': '1e39' is beyond float32"),
        ({"a": [[1]]}, {"a": "numeric"}, {}, "column 'a' has the type list<item: int64>, not numbers"),
        ({"a": [[1]]}, {"a": "categorical"}, {}, "column 'a' has the type list<item: int64>; type: multi reads lists"),
        ({"a": ["", ""], "click": ["0", "2"]}, {"a": "categorical"}, {},
         "f.csv:3: column 'click': '2' is no label of type binary; allowed: 0 or 1"),
        ({"a": ["", ""], "click": ["0", ""]}, {"a": "categorical"}, {},
         "f.csv:3: column 'click': '' is no label of type binary; 'empty: masked' would allow"),
        ({"a": [""], "click": ["-1"]}, {"a": "categorical"}, {"labels": {"click": "weight"}}, "allowed: a number >= 0"),
        ({"a": [""], "w": ["-1"]}, {"a": "categorical"}, {"sample_weight": "w"}, "'-1' is no sample weight"),
        ({"a": [""], "t": [""]}, {"a": "categorical"}, {"event_time": "t"}, "'' is no event time; allowed: a number"),
    ],
)  # fmt: skip
def test_mistakes(columns: dict[str, Any], fields: dict[str, Any], parts: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(columns, fields, **parts)
    assert expected in str(caught.value)


@given(st.integers(0, 30), st.integers(1, 31))
def test_the_first_bad_number_is_named(bad: int, size: int) -> None:
    values = [str(i) if i < bad else "bad" for i in range(size)]
    if bad >= size:
        assert parse({"a": values}, {"a": "numeric"}).size == size
        return
    with pytest.raises(DataError, match=f"^f.csv:{bad + 2}: column 'a': 'bad' is not a number$"):
        parse({"a": values}, {"a": "numeric"})
