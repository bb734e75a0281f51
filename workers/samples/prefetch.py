"""Make items in a background thread, a few ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _Buffer(Generic[T]):
    """What the two threads share. All fields are guarded by `changed`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.changed = threading.Condition()
        self.items: deque[T] = deque()
        self.error: BaseException | None = None
        self.finished = False
        self.closed = False

    def fill(self, iterable: Iterable[T]) -> None:
        """The background thread: until the items end, one fails or the reader closes."""
        iterator = iter(iterable)
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.closed or len(self.items) < self.limit)
                    if self.closed:
                        break
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                with self.changed:
                    self.items.append(item)
                    self.changed.notify_all()
        except BaseException as error:
            self.error = error
        finally:
            try:
                _close(iterator)
            except BaseException as error:
                self.error = self.error or error
            with self.changed:
                self.finished = True
                self.changed.notify_all()


def _close(iterator: Iterator[T]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


class prefetched(Iterator[T]):
    """Iterator over `iterable`, up to `limit` items ahead; 0 = no thread. An error arrives in its place among the
    items.

    The thread starts at the first item. It ends with the items, at close(), at the end of a `with`, or when this
    object is dropped; close() waits for the item that is being made.
    """

    def __init__(self, iterable: Iterable[T], limit: int) -> None:
        self._iterable = iterable
        self._buffer: _Buffer[T] = _Buffer(limit)
        self._direct = iter(iterable) if limit == 0 else None
        self._thread: threading.Thread | None = None

    def __next__(self) -> T:
        if self._direct is not None:
            return next(self._direct)
        buffer = self._buffer
        if self._thread is None:
            if buffer.closed:
                raise StopIteration
            self._thread = threading.Thread(target=buffer.fill, args=(self._iterable,), name="prefetch", daemon=True)
            self._thread.start()
        with buffer.changed:
            buffer.changed.wait_for(lambda: buffer.items or buffer.finished)
            if buffer.items:
                item = buffer.items.popleft()
                buffer.changed.notify_all()
                return item
        self._thread.join()
        error, buffer.error = buffer.error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it made."""
        if self._direct is not None:
            _close(self._direct)
            self._direct = iter(())
        with self._buffer.changed:
            self._buffer.closed = True
            self._buffer.items.clear()
            self._buffer.changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> prefetched[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
