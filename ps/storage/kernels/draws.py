"""Counter-based random draws: a value depends on its arguments only, never on what was drawn before.

draw(stream, key, n) = mix64(mix64(key xor stream) + (n + 1) * GOLDEN)     n-th of a SplitMix64 sequence
"""

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.hashing import mix64

U64 = np.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)
STEP = U64(0xD1B54A32D192ED03)


@inlined
def sequence(stream, key):
    """Where the sequence of a key starts."""
    return mix64(key ^ stream)


@inlined
def step_sequence(stream, key, step):
    """Where the sequence of a key at a step starts."""
    return mix64((key ^ stream) + U64(step) * STEP)


@inlined
def draw(start, n):
    """The n-th 64 bits of the sequence."""
    return mix64(start + U64(n + 1) * GOLDEN)
