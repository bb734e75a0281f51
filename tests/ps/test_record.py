"""Records: a round trip of anything, and any damage told with its place."""

import io
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import CheckpointError
from ps.record import VERSION, FrameReader, Record, encode_frame, encode_record, layout_digest

records = st.builds(
    lambda table, bucket, keys, image_bytes, applied, seed: Record(
        table,
        bucket,
        "layout of " + table,
        np.array(keys, np.uint64),
        np.random.default_rng(seed).integers(0, 256, (len(keys), image_bytes), np.uint8),
        b"x" * 24 * applied,
    ),
    st.text(max_size=8),
    st.integers(0, 2**20),
    st.lists(st.integers(0, 2**64 - 1), max_size=6),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(0, 99),
)


def reader_of(data):
    return FrameReader(io.BytesIO(data), "F", num_bytes=len(data))


@given(st.lists(records, max_size=4))
def test_round_trip(written):
    reader = reader_of(b"".join(map(encode_record, written)))
    for record in written:
        frame = reader.read_frame()
        found = reader.read_record(frame)
        assert (found.table, found.bucket, found.applied) == (record.table, record.bucket, record.applied)
        assert found.layout == layout_digest(record.layout)
        np.testing.assert_array_equal(found.keys, record.keys)
        if len(record.keys):
            np.testing.assert_array_equal(found.images, record.images)


@given(st.lists(records, min_size=2, max_size=4))
def test_unwanted_records_are_passed_over(written):
    reader = reader_of(b"".join(map(encode_record, written)))
    for _ in written[:-1]:
        assert reader.read_record(reader.read_frame(), lambda table, bucket: False) is None
    np.testing.assert_array_equal(reader.read_record(reader.read_frame()).keys, written[-1].keys)


RECORD = Record("user", 3, "layout", np.arange(5, dtype=np.uint64), np.ones((5, 8), np.uint8), b"y" * 24)


def read_all(data):
    reader = reader_of(data)
    return reader.read_record(reader.read_frame())


@given(st.integers(0, len(encode_record(RECORD)) - 1))
def test_truncation_at_any_byte_is_told(length):
    with pytest.raises(CheckpointError, match=rf"F ends at byte {length}, inside what begins at byte 0; .* truncated"):
        read_all(encode_record(RECORD)[:length])


@given(st.integers(0, len(encode_record(RECORD)) - 1), st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_told(offset, flip):
    data = bytearray(encode_record(RECORD))
    data[offset] ^= flip
    with pytest.raises(CheckpointError, match=r"F (at byte 0|ends at byte)"):
        read_all(bytes(data))


@given(st.binary(max_size=200))
def test_random_bytes_are_told(data):
    with pytest.raises(CheckpointError):
        read_all(data)


def framed(header):
    packed = msgpack.packb(header)
    return len(packed).to_bytes(4, "little") + zlib.crc32(packed).to_bytes(4, "little") + packed


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": VERSION + 1}, "newer than 2; read it with a newer weir-ps"),
        ([1], "no map with a version"),
        ({"version": VERSION, "kind": "rows"}, "a record without table"),
        (
            {"version": 1, "table": "t", "bucket": 1, "layout": "", "count": -1, "image_bytes": 8, "applied": b""},
            "impossible lengths",
        ),
        (
            {"version": 1, "table": "t", "bucket": 1, "layout": "", "count": 2**60, "image_bytes": 8, "applied": b""},
            "truncated",
        ),
    ],
)
def test_headers_that_lie(header, message):
    with pytest.raises(CheckpointError, match=message):
        read_all(framed(header) + b"\0" * 64)


def test_a_frame_has_its_own_checksum():
    data = encode_frame({"version": VERSION, "kind": "start"})
    assert reader_of(data).read_frame().header["kind"] == "start"
