"""Keys are stable for ever: vectors, and XXH64 against the xxhash library."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ps import keys
from ps.errors import RequestError


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8))
def test_hash_equals_the_xxhash_library(values):
    assert keys.hash_texts(values).tolist() == [xxhash.xxh64_intdigest(value) for value in values]


VECTORS = {  # value: (key in slot 7, bucket of 256); computed once, fixed for ever
    "": ("0076db3751d8e999", 159),
    "123": ("00797d223fa7e885", 107),
    "user=42": ("00762977a4667075", 87),
    "é": ("007757dfb8b46f78", 86),
    "x" * 40: ("007f564e1b3e18d5", 113),
}


def test_vectors():
    packed = keys.pack(7, keys.hash_texts(list(VECTORS)))
    assert [f"{int(key):016x}" for key in packed] == [key for key, _ in VECTORS.values()]
    assert keys.bucket_of(packed, 256).tolist() == [bucket for _, bucket in VECTORS.values()]
    mixed = keys.mix(np.array([0, 1, 2**64 - 1], np.uint64))
    assert [f"{int(m):016x}" for m in mixed] == ["0" * 16, "5692161d100b05e5", "b4d055fcf2cbbd7b"]


def test_slot_and_bucket():
    packed = keys.pack(4095, np.array([0, 2**64 - 1], np.uint64))
    assert packed.tolist() == [4095 << 52, 2**64 - 1]
    assert keys.slot_of(packed).tolist() == [4095, 4095]
    assert keys.bucket_of(packed, 1).tolist() == [0, 0]
    spread = np.bincount(keys.bucket_of(np.arange(64_000, dtype=np.uint64), 64), minlength=64)
    assert spread.min() > 850
    assert spread.max() < 1150
    with pytest.raises(RequestError, match="4096 is outside"):
        keys.pack(4096, packed)
