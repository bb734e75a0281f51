"""Prefetching: order, errors in their place, and no thread left behind."""

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from workers.samples.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


class Numbers:
    """0, 1, ... and whether it was closed."""

    def __init__(self, stop: int = 1 << 60) -> None:
        self.made, self.stop, self.closed = 0, stop, False

    def __iter__(self) -> Iterator[int]:
        try:
            while self.made < self.stop:
                self.made += 1
                yield self.made - 1
        finally:
            self.closed = True


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_all_items_in_order(limit: int) -> None:
    numbers = Numbers(50)
    with prefetched(numbers, limit) as items:
        assert list(items) == list(range(50))
        assert list(items) == []
    assert numbers.closed


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_no_more_than_the_limit_ahead() -> None:
    numbers = Numbers()
    with prefetched(numbers, 3) as items:
        assert next(items) == 0
        wait_until(lambda: numbers.made == 4)
        time.sleep(0.02)
        assert numbers.made == 4
    assert numbers.closed


@pytest.mark.parametrize("limit", [0, 2])
def test_an_error_comes_in_its_place(limit: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    ahead = prefetched(items(), limit)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


@pytest.mark.parametrize("limit", [0, 2])
def test_leaving_early_closes_the_source(limit: int) -> None:
    numbers = Numbers()
    with prefetched(numbers, limit) as items:
        next(items)
    assert numbers.closed
    with pytest.raises(StopIteration):
        next(items)


def test_dropping_it_ends_the_thread() -> None:
    numbers = Numbers()
    items = prefetched(numbers, 2)
    next(items)
    assert len(threads()) == 1
    del items
    gc.collect()
    wait_until(lambda: numbers.closed)


def test_no_thread_before_the_first_item() -> None:
    items = prefetched(Numbers(), 2)
    assert threads() == []
    items.close()
    with pytest.raises(StopIteration):
        next(items)


def test_an_error_in_the_reader_is_not_hidden() -> None:
    with pytest.raises(KeyError), prefetched(Numbers(), 2) as items:
        next(items)
        raise KeyError("reader")
