"""Float arrays as bytes of a message: little-endian, row by row, in the wire dtype. Both ends round here and nowhere
else.

Narrowing rounds to nearest even and saturates at the greatest finite value, so that a finite gradient stays one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.storage.kernels import wire as kernels
from ps.types import Floats, Rows
from ps.wire import weir_pb2 as pb

WireName = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[WireName, pb.Dtype] = {"fp32": pb.FLOAT32, "fp16": pb.FLOAT16, "bf16": pb.BFLOAT16}
ITEM_BYTES: dict[int, int] = {pb.FLOAT32: 4, pb.FLOAT16: 2, pb.BFLOAT16: 2}
_FP16_MAX = np.float32(65504.0)


def encode_floats(values: Floats, dtype: int) -> bytes:
    """Bytes of float32 values of any shape in a wire dtype."""
    if dtype == pb.FLOAT32:
        return np.ascontiguousarray(values, np.float32).tobytes()
    out = np.empty(ITEM_BYTES[dtype] * values.size, np.uint8)
    encode_into(values, dtype, out)
    return out.tobytes()


def encode_into(values: Floats, dtype: int, out: NDArray[np.uint8]) -> None:
    """The same bytes, into memory that is there: uint8 [num_bytes], aligned."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == pb.FLOAT16:
        clipped = np.where(np.abs(flat) > _FP16_MAX, np.copysign(_FP16_MAX, flat), flat)
        out.view("<f2")[:] = np.where(np.isinf(flat), flat, clipped)
    elif dtype == pb.BFLOAT16:
        kernels.to_bfloat16(flat.view(np.uint32), out.view(np.uint16))
    else:
        out.view(np.float32)[:] = flat


def decode_floats(data: bytes | NDArray[np.uint8], dtype: int, width: int) -> Rows:
    """float32 [n, width] from bytes; for fp32 a view of them, of `bytes` a read-only one. Raises RequestError if no
    whole rows.
    """
    if width < 1 or len(data) % (ITEM_BYTES[dtype] * width):
        raise RequestError(f"a payload of {len(data)} bytes holds no whole rows of width {width}")
    if dtype == pb.FLOAT16:
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, width)
    if dtype == pb.BFLOAT16:
        halves = np.frombuffer(data, "<u2")
        bits = np.empty(len(halves), np.uint32)
        kernels.from_bfloat16(halves, bits)
        return bits.view(np.float32).reshape(-1, width)
    return np.frombuffer(data, "<f4").reshape(-1, width)
