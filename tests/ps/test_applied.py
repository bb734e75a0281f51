"""Exactly once: the window over buckets against a plain set, expiry, entries that move with a bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.applied import WINDOW, Applied
from ps.errors import ExpiredError

BUCKETS = 4


def some(*buckets):
    return np.array(buckets, np.int64)


def apply(applied, client, sequence, buckets, now=0.0):
    """The buckets that took the update, as a shard would do it."""
    fresh = applied.fresh(client, sequence, buckets)
    applied.mark(client, sequence, buckets[fresh], now=now)
    return buckets[fresh].tolist()


messages = st.tuples(
    st.sampled_from([1, 2**64 - 1]),
    st.integers(1, 3 * WINDOW),
    st.sets(st.integers(0, BUCKETS - 1), min_size=1).map(sorted),
)


@given(st.lists(messages, max_size=60))
def test_every_bucket_takes_an_update_once_or_refuses_it(events):
    applied, seen, highest = Applied(BUCKETS), set(), {}
    for client, sequence, buckets in events:
        late = [b for b in buckets if highest.get((client, b), 0) - sequence >= WINDOW]
        if late:
            with pytest.raises(ExpiredError, match="behind the newest of bucket"):
                apply(applied, client, sequence, some(*buckets))
            continue
        expected = [b for b in buckets if (client, sequence, b) not in seen]
        assert apply(applied, client, sequence, some(*buckets)) == expected
        seen |= {(client, sequence, b) for b in buckets}
        for b in buckets:
            highest[client, b] = max(highest.get((client, b), 0), sequence)


@given(st.lists(messages, max_size=30), st.integers(1, 3 * WINDOW))
def test_entries_carry_all_that_a_bucket_knows(events, probe):
    applied = Applied(BUCKETS)
    for client, sequence, buckets in events:
        try:
            apply(applied, client, sequence, some(*buckets))
        except ExpiredError:
            continue
    moved = Applied(BUCKETS)
    moved.mark(77, 5, some(0, 1, 2, 3), now=0.0)  # loading replaces
    for bucket in range(BUCKETS):
        moved.load(bucket, applied.entries(bucket), now=1.0)
        assert moved.entries(bucket) == applied.entries(bucket)
        for client in (1, 2**64 - 1, 77):
            outcomes = []
            for state in (applied, moved):
                try:
                    outcomes.append(state.fresh(client, probe, some(bucket)).tolist())
                except ExpiredError:
                    outcomes.append("expired")
            assert outcomes[0] == outcomes[1]


def test_a_client_without_sequence_one_is_new():
    applied = Applied(BUCKETS)
    assert apply(applied, 9, 1_000_000, some(2)) == [2]
    assert apply(applied, 9, 1_000_000 - WINDOW + 1, some(2)) == [2]
    with pytest.raises(ExpiredError, match="at most 64 updates unsettled"):
        applied.fresh(9, 1_000_000 - WINDOW, some(2))


def test_quiet_clients_expire_and_stay_refused():
    applied = Applied(BUCKETS)
    for client in (1, 2, 3):
        apply(applied, client, 1, some(0), now=10.0 * client)
    assert applied.expire(now=35.0, max_clients=10, max_idle_seconds=20.0) != []
    assert applied.expire(now=35.0, max_clients=1, max_idle_seconds=20.0) != []
    assert applied.num_clients == 1
    for client in (1, 2):
        with pytest.raises(ExpiredError, match="quiet for too long"):
            applied.fresh(client, 2, some(1))
    assert apply(applied, 3, 2, some(0)) == [0]
    other = Applied(BUCKETS)
    other.load_expired(applied.expired_ids())
    with pytest.raises(ExpiredError):
        other.fresh(2, 99, some(3))
    other.clear()
    assert apply(other, 2, 99, some(3)) == [3]


def test_a_dropped_bucket_forgets():
    applied = Applied(BUCKETS)
    apply(applied, 1, 1, some(0, 1))
    applied.drop_bucket(0)
    assert applied.entries(0) == b""
    assert apply(applied, 1, 1, some(0, 1)) == [0]
