"""Arrow columns to numbers and hashes, without a Python loop over values.

A missing value is an empty text or an Arrow null. NaN and infinity are mistakes, never a way to say 'missing'.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ps.keys import hash_packed
from ps.types import Keys
from workers.samples.chunk import Chunk
from workers.samples.errors import DataError
from workers.samples.rules import EMPTY_HASH, without_empty


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def hash_values(array: pa.Array) -> Keys:
    """uint64 [n]: XXH64 of each value as text: strings as they are, integers in decimal; a missing value as ''."""
    if pa.types.is_dictionary(array.type):
        words: Keys = np.append(hash_values(array.dictionary), EMPTY_HASH)
        codes = pc.fill_null(array.indices.cast(pa.int64()), len(words) - 1)
        hashes: Keys = words.take(codes.to_numpy(zero_copy_only=False))
        return hashes
    if pa.types.is_null(array.type):
        return np.full(len(array), EMPTY_HASH)
    if not is_text(array.type):
        array = array.cast(pa.string())
    if array.null_count:
        array = pc.fill_null(array, "")
    _, offsets, data = array.buffers()
    width = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)
    starts: NDArray[np.signedinteger] = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    return hash_packed(np.frombuffer(data if data is not None and data.size else b"\0", np.uint8), starts)


def hash_lists(array: pa.Array, separator: str, max_length: int | None) -> tuple[Keys, NDArray[np.int64]]:
    """Hashes of all values, end to end, and int64 [n]: how many each row has. Empty values are left out."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        array = array if is_text(array.type) else array.cast(pa.string())
        array = pc.split_pattern(array, separator)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = array.flatten()
    return without_empty(hash_values(values), lengths, max_length)


def numbers(chunk: Chunk, column: str) -> NDArray[np.float64]:
    """float64 [n], NaN where missing. Raises DataError at the first value that is not a finite number."""
    array = chunk.columns[column]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        array = _from_text(chunk, column, array)
    elif pa.types.is_timestamp(array.type):
        array = pc.divide(array.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
    else:
        try:
            array = array.cast(pa.float64())
        except pa.ArrowException:
            raise DataError(f"{chunk.where(0)}: column '{column}' has the type {array.type}, not numbers") from None
    values: NDArray[np.float64] = array.to_numpy(zero_copy_only=False)
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.flatnonzero(~finite & array.is_valid().to_numpy(zero_copy_only=False))
        if len(bad):
            raise wrong(chunk, column, int(bad[0]), "is not a finite number")
    return values


def wrong(chunk: Chunk, column: str, row: int, text: str) -> DataError:
    """The error for one value of a chunk."""
    return DataError(f"{chunk.where(row)}: column '{column}': {chunk.columns[column][row].as_py()!r} {text}")


def _from_text(chunk: Chunk, column: str, array: pa.Array) -> pa.Array:
    array = pc.if_else(pc.equal(array, ""), None, array)
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    array = pc.utf8_trim_whitespace(array)
    array = pc.if_else(pc.equal(array, ""), None, array)
    low, high = 0, len(array)  # the first bad value is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _is_numeric(array.slice(low, middle - low)):
            low = middle
        else:
            high = middle
    if _is_numeric(array):
        return array.cast(pa.float64())
    raise wrong(chunk, column, low, "is not a number")


def _is_numeric(array: pa.Array) -> bool:
    try:
        array.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
