"""Messages from bytes that anybody may have sent, looked at before they are parsed.

Parsed, a message may take far more memory than its bytes: an empty call is two bytes on the wire and a few hundred in
memory. So the fields of the outermost level are counted first, which passes over their contents.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ps.errors import RequestError
from ps.wire import weir_pb2 as pb

MAX_CALLS = 1024  # of a message; tables times what is called on each
MAX_CONTROL_BYTES = 16 << 20  # of messages without rows: a spec, and the owners of 2^20 buckets
_OTHER_FIELDS = 64
_MAX_VARINT_BYTES = 10
M = TypeVar("M", bound=Message)


def read_request(data: bytes) -> pb.Request:
    """Raises RequestError for bytes that are no message, or one of too many calls."""
    if not has_fewer_fields(data, MAX_CALLS + _OTHER_FIELDS):
        raise RequestError(f"a message of more than {MAX_CALLS} calls; send several messages")
    request = _parse(pb.Request(), data)
    if len(request.calls) > MAX_CALLS:
        raise RequestError(f"a message of {len(request.calls)} calls; the limit is {MAX_CALLS}: send several messages")
    return request


def read_control(message: M, data: bytes, limit: int = MAX_CONTROL_BYTES) -> M:
    """The bytes as the given empty message. Raises RequestError."""
    if len(data) > limit:
        raise RequestError(f"a control message of {len(data)} bytes; the limit is {limit}")
    return _parse(message, data)


def read_frames(data: bytes) -> pb.ReplicateRequest:
    """Raises RequestError for bytes that are no message."""
    return _parse(pb.ReplicateRequest(), data)


def has_fewer_fields(data: bytes, limit: int) -> bool:
    """Whether a message has fewer fields at its outermost level, or ends before in something that is none."""
    position = 0
    for _ in range(limit):
        if position >= len(data):
            return True
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(data, position)
                position += length
            case 5:
                position += 4
            case 3 | 4:
                pass  # begin and end of an unknown group: the fields inside count as if they were outermost
            case _:
                return True  # the parser says what is wrong
    return False


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, and the position after it; past the end where it is cut short or too long."""
    number = 0
    for count, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return number, position + count + 1
    return 0, len(data)


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RequestError(
            f"{len(data)} bytes are no {message.DESCRIPTOR.name}; use the same weir-ps at both ends"
        ) from error
    return message
