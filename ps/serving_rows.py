"""Rows as they are served: the same segments and initial values, in a codec of their own, without optimizer state.

serving row = key values*      a row layout (ps/storage/layout.py) of stateless segments, so images are the values alone

Bundles, deltas and replicas hold such images. A segment that a row does not have yet is served as its initial value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ps.durability import Durability
from ps.errors import RequestError
from ps.spec import SGD, ClusterSpec, TableSpec
from ps.storage.layout import layout_of
from ps.storage.table import Table
from ps.types import CodecName, Floats, Images, Rows

_KEY_WORDS = 2


def serving_table(spec: TableSpec, codec: CodecName | Mapping[str, CodecName]) -> TableSpec:
    """The table that serves the rows of another. codec: of all segments, or by segment.

    Raises RequestError for a segment without a codec, and for a codec without a segment.
    """
    if not isinstance(codec, str) and codec.keys() != spec.segments.keys():
        wrong = ", ".join(sorted(codec.keys() ^ spec.segments.keys()))
        raise RequestError(f"codec: must name the segments {', '.join(spec.segments)}; they differ in {wrong}")
    segments = {
        name: segment.model_copy(
            update={
                "optimizer": SGD(),
                "codec": codec if isinstance(codec, str) else codec[name],
                "state_codec": "fp32",
                "late": None,
            }
        )
        for name, segment in spec.segments.items()
    }
    return TableSpec(segments=segments)


def serving_spec(spec: ClusterSpec, codec: CodecName | Mapping[str, Mapping[str, CodecName]]) -> ClusterSpec:
    """The spec of the rows that serve a cluster's. codec: of all segments, or by table and segment. Raises RequestError
    as `serving_table` does.
    """
    if not isinstance(codec, str) and codec.keys() != spec.tables.keys():
        raise RequestError(f"codec: must name the tables {', '.join(spec.tables)}; found {', '.join(codec) or 'none'}")
    tables = {
        name: serving_table(table, codec if isinstance(codec, str) else codec[name])
        for name, table in spec.tables.items()
    }
    return ClusterSpec(tables=tables, num_buckets=spec.num_buckets, seed=spec.seed, durability=Durability())


def unserved_table(spec: TableSpec) -> TableSpec:
    """The stateless table whose rows that do not exist read exactly as those of `spec` do, whatever codec serves."""
    return serving_table(spec, {name: segment.codec for name, segment in spec.segments.items()})


class RowEncoder:
    """Values to images of serving rows, and back. Single-threaded. Counter: saturated, elements so far."""

    def __init__(self, table: TableSpec) -> None:
        """table: as `serving_table` makes it."""
        self.saturated = 0
        self._table = Table("rows", table, seed=0, num_buckets=1)
        self._layout = layout_of(table)
        self._stride = self._layout.kinds[0].stride

    @property
    def image_bytes(self) -> int:
        """Of one row, without its key."""
        return 4 * self._layout.image_words

    @property
    def image_layout(self) -> str:
        """As Table.image_layout."""
        return self._layout.text()

    def encode(self, values: Rows) -> Images:
        """uint8 [n, image_bytes] of finite float32 [n, width], to the nearest codes."""
        values = np.ascontiguousarray(values, np.float32)
        words = np.zeros((len(values), self._stride), np.uint32)
        counts = np.zeros(3, np.int64)
        table, flat = self._table, words.reshape(-1)
        table._kernels.overwrite_rows(
            flat.view(np.float32),
            flat.view(np.uint16),
            self._places(len(values)),
            -1,
            0,
            values,
            table._own_rates,
            table._hyper,
            counts,
            table._workspace[2],
        )
        self.saturated += int(counts[2])
        return np.ascontiguousarray(words[:, _KEY_WORDS:]).view(np.uint8)

    def decode(self, images: Images) -> Floats:
        """float32 [n, width] of images."""
        words = np.zeros((len(images), self._stride), np.uint32)
        words[:, _KEY_WORDS:] = np.ascontiguousarray(images).view(np.uint32)
        values, table, flat = np.empty((len(images), self._layout.width), np.float32), self._table, words.reshape(-1)
        table._kernels.read_rows(
            flat,
            flat.view(np.float32),
            flat.view(np.uint16),
            self._places(len(images)),
            -1,
            0,
            0,
            values,
            np.empty((len(images), 0), np.float32),
            table._own_rates,
            table._hyper,
            table._streams,
            *table._lone,
            table._workspace[2],
        )
        return values

    def _places(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.arange(count, dtype=np.int64) * self._stride
