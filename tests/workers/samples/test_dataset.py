"""Orders, shares and resuming: properties over all kinds of shuffle, sizes of chunk and numbers of workers."""

from collections import Counter
from itertools import islice
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.samples.making import NUMBERED, NumberedSource, assert_same, numbers_of
from workers.samples.dataset import Dataset
from workers.samples.order import permuted
from workers.samples.rows import cut_rows, join, take
from workers.samples.schema import Schema

SCHEMA = Schema(NUMBERED)
Shuffle = Literal["full", "none"] | int
shuffles = st.sampled_from(["full", "none", 1, 7, 20])
sizes = st.integers(1, 60)


def dataset(
    rows: int, shuffle: Shuffle, *, chunk: int = 5, batch: int = 4, known: bool = True, **options: bool
) -> Dataset:
    source = NumberedSource(rows, chunk, is_known=known)
    return Dataset(source, SCHEMA, batch_size=batch, shuffle=shuffle, seed=3, **options)


@given(sizes, shuffles, st.integers(1, 9), st.integers(1, 9))
def test_every_row_once_an_epoch_in_full_batches(rows: int, shuffle: Shuffle, chunk: int, batch: int) -> None:
    split = dataset(rows, shuffle, chunk=chunk, batch=batch)
    batches = numbers_of(split.batches(epoch=1))
    assert Counter(row for batch in batches for row in batch) == Counter(range(rows))
    assert all(len(numbers) == batch for numbers in batches[:-1])
    assert split.num_batches() == len(batches) == -(-rows // batch)


@given(sizes, shuffles, st.integers(1, 9), st.booleans())
def test_the_size_of_chunks_does_not_matter(rows: int, shuffle: Shuffle, chunk: int, known: bool) -> None:
    whole = dataset(rows, shuffle, chunk=1000).batches(epoch=2)
    pieces = dataset(rows, shuffle, chunk=chunk, known=known).batches(epoch=2)
    for first, second in zip(whole, pieces, strict=True):
        assert_same(first, second)


@given(sizes, shuffles, st.integers(1, 4), st.booleans(), st.booleans())
def test_shares_are_apart_and_equally_many(rows: int, shuffle: Shuffle, world: int, drop: bool, known: bool) -> None:
    split = dataset(rows, shuffle, known=known)
    own = [numbers_of(split.batches(0, rank, world, drop_last=drop)) for rank in range(world)]
    assert len({len(batches) for batches in own}) == 1
    assert split.num_batches(world, drop) == (len(own[0]) if known or world > 1 or shuffle == "full" else None)
    seen = Counter(row for batches in own for batch in batches for row in batch)
    assert set(seen.values()) <= {1}
    if drop:
        assert all(len(batch) == 4 for batches in own for batch in batches)
    else:
        assert rows - world < seen.total() <= rows


@given(sizes, shuffles, st.integers(1, 3), st.integers(0, 12), st.booleans())
def test_an_epoch_can_start_at_any_batch(rows: int, shuffle: Shuffle, world: int, start: int, known: bool) -> None:
    split = dataset(rows, shuffle, known=known)
    rank = world - 1
    uninterrupted = islice(split.batches(5, rank, world), start, None)
    for first, second in zip(uninterrupted, split.batches(5, rank, world, start_batch=start), strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("shuffle", ["full", "none"])
@given(rows=st.integers(1, 90), world=st.integers(2, 3))
def test_workers_follow_one_worker_of_their_batches_together(shuffle: Shuffle, rows: int, world: int) -> None:
    together = dataset(rows, shuffle, batch=4 * world).batches(1, drop_last=True)
    split = dataset(rows, shuffle, batch=4)
    shares = [split.batches(1, rank, world, drop_last=True) for rank in range(world)]
    for whole, *parts in zip(together, *shares, strict=True):
        assert_same(whole, join(parts))


@given(sizes, st.integers(1, 4), st.booleans(), st.booleans())
def test_evaluation_is_in_order_and_complete(rows: int, world: int, known: bool, held: bool) -> None:
    split = dataset(rows, "none", known=known, held=held, evaluation=True, drop_last=True)
    own = [numbers_of(split.batches(0, rank, world)) for rank in range(world)]
    assert [row for batches in own for batch in batches for row in batch] == list(range(rows))
    if world > 1 or known:
        assert split.num_batches(world) == max(len(batches) for batches in own)


@pytest.mark.parametrize("shuffle", ["full", 30])
def test_epochs_and_seeds_differ(shuffle: Shuffle) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        source = NumberedSource(30, 5)
        return numbers_of(Dataset(source, SCHEMA, batch_size=30, shuffle=shuffle, seed=seed).batches(epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 0)


def test_a_window_holds_its_rows_together() -> None:
    batches = numbers_of(dataset(40, 8, batch=4).batches())
    for window in range(5):
        assert sorted(batches[2 * window] + batches[2 * window + 1]) == list(range(8 * window, 8 * window + 8))


def test_resuming_a_stream_reads_only_what_follows() -> None:
    split = dataset(1000, 8)
    list(split.batches(start_batch=200))
    assert isinstance(split.source, NumberedSource)
    assert split.source.rows_read == 200


def test_workers_of_a_stream_read_their_own_rows() -> None:
    split = dataset(1000, 100, batch=10)
    list(split.batches(0, 1, 4))
    assert isinstance(split.source, NumberedSource)
    assert split.source.rows_read == 250


def test_a_held_split_is_read_once() -> None:
    split = dataset(50, "full")
    for epoch in range(3):
        list(split.batches(epoch))
    assert isinstance(split.source, NumberedSource)
    assert split.source.rows_read == 50


@given(st.integers(0, 100), st.integers(0, 100))
def test_permuted_is_a_permutation(start: int, size: int) -> None:
    order = permuted(start, start + size, seed=1, epoch=2)
    assert sorted(order) == list(range(start, start + size))


def test_permutation_does_not_change() -> None:
    """Positions in checkpoints depend on it."""
    assert permuted(0, 8, seed=1, epoch=0).tolist() == [0, 3, 6, 2, 7, 5, 4, 1]


@given(st.lists(st.integers(0, 19), max_size=30))
def test_take_picks_rows_one_by_one(rows: list[int]) -> None:
    samples = dataset(20, "full").samples()
    picked = take(samples, np.array(rows, np.int64))
    assert picked.size == len(rows)
    if rows:
        assert_same(picked, join([cut_rows(samples, row, row + 1) for row in rows]))
