"""Where the arrays of a request lie: in the message itself, or in memory that client and shard share.

The client fills a call through an Envelope; the shard reads it through a Reader. Both look the same either way.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError, WeirError
from ps.shared_memory import ALIGNMENT, Buffer, BufferName, Mappings
from ps.types import Floats, Rows, UniqueKeys
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import ITEM_BYTES, decode_floats, encode_floats, encode_into

Bytes: TypeAlias = NDArray[np.uint8]


def room_for(*num_bytes: int) -> int:
    """Bytes of a buffer that holds arrays of these sizes."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in num_bytes)


class Envelope:
    """A request being filled. buffer: shared with the shard, large enough for all that is put; None: all in the
    message.
    """

    def __init__(self, message: pb.Request, buffer: Buffer | None) -> None:
        self._buffer = buffer
        self._used = 0
        if buffer is not None:
            name = buffer.name
            message.shared.pid, message.shared.descriptor = name.pid, name.descriptor
            message.shared.id, message.shared.size = name.id, name.size

    def put_keys(self, call: pb.Call, keys: UniqueKeys) -> None:
        if self._buffer is None:
            call.keys = keys.astype("<u8", copy=False).tobytes()
        else:
            self._take(8 * len(keys), call.shared_keys).view(np.uint64)[:] = keys

    def put_payload(self, call: pb.Call, values: Floats, dtype: int) -> None:
        """values: float32 of any shape."""
        if self._buffer is None:
            call.payload = encode_floats(values, dtype)
        else:
            encode_into(values, dtype, self._take(ITEM_BYTES[dtype] * values.size, call.shared_payload))

    def put_counts(self, call: pb.Call, counts: Floats) -> None:
        """counts: float32 [n, 2]."""
        if self._buffer is None:
            call.counts = encode_floats(counts, pb.FLOAT32)
        else:
            encode_into(counts, pb.FLOAT32, self._take(4 * counts.size, call.shared_counts))

    def expect(self, call: pb.Call, num_bytes: int) -> None:
        """Room for the payload of the reply."""
        if self._buffer is not None:
            self._take(num_bytes, call.shared_reply)

    def _take(self, num_bytes: int, place: pb.Range) -> Bytes:
        assert self._buffer is not None
        place.start, place.length = self._used, num_bytes
        taken = self._buffer.bytes[self._used : self._used + num_bytes]
        self._used += room_for(num_bytes)
        return taken


def reply_rows(result: pb.Result, call: pb.Call, buffer: Buffer | None, dtype: int, width: int) -> Rows:
    """float32 [n, width]: the payload of a reply. A view where the dtype allows: of the buffer until it is given
    back.
    """
    if not result.shared_bytes:
        return decode_floats(result.payload, dtype, width)
    if buffer is None or result.shared_bytes > call.shared_reply.length:
        raise WeirError(f"a shard says that it put {result.shared_bytes} bytes where there is no room for them")
    start = call.shared_reply.start
    return decode_floats(buffer.bytes[start : start + result.shared_bytes], dtype, width)


class Reader:
    """The arrays of a received request. Raises RequestError, or NotSharedError when its buffer cannot be reached."""

    def __init__(self, message: pb.Request, mappings: Mappings | None) -> None:
        self._buffer: Bytes | None = None
        if message.HasField("shared"):
            shared = message.shared
            if mappings is None:
                raise RequestError("the message shares a buffer where none can be opened")
            self._buffer = mappings.open(BufferName(shared.pid, shared.descriptor, shared.id, shared.size))

    def keys(self, call: pb.Call) -> UniqueKeys:
        """uint64 [n], a copy where they lie in shared memory: what was checked cannot change any more."""
        data: bytes | Bytes = call.keys
        if call.HasField("shared_keys"):
            self._only(call.keys, "keys")
            data = self._bytes(call.shared_keys).copy()
        if len(data) % 8:
            raise RequestError(f"keys take {len(data)} bytes, which is no whole number of uint64")
        return np.frombuffer(data, "<u8")

    def payload(self, call: pb.Call) -> bytes | Bytes:
        if not call.HasField("shared_payload"):
            return call.payload
        self._only(call.payload, "payload")
        shared = self._bytes(call.shared_payload)
        shared.flags.writeable = False
        return shared

    def counts(self, call: pb.Call) -> bytes | Bytes:
        """A copy where they lie in shared memory, as keys."""
        if not call.HasField("shared_counts"):
            return call.counts
        self._only(call.counts, "shows and clicks")
        return self._bytes(call.shared_counts).copy()

    def room(self, call: pb.Call) -> Bytes | None:
        """Where the reply's payload may be put."""
        return self._bytes(call.shared_reply) if call.HasField("shared_reply") else None

    def _bytes(self, place: pb.Range) -> Bytes:
        if self._buffer is None:
            raise RequestError("the call names a range of shared memory, but the message shares no buffer")
        if place.start % ALIGNMENT or place.start + place.length > len(self._buffer):
            raise RequestError(
                f"range {place.start} + {place.length} does not fit the shared buffer of {len(self._buffer)} bytes, "
                f"or does not start at a multiple of {ALIGNMENT}"
            )
        return self._buffer[place.start : place.start + place.length]

    def _only(self, in_message: bytes, what: str) -> None:
        if in_message:
            raise RequestError(f"{what} lie both in the call and in shared memory")
