"""Rows of a shard's tables, as they are now, into the frames of a batch. Single-threaded, with the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ps.delta_options import DeltaOptions
from ps.deltas.batches import Marker, encode_end
from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, RowsFrame, encode_rows, with_checksum
from ps.record import Buffer, layout_digest
from ps.serving_rows import RowEncoder, serving_spec
from ps.spec import ClusterSpec
from ps.storage.reading import blocks_of
from ps.storage.table import Table
from ps.types import Keys

_FRAME_KEYS = 4096  # some hundred microseconds' work


class BatchEncoder:
    """One batch at a time: `begin`, what is to stand in it, `end`. records, num_bytes: of the present one."""

    def __init__(self, spec: ClusterSpec, tables: Mapping[str, Table], options: DeltaOptions) -> None:
        """Compiles what the serving layouts need."""
        self._tables = tables
        serving = serving_spec(spec, options.codec)
        self._encoders = {name: RowEncoder(table) for name, table in serving.tables.items()}
        self.layouts = {name: encoder.image_layout for name, encoder in self._encoders.items()}
        self._digests = {name: layout_digest(text) for name, text in self.layouts.items()}
        self.begin(0)

    def row_bytes(self, table: str) -> int:
        """Of a row in a batch, with its key."""
        return 8 + self._encoders[table].image_bytes

    @property
    def saturated(self) -> int:
        """Elements that did not fit their codec, so far."""
        return sum(encoder.saturated for encoder in self._encoders.values())

    def begin(self, offset: int) -> None:
        """The next batch has this offset."""
        self._offset, self._pieces = offset, list[Buffer]()
        self.records = self.num_bytes = 0

    def end(
        self, *, epoch: int, at: float, since: float, total: int, marker: Marker | None = None, begins: bool = False
    ) -> list[Buffer]:
        """The batch, as pieces to be written one behind the other."""
        counts = {"records": self.records, "total": total}
        self._add([encode_end(self._offset, epoch=epoch, at=at, since=since, **counts, marker=marker, begins=begins)])
        return self._pieces

    def set_rows(self, table: str, keys: Keys) -> Iterator[None]:
        """The rows of those keys (unique) that have one. Yields between pieces, where the table may change."""
        for start in range(0, len(keys), _FRAME_KEYS):
            some = keys[start : start + _FRAME_KEYS]
            present = some[self._tables[table].contains(some)]
            if len(present):
                self._frame(table, full=present)
            yield

    def remove_rows(self, table: str, keys: Keys) -> Iterator[None]:
        """Those keys that have no row. Yields as `set_rows` does."""
        for start in range(0, len(keys), _FRAME_KEYS):
            some = keys[start : start + _FRAME_KEYS]
            absent = some[~self._tables[table].contains(some)]
            if len(absent):
                self._frame(table, removed=absent)
            yield

    def replace_bucket(self, table: str, bucket: int) -> Iterator[None]:
        """All rows of a bucket, in place of those before. Yields as `set_rows` does; rows that change meanwhile may be
        as before or after.
        """
        present = [keys for keys, _ in blocks_of(self._tables[table], bucket)]  # rows change places as others go
        self._frame(table, dropped=(bucket,))
        for keys in present:
            yield from self.set_rows(table, keys)

    def _frame(
        self, name: str, *, full: Keys = NO_KEYS, removed: Keys = NO_KEYS, dropped: tuple[int, ...] = ()
    ) -> None:
        rows = NO_ROWS
        if len(full):
            rows = (full, self._encoders[name].encode(self._tables[name].pull(full)))
        frame = RowsFrame(self._offset, name, self._digests[name], rows, NO_ROWS, removed, NOTHING_GATHERED, dropped)
        self.records += len(full) + len(removed)
        self._add(with_checksum(encode_rows(frame)))

    def _add(self, pieces: list[Buffer]) -> None:
        self._pieces += pieces
        self.num_bytes += sum(len(piece) for piece in pieces)
