"""Images of rows of one layout become images of another: the way of a checkpoint's rows into a table of another spec.

Codes are copied where a segment's dim and codec are the same, state where its optimizer and dim are, metadata as far
as both keep it. The rest is made by a table of the new spec: initial values, values in another precision, first state.
A row comes with its late segments where the old one had any of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps.errors import CheckpointError
from ps.lifetime import Always
from ps.mapping import TablePlan, keeps_state
from ps.spec import ClusterSpec, TableSpec
from ps.storage.kernels.codecs import CODECS, STATE_CODECS
from ps.storage.kernels.generate import SegmentLayout
from ps.storage.layout import layout_of
from ps.storage.table import Table
from ps.types import Images, Keys
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats, encode_floats

_KEY_WORDS = 2
_DTYPES = {"fp32": pb.FLOAT32, "bf16": pb.BFLOAT16}  # state codecs, as arrays are encoded


class Converter:
    """Of one table. Single-threaded: tables of both specs are its scratch. event_time: of the last push, for rows that
    begin to keep it.
    """

    def __init__(self, plan: TablePlan, old: ClusterSpec, new: ClusterSpec, *, event_time: int) -> None:
        self._spec, self._event_time = new.tables[plan.new], event_time
        self._old, self._new = layout_of(old.tables[plan.old]), layout_of(self._spec)
        self._sources = {name: source for name, source in plan.segments.items() if source is not None}
        self._written: list[str] = []  # segments that pass through the tables
        for name, source in self._sources.items():
            before, after = old.tables[plan.old].segments[source], self._spec.segments[name]
            same_codes = (before.dim, before.codec) == (after.dim, after.codec)
            if not same_codes or not keeps_state(before, after):
                self._written.append(name)
        self._same_state = {
            name
            for name, source in self._sources.items()
            if keeps_state(old.tables[plan.old].segments[source], self._spec.segments[name])
        }
        self._reader = _scratch(plan.old, old.tables[plan.old], old.seed) if self._written else None
        self._maker = _scratch(plan.new, self._spec, new.seed)

    def convert(self, keys: Keys, images: Images) -> Images:
        """uint8 [n, image_bytes of the new layout], those of at most 4096 rows of one kind. Raises CheckpointError for
        images of no kind of the old layout.
        """
        kinds = [4 * kind.image_words for kind in self._old.kinds]
        if images.shape[1] not in kinds:
            raise CheckpointError(
                f"images of {images.shape[1]} bytes where the layout has {kinds}; use another checkpoint"
            )
        early = images.shape[1] != kinds[0]
        present = {
            name: self._old.segment(source)[1]
            for name, source in self._sources.items()
            if not (early and self._old.segment(source)[1].late)
        }
        order = np.argsort(keys)
        before = np.ascontiguousarray(images[order]).view(np.uint32)
        after = self._make(keys[order], images[order], present)
        kept = min(self._old.metadata_words, self._new.metadata_words)
        after[:, :kept] = before[:, :kept]
        for name, old in present.items():
            new = self._new.segment(name)[1]
            if (old.dim, old.codec) == (new.dim, new.codec):
                width = CODECS[new.codec].words(new.dim)
                after[:, _columns(new.value_word, width)] = before[:, _columns(old.value_word, width)]
            if name in self._same_state:
                after[:, _state_of(new)] = _recoded(before[:, _state_of(old)], old, new)
        out = np.empty_like(after)
        out[order] = after
        return out.view(np.uint8)

    def _make(self, keys: Keys, images: Images, present: dict[str, SegmentLayout]) -> NDArray[np.uint32]:
        """Rows of the new layout, keys ascending, as words of images: initial but for the segments that are written."""
        maker, rates = self._maker, self._maker._own_rates
        maker.new_rows.create(keys, rates, self._event_time)
        if any(self._new.segment(name)[1].late for name in present):
            maker.promote(keys)
        written = [name for name in self._written if name in present]
        if written:
            assert self._reader is not None
            self._reader.write_images(keys, images)
            values, initial = self._reader.pull(keys), maker.initial_values(keys)
            self._reader.clear()
            for name in written:
                place, old = self._spec.columns()[name], present[name]
                row = initial[:, place].copy()
                width = min(old.dim, row.shape[1])
                row[:, :width] = values[:, old.column : old.column + width]
                maker.write_values(keys, row, name)
        pieces = list(maker.read_images(0))
        made = np.concatenate([piece[0] for piece in pieces])
        images = np.concatenate([piece[1] for piece in pieces])
        maker.clear()
        return np.ascontiguousarray(images[np.argsort(made)]).view(np.uint32)


def _scratch(name: str, spec: TableSpec, seed: int) -> Table:
    """A table of one bucket with the same rows that takes every key."""
    return Table(
        name, spec.model_copy(update={"admission": Always(), "memory_limit_bytes": None}), seed=seed, num_buckets=1
    )


def _columns(word: int, width: int) -> slice:
    """Of an image, from a word of a row."""
    return slice(word - _KEY_WORDS, word - _KEY_WORDS + width)


def _state_of(segment: SegmentLayout) -> slice:
    return _columns(segment.state_word, STATE_CODECS[segment.state_codec].words(segment.state_dim))


def _recoded(state: NDArray[np.uint32], old: SegmentLayout, new: SegmentLayout) -> NDArray[np.uint32]:
    """State of equal floats in the new precision, to the nearest."""
    if old.state_codec == new.state_codec or not old.state_dim:
        return state
    raw = np.ascontiguousarray(state).view(np.uint8)
    per_row = raw.shape[1] // (4 if old.state_codec == "fp32" else 2)  # padding included
    floats = decode_floats(raw.reshape(-1), _DTYPES[old.state_codec], per_row)[:, : old.state_dim]
    padded = np.zeros((len(floats), old.state_dim + old.state_dim % 2), np.float32)
    padded[:, : old.state_dim] = floats
    if new.state_codec == "fp32":
        return padded[:, : old.state_dim].copy().view(np.uint32)
    return np.frombuffer(encode_floats(padded, _DTYPES["bf16"]), np.uint32).reshape(len(floats), -1)
