"""float32 to and from the 16-bit patterns of bfloat16, round to nearest even. Finite values stay finite: overflow
saturates.
"""

import numpy as np

from ps.storage.kernels.build import kernel

U32 = np.uint32


@kernel
def to_bfloat16(bits, out):
    """out[i] = bfloat16 of the float32 with pattern bits[i]. uint32 [n] -> uint16 [n]."""
    for i in range(bits.shape[0]):
        b = bits[i]
        magnitude = b & U32(0x7FFFFFFF)
        rounded = (b + U32(0x7FFF) + ((b >> U32(16)) & U32(1))) >> U32(16)
        # The greatest finite pattern where rounding would reach infinity; infinity itself, and NaN made quiet.
        rounded = ((b >> U32(16)) & U32(0x8000)) | U32(0x7F7F) if magnitude >= U32(0x7F7F8000) else rounded
        rounded = (b >> U32(16)) if magnitude == U32(0x7F800000) else rounded
        rounded = (b >> U32(16)) | U32(0x40) if magnitude > U32(0x7F800000) else rounded
        out[i] = np.uint16(rounded)


@kernel
def from_bfloat16(halves, out):
    """out[i] = pattern of the float32 that equals bfloat16 halves[i]. uint16 [n] -> uint32 [n]."""
    for i in range(halves.shape[0]):
        out[i] = U32(halves[i]) << U32(16)
