"""What a table costs, what it gives back, and what happens at its limit."""

import numpy as np
import pytest

from ps.errors import MemoryLimitError
from ps.keys import bucket_of
from ps.spec import TableSpec
from ps.storage.arena import Arena
from ps.storage.table import Table
from tests.ps.storage.resident import resident_bytes

MIB = 1 << 20
ONE = np.ones(1, np.float32)


def table_of(limit=None, dim=4, num_buckets=256):
    spec = {
        "segments": {"e": {"dim": dim, "optimizer": "adagrad", "initializer": {"name": "uniform", "scale": 0}}},
        "memory_limit_bytes": limit,
    }
    return Table("ads", TableSpec.model_validate(spec), seed=0, num_buckets=num_buckets)


def fill(table, first, count, step=1):
    keys = np.arange(first, first + count, dtype=np.uint64)
    width = table.spec.width
    return table.push(keys, np.ones((count, width), np.float32), step=step, learning_rates=ONE)


def test_small_tables_are_small():
    table = table_of()
    assert table.memory_bytes <= MIB
    fill(table, 0, 1000)
    assert table.memory_bytes <= 3 * MIB
    fill(table, 1000, 500_000)
    per_row = table.memory_bytes / table.num_rows
    assert table.bytes_per_row == 8 + 16 + 16
    assert per_row < 1.35 * table.bytes_per_row


def test_an_empty_table_touches_little_memory():
    table_of()  # its kernels are loaded
    before = resident_bytes()
    tables = [table_of() for _ in range(20)]
    assert resident_bytes() - before < 20 * MIB
    assert len(tables) == 20


def test_the_limit_is_checked_before_anything_is_written():
    table = table_of(limit=8 * MIB)
    added = 0
    with pytest.raises(MemoryLimitError, match=r"table 'ads'.*memory_limit_bytes"):
        for first in range(0, 10**6, 5000):
            fill(table, first, 5000)
            added += 5000
    assert 80_000 < added < 200_000
    assert table.num_rows == added
    assert table.memory_bytes <= 8 * MIB
    keys = np.arange(added, dtype=np.uint64)
    before = table.pull(keys)
    # A message with known and new keys: the known ones are not updated either.
    mixed = np.arange(added - 5000, added + 5000, dtype=np.uint64)
    with pytest.raises(MemoryLimitError):
        table.push(mixed, np.ones((10_000, 4), np.float32), step=2, learning_rates=ONE)
    with pytest.raises(MemoryLimitError):
        table.write_images(mixed, np.zeros((10_000, table.bytes_per_row - 8), np.uint8))
    assert np.array_equal(table.pull(keys), before)
    assert table.num_rows == added
    assert fill(table, 0, 1000, step=2).applied == 1000  # existing rows still learn


def test_dropped_buckets_give_memory_back_and_are_used_again():
    table = table_of(num_buckets=4)
    fill(table, 0, 100_000)
    full = table.memory_bytes
    keys = np.arange(100_000, dtype=np.uint64)
    others = keys[bucket_of(keys, 4) != 2]
    before = table.pull(others)
    table.drop_bucket(2)
    assert table.memory_bytes < 0.8 * full
    assert table.rows_per_bucket[2] == 0
    assert np.array_equal(table.pull(others), before)
    for step in range(5):  # fill and drop again: nothing leaks
        fill(table, 0, 100_000, step=step)
        table.drop_bucket(2)
    assert table.memory_bytes < 0.85 * full
    table.clear()
    assert (table.num_rows, table.memory_bytes) == (0, table_of(num_buckets=4).memory_bytes)
    assert fill(table, 0, 1000).created == 1000
    assert np.array_equal(table.pull(np.array([5000], np.uint64)), np.zeros((1, 4), np.float32))


def test_wide_rows_take_small_blocks():
    table = table_of(dim=4096, num_buckets=64)
    fill(table, 0, 64)
    assert table.memory_bytes < 2.5 * 64 * table.bytes_per_row


def test_extents_do_not_overlap_and_all_memory_comes_back():
    arena, rng = Arena(64 << 20), np.random.default_rng(0)
    live = {}
    for round_ in range(3000):
        if live and rng.random() < 0.45:
            start = list(live)[rng.integers(len(live))]
            units, mark = live.pop(start)
            assert (arena.words[start * 64 : (start + units) * 64] == mark).all()
            arena.release(start, units)
        else:
            units = int(rng.integers(1, 40))
            start = arena.allocate(units, lasting=bool(rng.random() < 0.5))
            arena.words[start * 64 : (start + units) * 64] = round_
            live[start] = (units, round_)
        assert arena.used_units == 1 + sum(units for units, _ in live.values())
        if round_ % 100 == 0:  # resident: every page that has something in use, but for what was never given out
            touched = {0} | {unit // 16 for start, (units, _) in live.items() for unit in range(start, start + units)}
            assert 0 <= 16 * len(touched) - arena.resident_units < 2 * 16
    for start, (units, mark) in live.items():
        assert (arena.words[start * 64 : (start + units) * 64] == mark).all()
    assert arena.words[0] == 0
    for start, (units, _) in live.items():
        arena.release(start, units)
    assert arena.used_units == arena.resident_units == 1
    assert arena.room_for(arena.num_units - 1)
    assert not arena.words[1024:].any()  # pages that were given back are zeros again; the first has unit 0


def test_a_used_up_arena_says_so():
    arena = Arena(1)
    assert not arena.room_for(arena.num_units)
    with pytest.raises(MemoryLimitError, match="used up"):
        arena.allocate(arena.num_units)
