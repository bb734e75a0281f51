"""Columns of requests: the same values whatever form they come in; what is wrong is named."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.keys import hash_texts, pack
from ps.wire import serving_pb2 as pb
from workers.serving.client import _message_of
from workers.serving.columns import MAX_TEXT_BYTES, decimal_texts, from_json
from workers.serving.errors import MalformedError
from workers.serving.messages import PlainTexts, columns_of, keys_of_texts

TEXTS = st.lists(st.text(max_size=6), min_size=1, max_size=8)


def column_of(place, message):
    where, name = place.split(".")
    return columns_of(where, {name: message})[name]


def read(place="candidates.a", **fields):
    return column_of(place, pb.Column(**fields)).checked()


def texts(values):
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return pb.Texts(data=b"".join(raw), ends=np.cumsum([len(each) for each in raw], dtype=np.uint32).tobytes())


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_texts_hash_as_training_hashes_them(columns):
    found = [column_of("candidates.a", pb.Column(texts=texts(values))) for values in columns]
    slot_bits = np.arange(len(columns), dtype=np.uint64) << np.uint64(52)
    together = [pack(slot, hash_texts(values)) for slot, values in enumerate(columns)]
    assert keys_of_texts(found, slot_bits).tolist() == np.concatenate(together).tolist()
    for column, values in zip(found, columns, strict=True):
        assert isinstance(column, PlainTexts)
        assert column.checked().hashes().tolist() == hash_texts(values).tolist()
        assert column.to_list() == values
        assert from_json("a", values).hashes().tolist() == hash_texts(values).tolist()
        again = column_of("candidates.b", _message_of(column.checked()))
        assert again.to_list() == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_integers_hash_as_their_decimal_text(values):
    data, offsets = decimal_texts(np.array(values, np.int64))
    assert [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)] == list(map(str, values))
    expected = hash_texts([str(value) for value in values]).tolist()
    assert read(int64s=np.array(values, np.int64).tobytes()).hashes().tolist() == expected
    if values:
        assert from_json("a", values).hashes().tolist() == expected


def test_ids_are_taken_as_they_are():
    ids = hash_texts(["a", "b"])
    assert read(feature_ids=ids.tobytes()).hashes().tolist() == ids.tolist()


def test_missing_values_are_the_empty_text():
    empty = hash_texts([""])[0]
    marked = read(int64s=np.array([5, 6]).tobytes(), missing=b"\0\1")
    assert marked.hashes().tolist() == [hash_texts(["5"])[0], empty]
    assert np.isnan(marked.numbers()).tolist() == [False, True]
    assert from_json("a", ["x", None]).hashes()[1] == from_json("a", [3, None]).hashes()[1] == empty
    assert from_json("a", [None, None]).hashes().tolist() == [empty] * 2
    assert np.isnan(from_json("a", [None, 1.5]).numbers()).tolist() == [True, False]
    assert from_json("a", [1, None]).to_list() == [1, None]


@pytest.mark.parametrize(
    ("text", "value"), [("1.5", 1.5), (" -2e3 ", -2000.0), (".5", 0.5), ("7", 7.0), ("", None), ("  ", None)]
)
def test_numbers_may_be_texts(text, value):
    found = from_json("a", [text]).numbers()[0]
    assert np.isnan(found) if value is None else found == value


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "1_0", "+1", "x", "1 2", "0x10", "\uff11"])
def test_other_texts_are_no_numbers(text):
    with pytest.raises(MalformedError, match="is not a finite number") as caught:
        from_json("shared.a", [text]).numbers()
    assert caught.value.field == "shared.a"


def test_texts_are_split_as_training_splits_them():
    assert from_json("a", ["x|y||z", None, ""]).split("|").to_list() == [["x", "y", "", "z"], [""], [""]]
    assert from_json("a", [12, None]).split("|").to_list() == [["12"], []]
    assert from_json("a", ["a--b-c"]).split("--").to_list() == [["a", "b-c"]]


TWO_SLOTS = np.array([1 << 52, 2 << 52], np.uint64)
MALFORMED = {
    "nothing": ({}, "has no values"),
    "bad UTF-8": ({"texts": texts([b"ok", b"a\xff"])}, "value 1 is not UTF-8"),
    "half a character": ({"texts": texts([b"\xc3", b"\xa9"])}, "value 1 begins inside a character"),
    "huge": ({"texts": texts(["", "x" * (MAX_TEXT_BYTES + 1)])}, f"value 1 has {MAX_TEXT_BYTES + 1} bytes"),
    "ends fall": ({"texts": pb.Texts(data=b"abc", ends=np.array([3, 1, 3], np.uint32).tobytes())}, "ends never fall"),
    "ends short": ({"texts": pb.Texts(data=b"abc", ends=np.array([2], np.uint32).tobytes())}, "ends at 2"),
    "ends long": ({"texts": pb.Texts(data=b"abc", ends=np.array([9], np.uint32).tobytes())}, "ends at 9"),
    "odd ends": ({"texts": pb.Texts(data=b"abc", ends=b"\3\0\0")}, "no multiple of 4"),
    "no ends": ({"texts": pb.Texts(data=b"abc")}, "ends at 0"),
    "odd bytes": ({"int64s": b"123"}, "int64s has 3 bytes"),
    "NaN": ({"float64s": np.array([1.0, np.nan]).tobytes()}, "value 1 is nan"),
    "infinity": ({"float32s": np.array([-np.inf], np.float32).tobytes()}, "value 0 is -inf"),
    "lengths": ({"texts": texts(["a", "b"]), "lengths": np.array([3], np.uint32).tobytes()}, "lengths add up to 3"),
    "marks": ({"texts": texts(["a", "b"]), "missing": b"\1"}, "missing has 1 marks"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_columns_are_named(case):
    fields, text = MALFORMED[case]
    good = pb.Column(texts=texts(["fine"]))
    with pytest.raises(MalformedError, match=text) as caught:
        keys_of_texts([column_of("shared.b", good), column_of("candidates.a", pb.Column(**fields))], TWO_SLOTS)
    assert caught.value.field == "candidates.a"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([True], "true or false"),
        ([{"a": 1}], "an object"),
        ([1, "a"], "of one kind"),
        ([[1], "a"], "lists beside texts"),
        ([[[1]]], "a list"),
        ([2**63], "beyond 64 bits"),
        (["x" * (MAX_TEXT_BYTES + 1)], "a text has at most"),
    ],
)
def test_malformed_json_columns_are_named(rows, text):
    with pytest.raises(MalformedError, match=text):
        from_json("a", rows)


def test_marked_nan_counts_as_missing():
    assert np.isnan(read(float64s=np.array([np.nan]).tobytes(), missing=b"\1").numbers()).all()
