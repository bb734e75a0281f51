"""Who wants to know of every change of a table: a journal, a save that goes on beside training.

A watcher is told before a change happens, so it can still see what was; and it may be told of one that then does not
happen, because a key was refused or a call failed.
"""

from __future__ import annotations

from typing import Protocol

from ps.types import Floats, Keys


class Watcher(Protocol):
    """Called on the table's thread; must not change the table."""

    def changing(self, keys: Keys) -> None:
        """Rows of these keys may be made or get other bytes."""
        ...

    def removing(self, keys: Keys) -> None:
        """Rows of these keys, as far as there are any, go."""
        ...

    def dropping(self, bucket: int) -> None:
        """All rows of a bucket go, and what its keys have gathered."""
        ...

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        """Keys without a row gather these amounts (float32 [n]) towards their admission."""
        ...


class Watchers:
    """Those of one table; tells each."""

    def __init__(self) -> None:
        self._all: list[Watcher] = []

    def add(self, watcher: Watcher) -> None:
        self._all.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        self._all.remove(watcher)

    def changing(self, keys: Keys) -> None:
        for watcher in self._all:
            watcher.changing(keys)

    def removing(self, keys: Keys) -> None:
        for watcher in self._all:
            watcher.removing(keys)

    def dropping(self, bucket: int) -> None:
        for watcher in self._all:
            watcher.dropping(bucket)

    def gathering(self, keys: Keys, amounts: Floats) -> None:
        for watcher in self._all:
            watcher.gathering(keys, amounts)
