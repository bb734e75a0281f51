"""Bytes looked at before they are parsed: too many calls, no message at all, and what passes unchanged."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import RequestError
from ps.wire import weir_pb2 as pb
from ps.wire.reading import MAX_CALLS, MAX_CONTROL_BYTES, has_fewer_fields, read_control, read_request
from tests.ps.driving import call, message


def test_a_good_message_passes_unchanged():
    made = message(*[call("size")] * MAX_CALLS, client=7, sequence=3, group=(1, 0, 2))
    assert read_request(made.SerializeToString()) == made
    assert read_request(b"") == pb.Request()


def test_too_many_calls_are_refused_before_they_are_parsed():
    with pytest.raises(RequestError, match="more than 1024 calls; send several messages"):
        read_request(b"\x3a\x00" * (16 << 20))  # 16 million empty calls would take gigabytes
    with pytest.raises(RequestError, match="a message of 1025 calls; the limit is 1024"):
        read_request(b"\x3a\x00" * 1025)


def test_fields_nobody_knows_count_too():
    start = time.monotonic()
    with pytest.raises(RequestError, match="more than 1024 calls"):
        read_request(b"\xf8\x01\x00" * (10 << 20))
    assert time.monotonic() - start < 5


def test_calls_after_an_unknown_group_count_too():
    with pytest.raises(RequestError, match="more than 1024 calls"):
        read_request(b"\x9b\x06\x9c\x06" + b"\x3a\x00" * 2000)


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x3a\xff", b"\x3a\x05ab", b"\x0b", b"\x0f", b"\x3a\x02\x0a\x05", b"\xff" * 20]
)
def test_bytes_that_are_no_message(data):
    with pytest.raises(RequestError, match=f"{len(data)} bytes are no Request; use the same weir-ps at both ends"):
        read_request(data)


def test_a_table_name_must_be_utf8():
    with pytest.raises(RequestError, match="are no Request"):
        read_request(b"\x3a\x03\x0a\x01\xff")


def test_control_messages():
    made = pb.AssignRequest(cluster_spec=b"{}", shard=3)
    assert read_control(pb.AssignRequest(), made.SerializeToString()) == made
    with pytest.raises(RequestError, match="no AssignRequest"):
        read_control(pb.AssignRequest(), b"\xff")
    with pytest.raises(RequestError, match=f"a control message of {MAX_CONTROL_BYTES + 1} bytes; the limit is"):
        read_control(pb.StatusRequest(), bytes(MAX_CONTROL_BYTES + 1))


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.sampled_from([0, 1, 2, 5]), st.binary(max_size=8))))
def test_fields_are_counted_as_the_parser_does(fields):
    def varint(number):
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*out, number])

    bodies = {0: lambda b: varint(int.from_bytes(b)), 1: lambda b: b[:8].ljust(8), 5: lambda b: b[:4].ljust(4)}
    bodies[2] = lambda b: varint(len(b)) + b
    data = b"".join(varint(number << 3 | kind) + bodies[kind](body) for number, kind, body in fields)
    for limit in (len(fields) - 1, len(fields), len(fields) + 1):
        assert has_fewer_fields(data, limit) == (len(fields) < limit)
