"""Dedupe and sums per key against numpy and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.keys import bucket_of
from ps.storage.unique import sum_by_key, take_by_key, unique_by_bucket


def check(keys, num_buckets):
    distinct, inverse, starts = unique_by_bucket(keys, num_buckets)
    assert np.array_equal(distinct[inverse], keys)
    seen = list(dict.fromkeys(keys.tolist()))
    bucket = {key: int(bucket_of(np.array([key], np.uint64), num_buckets)[0]) for key in seen}
    expected = sorted(seen, key=bucket.__getitem__)  # stable: first appearance inside a bucket
    assert distinct.tolist() == expected
    counts = np.bincount([bucket[key] for key in seen], minlength=num_buckets) if seen else np.zeros(num_buckets)
    assert np.array_equal(np.diff(starts), counts)
    assert (starts[0], starts[-1]) == (0, len(seen))


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 8) | st.just(2**64 - 1), max_size=60),
    st.sampled_from([1, 2, 64, 256]),
)
def test_against_a_dict(keys, num_buckets):
    check(np.array(keys, np.uint64), num_buckets)


@pytest.mark.parametrize("num_keys", [1, 1023, 1024, 1025, 5000])
def test_chunk_borders(num_keys):
    check(np.random.default_rng(num_keys).integers(0, 3000, num_keys).astype(np.uint64), 64)


def test_read_only_and_strided_keys():
    keys = np.arange(20, dtype=np.uint64)[::2].copy()
    keys.flags.writeable = False
    assert np.array_equal(np.sort(unique_by_bucket(keys, 4)[0]), keys)
    assert np.array_equal(np.sort(unique_by_bucket(np.arange(20, dtype=np.uint64)[::2], 4)[0]), keys)


@pytest.mark.parametrize("width", [1, 3, 8, 16, 17, 32])
def test_sums_are_taken_in_batch_order(width):
    rng = np.random.default_rng(width)
    keys = rng.integers(0, 40, 500).astype(np.uint64)
    gradients = rng.normal(size=(500, width)).astype(np.float32)
    distinct, inverse, _ = unique_by_bucket(keys, 16)
    expected = np.zeros((len(distinct), width), np.float32)
    for place, row in zip(inverse, gradients):
        expected[place] += row
    assert np.array_equal(sum_by_key(gradients, inverse, len(distinct)), expected)


def test_segments_side_by_side():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 9, 50).astype(np.uint64)
    left, right = rng.normal(size=(50, 1)).astype(np.float32), rng.normal(size=(50, 16)).astype(np.float32)
    distinct, inverse, _ = unique_by_bucket(keys, 8)
    out = np.zeros((len(distinct), 17), np.float32)
    sum_by_key(left, inverse, len(distinct), out=out)
    sum_by_key(right, inverse, len(distinct), out=out, column=1)
    assert np.array_equal(out, sum_by_key(np.hstack([left, right]), inverse, len(distinct)))


def test_shapes_that_do_not_fit():
    inverse = np.zeros(3, np.int64)
    with pytest.raises(RequestError, match="do not fit"):
        sum_by_key(np.zeros((2, 4), np.float32), inverse, 1)
    with pytest.raises(RequestError, match="do not fit"):
        sum_by_key(np.zeros((3, 4), np.float32), inverse, 1, out=np.zeros((1, 4), np.float32), column=1)
    with pytest.raises(RequestError, match="float32"):
        sum_by_key(np.zeros((3, 4), np.float32), inverse, 1, out=np.zeros((1, 4)))


@pytest.mark.parametrize("width", [1, 3, 8, 16, 20])
def test_take_by_key_is_indexing(width):
    rng = np.random.default_rng(width)
    rows = rng.random((50, 24), dtype=np.float32)
    inverse = rng.integers(0, 50, 333)
    columns = slice(2, 2 + width)
    np.testing.assert_array_equal(take_by_key(rows, inverse, columns), rows[inverse, columns])
    with pytest.raises(RequestError, match="columns 20 to 30"):
        take_by_key(rows, inverse, slice(20, 30))
