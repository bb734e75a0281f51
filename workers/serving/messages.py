"""The columns of a PredictRequest.

Plain texts, one a row, are the most of what is sent: they stay as they came until keys are made of them, of all columns
of a table at once. That takes a fifth of the time of one column after another; so does whatever is not needed, such as
the texts themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps.keys import hash_columns
from ps.types import Keys
from ps.wire import serving_pb2 as pb
from workers.serving.columns import MAX_TEXT_BYTES, NO_TEXT, Column, Kind, check_finite, check_sizes
from workers.serving.errors import MalformedError


class PlainTexts:
    """A column of texts, one a row and none missing, as it came. Nothing is checked but that there are whole ends."""

    __slots__ = ("_name", "_where", "data", "ends", "num_rows")
    lengths: Final = None

    def __init__(self, where: str, name: str, data: bytes, ends: bytes) -> None:
        """data: the texts, end to end. ends: uint32 [rows], where each ends in data."""
        self._where, self._name, self.data, self.ends, self.num_rows = where, name, data, ends, len(ends) >> 2

    @property
    def place(self) -> str:
        return f"{self._where}.{self._name}"

    def checked(self) -> Column:
        """Raises MalformedError."""
        data, ends = self.data, np.frombuffer(self.ends, "<u4")
        offsets = np.zeros(len(ends) + 1, np.int64)
        offsets[1:] = ends
        if offsets[-1] != len(data):
            raise MalformedError(self.place, f"texts.ends ends at {offsets[-1]}, but texts.data has {len(data)} bytes")
        check_sizes(self.place, offsets)
        if not data.isascii():
            _check_utf8(self.place, data, offsets)
        return Column(self.place, "texts", np.frombuffer(data, np.uint8) if data else NO_TEXT, offsets)

    def to_list(self) -> list[Any]:
        """As Column.to_list."""
        return self.checked().to_list()

    def wrong(self, text: str) -> MalformedError:
        """The error for this column."""
        return MalformedError(self.place, text)


AnyColumn: TypeAlias = Column | PlainTexts


def keys_of_texts(columns: Sequence[PlainTexts], slot_bits: Keys) -> Keys:
    """uint64 [n]: the keys of all texts, end to end. slot_bits: uint64 [c], the slot of each column, in place. Raises
    MalformedError.
    """
    data = b"".join([column.data for column in columns])
    ends = b"".join([column.ends for column in columns])
    keys = None
    if data.isascii() or _is_utf8(data):
        sizes = [len(column.data) for column in columns]
        counts = [column.num_rows for column in columns]
        keys = hash_columns(data, ends, sizes, counts, slot_bits, MAX_TEXT_BYTES)
    if keys is None:
        for column in columns:
            column.checked()
        raise MalformedError("", "texts that are wrong together, but not one by one")
    return keys


def columns_of(where: str, messages: Mapping[str, pb.Column]) -> dict[str, AnyColumn]:
    """By name. where: they stand in, for errors. Raises MalformedError."""
    found: dict[str, AnyColumn] = {}
    for name, message in messages.items():
        texts = message.texts
        if (ends := texts.ends) and not (len(ends) & 3 or message.lengths or message.missing):
            found[name] = PlainTexts(where, name, texts.data, ends)
        else:
            found[name] = _checked(where, name, message)
    return found


def _checked(where: str, name: str, message: pb.Column) -> Column:
    place, lengths, missing = f"{where}.{name}", message.lengths, message.missing
    kind = message.WhichOneof("values")
    if kind == "texts":
        texts = message.texts
        if len(texts.ends) & 3:
            raise _not_whole(place, "texts.ends", texts.ends, 4)
        read = PlainTexts(where, name, texts.data, texts.ends).checked()
        values, offsets, is_a, count = read.values, read.offsets, read.kind, read.num_values
    elif kind is None:
        raise MalformedError(place, "has no values")
    else:
        dtype, is_a = _ARRAYS[kind]
        values, offsets = _array(place, kind, getattr(message, kind), dtype), None
        count = len(values)
        if is_a == "numbers":
            values = values.astype(np.float64)
    rows = marks = None
    if lengths:
        rows = _array(place, "lengths", lengths, "<u4").astype(np.int64)
        if rows.sum() != count:
            raise MalformedError(place, f"lengths add up to {rows.sum()}, but there are {count} values")
    if missing:
        marks = _array(place, "missing", missing, "u1") != 0
        if len(marks) != count:
            raise MalformedError(place, f"missing has {len(marks)} marks for {count} values")
    if is_a == "numbers":
        check_finite(place, values, marks)
    return Column(place, is_a, values, offsets, rows, marks)


_ARRAYS: Mapping[str, tuple[str, Kind]] = {
    "int64s": ("<i8", "integers"),
    "float64s": ("<f8", "numbers"),
    "float32s": ("<f4", "numbers"),
    "feature_ids": ("<u8", "ids"),
}


def _array(place: str, what: str, data: bytes, dtype: str) -> NDArray[Any]:
    try:
        return np.frombuffer(data, dtype)
    except ValueError:
        raise _not_whole(place, what, data, np.dtype(dtype).itemsize) from None


def _not_whole(place: str, what: str, data: bytes, size: int) -> MalformedError:
    return MalformedError(place, f"{what} has {len(data)} bytes, no multiple of {size}")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_utf8(place: str, data: bytes, offsets: NDArray[np.int64]) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        row = int(np.searchsorted(offsets, error.start, side="right")) - 1
        raise MalformedError(place, f"value {row} is not UTF-8: {error.reason}") from None
    inside = np.frombuffer(data, np.uint8)[offsets[:-1][offsets[:-1] < len(data)]] & 0xC0 == 0x80
    if inside.any():
        raise MalformedError(place, f"value {int(np.argmax(inside))} begins inside a character; not UTF-8")
