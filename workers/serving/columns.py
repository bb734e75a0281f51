"""The values of one column of a request, whatever form they came in: checked arrays, ready to be hashed or read.

    texts     data uint8 (UTF-8), offsets int64 [k + 1] into it           integers  int64 [k]
    numbers   float64 [k], finite                                         ids       uint64 [k]: hashed by the sender

k values in as many rows; with `lengths` (int64 [rows]) a row has several. A missing value is an empty text, or marked
in `missing` (bool [k]). Nothing here knows what the column's fields mean.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ps.keys import hash_integers, hash_packed
from ps.types import Keys
from workers.samples.rules import EMPTY_HASH
from workers.serving.errors import MalformedError

MAX_TEXT_BYTES = 1 << 16  # of one value; longer ones are mistakes, say a page where its address was meant
_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")  # as the samples' readers have it
NO_TEXT = np.zeros(1, np.uint8)
Kind = Literal["texts", "integers", "numbers", "ids"]


@dataclass(frozen=True, slots=True)
class Column:
    """values: the data of texts, which other columns may share; else the array of the kind. place: names the column in
    errors.
    """

    place: str
    kind: Kind
    values: NDArray[Any]
    offsets: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    missing: NDArray[np.bool_] | None = None

    @property
    def num_values(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def num_rows(self) -> int:
        return self.num_values if self.lengths is None else len(self.lengths)

    def checked(self) -> Column:
        """Itself, for a column of a message may be one that is not checked yet (messages.py)."""
        return self

    def hashes(self) -> Keys:
        """uint64 [k]: XXH64 of each value as text, as training hashes it. Raises MalformedError for fractions."""
        if self.kind == "ids":
            hashes: Keys = self.values
        elif self.kind == "numbers":
            raise self.wrong("numbers with fractions are no categories; send texts, as the training data has them")
        elif self.offsets is not None:
            hashes = hash_packed(self.values, self.offsets)
        else:
            hashes = hash_integers(self.values)
        return hashes if self.missing is None else np.where(self.missing, EMPTY_HASH, hashes)

    def numbers(self) -> NDArray[np.float64]:
        """float64 [k], NaN where missing; texts are read as numbers. Raises MalformedError for what is none."""
        if self.kind == "ids":
            raise self.wrong("hashed ids where the field takes numbers")
        if self.offsets is not None:
            values = np.array([self._number(text) for text in self._texts()], np.float64)
        else:
            values = self.values.astype(np.float64)
        if self.missing is not None:
            values[self.missing] = np.nan
        return values

    def split(self, separator: str) -> Column:
        """The pieces of each row's text; of integers those of their decimal text. Raises MalformedError."""
        if self.kind not in ("texts", "integers"):
            raise self.wrong(f"{self.kind} where the field takes texts or integers")
        values, offsets = (self.values, self.offsets) if self.offsets is not None else decimal_texts(self.values)
        mark = separator.encode()
        rows = [text.split(mark) for text in _pieces(values, offsets)]
        if self.missing is not None:
            rows = [[] if is_missing else row for row, is_missing in zip(rows, self.missing.tolist(), strict=True)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        pieces = [piece for row in rows for piece in row]
        return Column(self.place, "texts", *packed(pieces, b"".join(pieces)), lengths)

    def to_list(self) -> list[Any]:
        """The values for logs: text, int, float, None where missing; a list a row where there are lengths."""
        values = self.values.tolist() if self.offsets is None else self._texts()
        if self.missing is not None:
            values = [None if is_missing else v for v, is_missing in zip(values, self.missing.tolist(), strict=True)]
        if self.lengths is not None:
            ends = np.cumsum(self.lengths).tolist()
            values = [values[end - size : end] for end, size in zip(ends, self.lengths.tolist(), strict=True)]
        return values

    def wrong(self, text: str) -> MalformedError:
        """The error for this column."""
        return MalformedError(self.place, text)

    def _texts(self) -> list[str]:
        assert self.offsets is not None
        return [text.decode() for text in _pieces(self.values, self.offsets)]

    def _number(self, text: str) -> float:
        stripped = text.strip()
        if not stripped:
            return np.nan
        value = float(stripped) if _NUMBER.fullmatch(stripped) else np.inf
        if np.isinf(value):
            raise self.wrong(f"{text[:40]!r} is not a finite number")
        return value


def from_json(place: str, rows: Sequence[Any]) -> Column:
    """The column of JSON values, one a row: text, number, null, or a list of these where a row has several. Raises
    MalformedError.
    """
    types, lengths = set(map(type, rows)), None
    if list in types:
        if types - {list, type(None)}:
            raise MalformedError(place, f"lists beside {_names(types - {list})}; give a list for every row")
        rows = [row or [] for row in rows]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        rows = [value for row in rows for value in row]
        types = set(map(type, rows))
    missing = None
    if type(None) in types:
        types.discard(type(None))
        missing = np.fromiter((value is None for value in rows), bool, len(rows))
        filler: Any = "" if types in (set(), {str}) else 0
        rows = [filler if value is None else value for value in rows]
    if types <= {str}:
        text = "".join(rows)
        encoded = rows if text.isascii() else [value.encode() for value in rows]
        data, offsets = packed(encoded, text.encode())
        check_sizes(place, offsets)
        return Column(place, "texts", data, offsets, lengths, None)
    if types == {int}:
        try:
            return Column(place, "integers", np.array(rows, np.int64), None, lengths, missing)
        except OverflowError:
            raise MalformedError(place, "an integer beyond 64 bits; send it as text") from None
    if types <= {int, float}:
        values = np.array(rows, np.float64)
        check_finite(place, values, missing)
        return Column(place, "numbers", values, None, lengths, missing)
    wrong = types - {str, int, float} or types
    raise MalformedError(place, f"{_names(wrong)}; allowed: texts, or numbers, or null, of one kind in a column")


def decimal_texts(values: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The decimal texts of int64 [k], end to end, and where each begins [k + 1]."""
    texts = list(map(str, values.tolist()))  # quicker than numpy's divisions
    return packed(texts, "".join(texts).encode())


def packed(texts: Sequence[str] | Sequence[bytes], data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts that stand end to end in `data`, and where each begins [k + 1]."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return (np.frombuffer(data, np.uint8) if data else NO_TEXT), offsets


def _pieces(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[bytes]:
    first = offsets[0]
    data, places = values[first : offsets[-1]].tobytes(), (offsets - first).tolist()
    return [data[start:end] for start, end in itertools.pairwise(places)]


def check_sizes(place: str, offsets: NDArray[np.int64]) -> None:
    """Raise MalformedError unless texts may end so."""
    sizes = offsets[1:] - offsets[:-1]
    if sizes.min(initial=0) < 0:
        raise MalformedError(place, f"texts.ends falls at value {int(np.argmin(sizes))}; ends never fall")
    if sizes.max(initial=0) > MAX_TEXT_BYTES:
        row = int(np.argmax(sizes))
        raise MalformedError(place, f"value {row} has {sizes[row]} bytes; a text has at most {MAX_TEXT_BYTES}")


def check_finite(place: str, values: NDArray[Any], missing: NDArray[np.bool_] | None) -> None:
    """Raise MalformedError for a value that is neither finite nor missing."""
    bad = ~np.isfinite(values)
    if missing is not None:
        bad &= ~missing
    if bad.any():
        row = int(np.argmax(bad))
        raise MalformedError(place, f"value {row} is {values[row]}, not a finite number; mark missing values as such")


_JSON_NAMES = {bool: "true or false", dict: "an object", list: "a list", str: "texts", int: "integers"}


def _names(types: set[type]) -> str:
    return " and ".join(sorted(_JSON_NAMES.get(kind, "fractions") for kind in types))
