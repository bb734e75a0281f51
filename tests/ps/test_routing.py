"""Routing: initial ranges, splits of bucket-grouped keys for any owners, the wire form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.routing import Routing, count, ranges


def starts_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def test_initial_assignment_is_contiguous_and_even():
    routing = Routing.initial(256, ["a:1", "b:2", "c:3"])
    sizes = [len(routing.owned(shard)) for shard in range(3)]
    assert sum(sizes) == 256
    assert max(sizes) - min(sizes) <= 1
    assert (np.diff(routing.owners) >= 0).all()
    assert all(isinstance(part, slice) for part in routing.split(starts_of([2] * 256)))


@pytest.mark.parametrize("shards", [0, 5])
def test_initial_refuses_no_shard_and_more_shards_than_buckets(shards):
    with pytest.raises(RequestError, match="need 1 to 4 shards"):
        Routing.initial(4, [f"h:{i}" for i in range(shards)])


def test_owner_without_address_is_refused():
    with pytest.raises(RequestError, match=r"outside 0\.\.1"):
        Routing(1, np.array([0, 2], np.int32), ("a", "b"))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=32),
)
def test_split_selects_each_owned_group_once_in_order(buckets):
    owners = np.array([owner for owner, _ in buckets], np.int32)
    sizes = [size for _, size in buckets]
    bucket_of_key = np.repeat(np.arange(len(sizes)), sizes)
    parts = Routing(1, owners, ("a", "b", "c", "d")).split(starts_of(sizes))
    everything = np.arange(sum(sizes))
    for shard, part in enumerate(parts):
        selected = everything[part]
        assert count(part) == len(selected)
        np.testing.assert_array_equal(selected, np.flatnonzero(owners[bucket_of_key] == shard))


def test_ranges():
    np.testing.assert_array_equal(ranges(np.array([5, 2, 9]), np.array([7, 2, 10])), [5, 6, 9])


def test_message_round_trip():
    routing = Routing(7, np.array([1, 0, 1, 1], np.int32), ("host:1", "host:2"))
    copy = Routing.from_message(routing.to_message())
    assert (copy.epoch, copy.addresses) == (7, routing.addresses)
    np.testing.assert_array_equal(copy.owners, routing.owners)
