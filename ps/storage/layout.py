"""The row layout of a table spec: offsets, kernel constants, and the numbers that the kernels take at run time.

row       = key (8 bytes) metadata values* state*     multiples of 4 bytes, little-endian, segments in spec order
metadata  = nothing | last_seen | last_seen shows clicks     only what admission or eviction need (TableSpec.keeps_*)
last_seen = uint32, event time of the newest push, seconds since 1970; shows, clicks = float32, as decayed at last_seen
values    = dim codes of the segment's codec, padded with zero bytes to a multiple of 4
state     = state_dim codes (of the segment's optimizer) of its state codec, padded likewise
image     = the row without its key
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.keys import hash_texts
from ps.spec import Constant, Normal, TableSpec, Uniform
from ps.storage.arena import UNIT_WORDS
from ps.storage.kernels.codecs import CODECS, STATE_CODECS
from ps.storage.kernels.generate import KernelLayout, SegmentLayout
from ps.storage.kernels.optimizers import code_of, kernel_name, state_dim

_KEY_WORDS = 2
_MAX_BLOCK_BYTES = 32 << 10
_MAX_BLOCK_SHIFT = 8


@dataclass(frozen=True)
class RowLayout:
    """A KernelLayout with names and sizes. All words are 32 bits."""

    kernels: KernelLayout
    names: tuple[str, ...]
    width: int

    @property
    def row_bytes(self) -> int:
        return 4 * self.kernels.stride

    @property
    def image_words(self) -> int:
        return self.kernels.stride - _KEY_WORDS

    @property
    def metadata_words(self) -> int:
        """0; 1: last_seen; 3: last_seen, shows, clicks."""
        return self.kernels.metadata_words

    @property
    def scratch_floats(self) -> int:
        """Values and state of one row, decoded."""
        return sum(s.dim + s.state_dim for s in self.kernels.segments)

    @property
    def block_rows(self) -> int:
        return 1 << self.kernels.block_shift

    @property
    def block_units(self) -> int:
        """Arena units of one block."""
        return -(-self.block_rows * self.kernels.stride // UNIT_WORDS)

    def segment(self, name: str) -> tuple[int, SegmentLayout]:
        """Place and layout of a segment. Raises RequestError for an unknown name."""
        if name not in self.names:
            raise RequestError(f"no segment {name!r}; the table has {', '.join(self.names)}")
        place = self.names.index(name)
        return place, self.kernels.segments[place]

    def state_columns(self, name: str | None) -> tuple[int, int, int]:
        """Of a segment, or of all (None): its place (-1), and first column and number of its floats in a row's state.

        Raises RequestError for an unknown name.
        """
        if name is None:
            return -1, 0, sum(s.state_dim for s in self.kernels.segments)
        place, chosen = self.segment(name)
        return place, chosen.state_column, chosen.state_dim

    def text(self) -> str:
        """Canonical text of an image: equal text means that images are interchangeable."""
        lines = [f"image 1: {4 * self.image_words} bytes, little-endian"]
        if self.metadata_words:
            lines.append(f"metadata: {', '.join(('last_seen', 'shows', 'clicks')[: self.metadata_words])} at 0")
        for name, s in zip(self.names, self.kernels.segments):
            lines.append(
                f"{name!r}: {s.dim} {s.codec} at {4 * (s.value_word - _KEY_WORDS)}, "
                f"{s.optimizer} {s.state_dim} {s.state_codec} at {4 * (s.state_word - _KEY_WORDS)}"
            )
        return "\n".join(lines)


def layout_of(spec: TableSpec, *, check: bool = False) -> RowLayout:
    """The layout of a table's rows. check: users' row functions are compiled with bounds checks.

    Raises RequestError naming file and line of a user's optimizer that cannot be compiled.
    """
    metadata = 3 if spec.keeps_counts else 1 if spec.keeps_time else 0
    segments, column, word, scratch, hyper = [], 0, _KEY_WORDS + metadata, 0, 0
    value_words = [CODECS[s.codec].words(s.dim) for s in spec.segments.values()]
    state_word = word + sum(value_words)
    for segment, words in zip(spec.segments.values(), value_words):
        optimizer = segment.optimizer
        kept, code = state_dim(optimizer, segment.dim), code_of(optimizer)
        segments.append(
            SegmentLayout(
                codec=segment.codec,
                state_codec=segment.state_codec,
                initializer=segment.initializer.name,
                optimizer=kernel_name(optimizer),
                code=code,
                dim=segment.dim,
                column=column,
                value_word=word,
                state_dim=kept,
                state_word=state_word,
                scratch=scratch,
                hyper=hyper,
            )
        )
        hyper += 1 + len(code.pack(optimizer))
        column, word = column + segment.dim, word + words
        state_word += STATE_CODECS[segment.state_codec].words(kept)
        scratch += segment.dim + kept
    rows = max(1, _MAX_BLOCK_BYTES // (4 * state_word))
    shift = min(_MAX_BLOCK_SHIFT, rows.bit_length() - 1)
    kernels = KernelLayout(state_word, shift, tuple(segments), check, metadata)
    return RowLayout(kernels, tuple(spec.segments), column)


def hyper_of(spec: TableSpec) -> NDArray[np.float64]:
    """float64 [n]: per segment the initializer's parameter, then the optimizer's fields (RowCode.pack)."""
    parts = []
    for segment in spec.segments.values():
        match segment.initializer:
            case Constant(value=parameter) | Uniform(scale=parameter) | Normal(std=parameter):
                parts.append(np.array([parameter]))
            case _:
                parts.append(np.zeros(1))
        parts.append(code_of(segment.optimizer).pack(segment.optimizer))
    return np.concatenate(parts)


def streams_of(table: str, spec: TableSpec, seed: int) -> NDArray[np.uint64]:
    """uint64 [3 * segments]: per segment the random streams of initial values, of rounding, and of rounding its state,
    from seed and names.
    """
    purposes = ("initial", "rounding", "rounding of state")
    texts = [f"{seed}\0{table}\0{name}\0{purpose}" for name in spec.segments for purpose in purposes]
    return hash_texts(texts)


def learning_rates_of(spec: TableSpec) -> NDArray[np.float32]:
    """float32 [segments]: the spec's own learning rates."""
    return np.array([segment.optimizer.learning_rate for segment in spec.segments.values()], np.float32)
