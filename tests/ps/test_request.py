"""Messages are checked before they reach the thread of work: every mistake is one clear error."""

from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.request import check_request
from ps.wire import weir_pb2 as pb
from tests.ps.driving import NUM_BUCKETS, SPEC, TWO_TABLES, call, keys_in, message, push

KEYS = keys_in(range(NUM_BUCKETS))


def good():
    return message(push(KEYS), client=1, sequence=1)


def changed(**fields):
    made = good()
    for name, value in fields.items():
        setattr(made.calls[0] if name in pb.Call.DESCRIPTOR.fields_by_name else made, name, value)
    return made


def test_what_a_good_message_becomes():
    checked = check_request(message(push(KEYS, 0.5, dtype=pb.BFLOAT16), client=3, sequence=9, step=4, epoch=7), SPEC)
    (push_call,) = checked.calls
    assert (checked.client, checked.sequence, checked.step, checked.routing_epoch) == (3, 9, 4, 7)
    assert checked.is_update
    assert push_call.keyed.buckets.tolist() == list(range(NUM_BUCKETS))
    np.testing.assert_array_equal(push_call.keyed.keys, KEYS)
    np.testing.assert_array_equal(push_call.payload, np.full((len(KEYS), 3), 0.5, np.float32))
    assert push_call.learning_rates.tolist() == [1.0, 1.0]  # the spec's own


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (changed(wire_version=9), "wire version 9 is unknown"),
        (changed(step=-1), "step is -1"),
        (changed(client=0), "an update needs an identity"),
        (changed(sequence=0), "an update needs an identity"),
        (changed(table="usr"), r"call 0 \('push' on table 'usr'\): no such table; there are: user"),
        (changed(psfunc="pusch"), r"no psfunc 'pusch' here; known: .*delete, .*fill"),
        (changed(args=b"\xc1"), "arguments cannot be read"),
        (changed(keys=b"1234567"), "no whole number of uint64"),
        (changed(keys=KEYS[::-1].tobytes()), "not grouped by bucket"),
        (changed(payload=b"\0" * 13), "13 bytes holds no whole rows of width 3"),
        (changed(payload=b"\0" * 24), "payload has 2 rows of width 3 for 32 keys"),
        (changed(dtype=7), "dtype 7 is unknown; known are FLOAT32, FLOAT16, BFLOAT16"),
        (changed(drop_above=1.0), "travel with group messages only"),
        (changed(drop_below=float("nan")), "must be finite and not negative"),
        (message(push(KEYS, learning_rates=[1.0]), sequence=1), "1 learning rates for 2 segments"),
        (message(push(KEYS, learning_rates=[1.0, float("inf")]), sequence=1), "must be finite and not negative"),
        (message(push(KEYS, learning_rates=[1.0, -1.0]), sequence=1), "must be finite and not negative"),
        (message(call("pull", keys=KEYS, payload=np.zeros((1, 3)))), "it takes no payload"),
        (message(call("sweep", keys=KEYS), sequence=1), "it takes no keys"),
        (message(call("sum", args=b"\x81\xa7segment\xa1x")), "no segment 'x' in the table; it has: linear, embedding"),
        (message(call("sum", args=b"\x81\xa7segment\x90")), "no segment"),
        (message(push(KEYS), sequence=1, group=(1, 2, 2)), "rank 2 of world 2"),
        (message(push(KEYS), sequence=1, group=(1, 0, 1000)), "rank < world <= 64"),
        (message(push(KEYS), push(KEYS), sequence=1, group=(1, 0, 2)), "at most one push a table"),
        (message(call("pull", keys=KEYS), sequence=1, group=(1, 0, 2)), "at most one push a table, then sweeps"),
    ],
)
def test_mistakes(request_, error):
    with pytest.raises(RequestError, match=error):
        check_request(request_, SPEC)


def test_a_message_of_reads_needs_no_identity():
    assert not check_request(message(call("pull", keys=KEYS), call("size"), client=0), SPEC).is_update


def test_a_push_without_keys_is_none_of_a_whole_table():
    checked = check_request(message(push(KEYS[:0]), sequence=1), SPEC)
    assert checked.calls[0].keyed is not None
    assert check_request(message(call("size")), SPEC).calls[0].keyed is None


@given(st.binary(max_size=300))
def test_random_bytes_are_a_clear_error_or_a_message(data):
    try:
        parsed = pb.Request.FromString(data)
    except DecodeError:
        return  # gRPC answers those itself
    with suppress(RequestError):
        check_request(parsed, TWO_TABLES)


fields = st.builds(
    pb.Call,
    table=st.sampled_from(["user", "item", "x"]),
    psfunc=st.sampled_from(["pull", "push", "delete", "sweep", "sum", "scale", "map", "fill", "size", ""]),
    args=st.binary(max_size=12),
    keys=st.binary(max_size=24),
    payload=st.binary(max_size=24),
    dtype=st.sampled_from([0, 1, 2]),
    learning_rates=st.lists(st.floats(width=32), max_size=2),
    drop_above=st.floats(width=32),
    drop_below=st.floats(width=32),
)


@given(st.lists(fields, max_size=3), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_any_fields_are_a_clear_error_or_a_message(calls, client, sequence, grouped):
    made = message(*calls, client=client, sequence=sequence, group=(1, 0, 2) if grouped else None)
    with suppress(RequestError):
        assert len(check_request(made, TWO_TABLES).calls) == len(calls)
