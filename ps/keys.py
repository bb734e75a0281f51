"""Keys: uint64 = 12 bits of slot, 52 bits of feature id; and the bucket of a key.

    key    = slot << 52 | id              slot: 0..4095, the number that the config gives a field
    id     = XXH64(utf-8 bytes of the value as text, seed 0) & (2^52 - 1)
    bucket = mix64(key) >> (64 - log2(num_buckets))

Integers hash as their decimal text, so that a value is the same feature whether it came from CSV or Parquet. Two of
10^9 ids of a slot share an id about a hundred times: harmless for learning, and left so. These functions never change:
stored rows depend on them. Test vectors in docs/keys.md and tests/ps/test_keys.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.storage.kernels import hashing
from ps.types import Buckets, Keys

SLOT_BITS = 12
ID_BITS = 52
MAX_SLOT = (1 << SLOT_BITS) - 1
ID_MASK = np.uint64((1 << ID_BITS) - 1)


def pack(slot: int, ids: Keys) -> Keys:
    """Keys of a slot from feature ids (uint64 [n], their low 52 bits count). Raises RequestError for a slot beyond
    4095.
    """
    if not 0 <= slot <= MAX_SLOT:
        raise RequestError(f"slot {slot} is outside 0..{MAX_SLOT}")
    return (ids & ID_MASK) | np.uint64(slot << ID_BITS)


def slot_of(keys: Keys) -> NDArray[np.uint16]:
    """uint16 [n]: the slot of each key."""
    return (keys >> np.uint64(ID_BITS)).astype(np.uint16)


def hash_packed(data: NDArray[np.uint8], offsets: NDArray[np.integer]) -> Keys:
    """uint64 [n]: XXH64 of each string data[offsets[i]:offsets[i+1]] (the layout of an Arrow string column)."""
    out = np.empty(len(offsets) - 1, np.uint64)
    hashing.hash_strings(data, offsets, out)
    return out


def hash_columns(
    data: bytes, ends: bytes, sizes: Sequence[int], counts: Sequence[int], slot_bits: Keys, max_bytes: int
) -> Keys | None:
    """uint64 [n]: the keys of columns of texts that stand end to end; None where a text does not end where it may, has
    more than max_bytes, or begins inside a UTF-8 character.

    ends: uint32 [n], where each text ends in its own column. sizes, counts: bytes and texts of each column. slot_bits:
    uint64 [c], slot << 52.
    """
    out = np.empty(len(ends) // 4, np.uint64)
    columns = np.array([sizes, counts], np.int64)
    is_right = hashing.hash_columns(
        np.frombuffer(data or b"\0", np.uint8), np.frombuffer(ends, "<u4"), columns, slot_bits, ID_MASK, max_bytes, out
    )
    return out if is_right else None


def hash_integers(values: NDArray[np.int64]) -> Keys:
    """uint64 [n]: XXH64 of each value's decimal text."""
    out = np.empty(len(values), np.uint64)
    hashing.hash_integers(np.ascontiguousarray(values, np.int64), np.empty(20, np.uint8), out)
    return out


def hash_texts(values: list[str] | list[bytes]) -> Keys:
    """uint64 [n]: XXH64 of each value's UTF-8 bytes."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    offsets = np.zeros(len(raw) + 1, np.int64)
    np.cumsum([len(value) for value in raw], out=offsets[1:])
    return hash_packed(np.frombuffer(b"".join(raw) or b"\0", np.uint8), offsets)


def mix(keys: Keys) -> Keys:
    """uint64 [n]: mix64 of each key."""
    out = np.empty_like(keys)
    hashing.mix_all(keys, out)
    return out


def bucket_of(keys: Keys, num_buckets: int) -> Buckets:
    """int32 [n]: the bucket of each key. num_buckets: a power of two."""
    out = np.empty(len(keys), np.int32)
    hashing.buckets_of(keys, num_buckets.bit_length() - 1, out)
    return out
