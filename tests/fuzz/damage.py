"""Bytes that were right and are not any more: cut, flipped, doubled, moved, with numbers that break lengths."""

import os

from hypothesis import strategies as st

# How many examples a fuzz test takes; more of them for a long run: WEIR_FUZZ_EXAMPLES=20000 pytest tests/fuzz
EXAMPLES = int(os.environ.get("WEIR_FUZZ_EXAMPLES", "60"))
ALWAYS_THE_SAME = "WEIR_FUZZ_EXAMPLES" not in os.environ  # what a change broke fails for that change, not for the next
SECONDS = 10.0  # in which every example has its answer

HUGE = [
    b"\xff" * 4,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xff" * 9 + b"\x01",  # the greatest varint
    b"\x80\x80\x80\x80\x08",  # 2^31 as one
    b"\xdd\xff\xff\xff\xff",  # a list of 2^32 - 1 elements in msgpack
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\x91" * 2000,  # a list in a list in a list ...
    b"[" * 2000,
    b'{"a":' * 500,
    b"\xed\xa0\x80",  # half of a surrogate pair: no UTF-8
    b"\x00" * 16,
    b"NaN",
    b"1e999",
    b"9" * 5000,
]
_where = st.floats(0, 1)


@st.composite
def damaged(draw, data):
    """`data` after one to four edits."""
    for _ in range(draw(st.integers(1, 4))):
        at = int(draw(_where) * len(data))
        to = min(len(data), at + draw(st.integers(1, 64)))
        piece = draw(st.sampled_from(HUGE) | st.binary(min_size=1, max_size=16))
        match draw(st.sampled_from(["cut", "flip", "insert", "overwrite", "remove", "double", "end"])):
            case "cut":
                data = data[:at]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "overwrite":
                data = data[:at] + piece + data[at + len(piece) :]
            case "remove":
                data = data[:at] + data[to:]
            case "double":
                data = data[:to] + data[at:to] + data[to:]
            case "end":
                data += piece
    return data


# What msgpack, JSON and arguments may hold, right or wrong.
numbers = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from([0, 1, -1, 1 << 31, 1 << 40, (1 << 64) - 1, -(1 << 63)])
    | st.floats()
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
