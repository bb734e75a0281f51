"""The row layout of a table spec: offsets, kernel constants, and the numbers that the kernels take at run time.

row       = key (8 bytes) metadata values* state*     multiples of 4 bytes, little-endian, segments in spec order
full row  = key metadata values* state* values* state*     where there are late segments: the others stand before them
early row = key metadata values* state*     a full row up to its late segments: the row until it has them
metadata  = nothing | last_seen | last_seen shows clicks     only what admission or eviction need (TableSpec.keeps_*)
last_seen = uint32, event time of the newest push, seconds since 1970; shows, clicks = float32, as decayed at last_seen
values    = dim codes of the segment's codec, padded with zero bytes to a multiple of 4
state     = state_dim codes (of the segment's optimizer) of its state codec, padded likewise
image     = the row without its key
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError
from ps.keys import hash_texts
from ps.spec import Constant, Normal, TableSpec, Uniform
from ps.storage.arena import UNIT_WORDS
from ps.storage.kernels.codecs import CODECS, STATE_CODECS
from ps.storage.kernels.generate import KernelLayout, SegmentLayout
from ps.storage.kernels.index import Shape
from ps.storage.kernels.optimizers import code_of, kernel_name, state_dim

_KEY_WORDS = 2
_MAX_BLOCK_BYTES = 32 << 10
_MAX_BLOCK_SHIFT = 8


@dataclass(frozen=True)
class RowKind:
    """Rows of one size. stride: words of a row, key included; 2 ** block_shift of them are a block."""

    stride: int
    block_shift: int

    @property
    def row_bytes(self) -> int:
        return 4 * self.stride

    @property
    def image_words(self) -> int:
        return self.stride - _KEY_WORDS

    @property
    def block_rows(self) -> int:
        return 1 << self.block_shift

    @property
    def block_units(self) -> int:
        """Arena units of one block."""
        return -(-self.block_rows * self.stride // UNIT_WORDS)


@dataclass(frozen=True)
class RowLayout:
    """A KernelLayout with names and sizes. All words are 32 bits."""

    kernels: KernelLayout
    names: tuple[str, ...]
    width: int

    @cached_property
    def kinds(self) -> tuple[RowKind, ...]:
        """Full rows and, where there are late segments, early ones. New rows are of the last kind."""
        shape = self.kernels.shape
        full, early = RowKind(shape.stride, shape.block_shift), RowKind(shape.early_stride, shape.early_shift)
        return (full, early) if self.has_late else (full,)

    @property
    def has_late(self) -> bool:
        """Whether there are late segments, so that a row is early or full."""
        return self.kernels.early_stride > 0

    @property
    def image_words(self) -> int:
        """Of a full row."""
        return self.kinds[0].image_words

    @property
    def early_words(self) -> int:
        """Words of the image of an early row; 0 where there are none."""
        return self.kinds[1].image_words if self.has_late else 0

    @property
    def metadata_words(self) -> int:
        """0; 1: last_seen; 3: last_seen, shows, clicks."""
        return self.kernels.metadata_words

    @property
    def scratch_floats(self) -> int:
        """Values and state of one row, decoded."""
        return sum(s.dim + s.state_dim for s in self.kernels.segments)

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
        early = f", or the first {4 * self.early_words} without late segments" if self.has_late else ""
        lines = [f"image 1: {4 * self.image_words} bytes{early}, little-endian"]
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
    segments, column, scratch, hyper = [], 0, 0, 0
    words, early_stride, stride = _offsets(spec, _KEY_WORDS + metadata)
    for name, segment in spec.segments.items():
        optimizer = segment.optimizer
        kept, code = state_dim(optimizer, segment.dim), code_of(optimizer)
        value_word, state_word = words[name]
        segments.append(
            SegmentLayout(
                codec=segment.codec,
                state_codec=segment.state_codec,
                initializer=segment.initializer.name,
                optimizer=kernel_name(optimizer),
                code=code,
                dim=segment.dim,
                column=column,
                value_word=value_word,
                state_dim=kept,
                state_word=state_word,
                scratch=scratch,
                hyper=hyper,
                late=segment.late is not None,
            )
        )
        hyper += 1 + len(code.pack(optimizer))
        column, scratch = column + segment.dim, scratch + segment.dim + kept
    shape = Shape(_block_shift(stride), stride, _block_shift(early_stride), early_stride)
    return RowLayout(KernelLayout(*shape, tuple(segments), check, metadata), tuple(spec.segments), column)


def _offsets(spec: TableSpec, word: int) -> tuple[dict[str, tuple[int, int]], int, int]:
    """First words of each segment's values and state, from a word of the row on; the words of an early row (0 without
    late segments), and of a full one.
    """
    starts, ends = dict[str, list[int]](), list[int]()
    for late in (False, True):
        group = {name: s for name, s in spec.segments.items() if (s.late is not None) == late}
        for name, segment in group.items():
            starts[name] = [word]
            word += CODECS[segment.codec].words(segment.dim)
        for name, segment in group.items():
            starts[name].append(word)
            word += STATE_CODECS[segment.state_codec].words(state_dim(segment.optimizer, segment.dim))
        ends.append(word)
    early, full = ends
    return {name: (values, state) for name, (values, state) in starts.items()}, early if full > early else 0, full


def _block_shift(stride: int) -> int:
    if stride == 0:
        return 0
    rows = max(1, _MAX_BLOCK_BYTES // (4 * stride))
    return min(_MAX_BLOCK_SHIFT, rows.bit_length() - 1)


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


def score_of(spec: TableSpec) -> NDArray[np.float64]:
    """float64 [4]: decay of counts a day, weights of a show and of a click, and the score that makes a row full."""
    late = np.inf if spec.late is None else spec.late
    return np.array([spec.score.decay, spec.score.show, spec.score.click, late])
