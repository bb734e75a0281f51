"""What updates change, gathered while they run and then made into the frames of a journal. Single-threaded, with the
tables that it watches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, RowsFrame, encode_commit, encode_rows
from ps.keys import bucket_of
from ps.record import Buffer, layout_digest
from ps.storage.reading import images_of
from ps.storage.table import Table
from ps.types import Floats, Keys

_FRAME_KEYS = 16_384


class _Event(NamedTuple):
    """One of: keys whose rows changed, keys whose rows went, a bucket that was dropped, keys that gathered amounts."""

    table: str
    changed: Keys = NO_KEYS
    removed: Keys = NO_KEYS
    gathered: tuple[Keys, Floats] = NOTHING_GATHERED
    dropped: tuple[int, ...] = ()


class _Watcher:
    """ps.storage.watching.Watcher of one table. only: bool [num_buckets], those that it sees the rows of; None: all,
    and what their keys gather.
    """

    def __init__(self, table: str, events: list[_Event], only: NDArray[np.bool_] | None) -> None:
        self._table, self._events, self._only = table, events, only

    def changing(self, keys: Keys) -> None:
        if len(keys := self._seen(keys)):
            self._events.append(_Event(self._table, changed=keys))

    def removing(self, keys: Keys) -> None:
        if len(keys := self._seen(keys)):
            self._events.append(_Event(self._table, removed=keys))

    def dropping(self, bucket: int) -> None:
        if self._only is None or self._only[bucket]:
            self._events.append(_Event(self._table, dropped=(bucket,)))

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        if len(keys) and self._only is None:
            self._events.append(_Event(self._table, gathered=(keys, amounts)))

    def _seen(self, keys: Keys) -> Keys:
        return keys if self._only is None else keys[self._only[bucket_of(keys, len(self._only))]]


class Changes:
    """Since the last commit. Rows are read when the frames are made: a row that changed twice is written as it is."""

    def __init__(self, tables: Mapping[str, Table], only: NDArray[np.bool_] | None = None) -> None:
        """only: bool [num_buckets], whose rows it is about; default: all, and what their keys gather."""
        self._tables = tables
        self._layouts = {name: layout_digest(table.image_layout()) for name, table in tables.items()}
        self._events: list[_Event] = []
        self._header: dict[str, Any] = {}
        self._watchers = {name: _Watcher(name, self._events, only) for name in tables}
        for name, table in tables.items():
            table.watchers.add(self._watchers[name])

    @property
    def is_empty(self) -> bool:
        return not self._events and not self._header

    @property
    def num_keys(self) -> int:
        """Keys that the frames are going to hold."""
        return sum(len(event.changed) + len(event.removed) for event in self._events)

    def close(self) -> None:
        """Watch no more."""
        for name, table in self._tables.items():
            table.watchers.remove(self._watchers[name])

    def mark(self, table: str, identities: Sequence[tuple[int, int]], buckets: NDArray[np.int64]) -> None:
        """These updates (client, sequence) are remembered as applied to buckets of a table."""
        if len(buckets):
            mark = [table, [list(identity) for identity in identities], buckets.astype("<i4").tobytes()]
            self._header.setdefault("marks", []).append(mark)

    def note(self, name: str, value: Any) -> None:
        """What else a commit may say: frames.py."""
        self._header[name] = value

    def forget(self) -> None:
        """Nothing that happened so far is to be written."""
        self._events.clear()
        self._header = {}

    def frames(self, number: int) -> Iterator[tuple[list[Buffer], bool]]:
        """The frames of one update: of each its pieces, as encode_rows has them, and whether it is the commit, the last
        one. Begins anew.

        Nothing may change the tables before the last one.
        """
        header, self._header = self._header, {}
        for pieces in self.rows(number):
            yield pieces, False
        yield [encode_commit(number, header)], True

    def rows(self, number: int) -> Iterator[list[Buffer]]:
        """The frames of rows alone."""
        events = list(self._events)
        self._events.clear()
        for event in events:
            yield from self._rows(number, event)

    def _rows(self, number: int, event: _Event) -> Iterator[list[Buffer]]:
        table, name = self._tables[event.table], event.table
        layout = self._layouts[name]
        for start in range(0, len(event.changed), _FRAME_KEYS):
            # A copy, for keys may lie in memory that a client shares.
            keys = np.array(event.changed[start : start + _FRAME_KEYS], np.uint64)
            full, early = images_of(table, keys)
            if len(full[0]) or len(early[0]):
                yield encode_rows(RowsFrame(number, name, layout, full, early, NO_KEYS, NOTHING_GATHERED))
        for start in range(0, len(event.removed), _FRAME_KEYS):
            keys = np.array(event.removed[start : start + _FRAME_KEYS], np.uint64)
            absent = keys[~table.contains(keys)]
            if len(absent):
                yield encode_rows(RowsFrame(number, name, layout, NO_ROWS, NO_ROWS, absent, NOTHING_GATHERED))
        keys, amounts = event.gathered
        if len(keys) or event.dropped:
            gathered = (np.array(keys, np.uint64), np.array(amounts, np.float32))
            yield encode_rows(RowsFrame(number, name, layout, NO_ROWS, NO_ROWS, NO_KEYS, gathered, event.dropped))
