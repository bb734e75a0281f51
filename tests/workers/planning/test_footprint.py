"""Planned bytes against tables that are really filled, and checkpoints that are really written."""

import numpy as np
import pytest

import ps
from ps.keys import bucket_of
from ps.storage.table import Table
from tests.ps.storage.test_memory import table_of
from workers.planning.footprint import Footprint

SPEC = table_of().spec


def fill(spec, num_buckets, rows):
    table = Table("ads", spec, seed=0, num_buckets=num_buckets)
    gradients = np.zeros((4096, spec.width), np.float32)
    for first in range(0, rows, 4096):
        keys = np.arange(first, min(first + 4096, rows), dtype=np.uint64)
        table.push(keys, gradients[: len(keys)], step=1, learning_rates=np.ones(1, np.float32))
    return table


@pytest.mark.parametrize(
    ("num_buckets", "rows", "within"),
    [
        (256, 1000, 0.1),
        (256, 30_000, 0.1),  # which pages of old indexes are free depends on the order of growth
        (256, 300_000, 0.03),
        (64, 1_000_000, 0.02),
        (8, 3_000_000, 0.02),
    ],
)
def test_memory_is_what_a_table_of_so_many_rows_reports(num_buckets, rows, within):
    planned = Footprint("ads", SPEC).memory_bytes(rows, num_buckets)
    assert fill(SPEC, num_buckets, rows).memory_bytes == pytest.approx(planned, rel=within)


def test_an_empty_table_is_exact():
    assert Footprint("ads", SPEC).memory_bytes(0, 256) == table_of().memory_bytes


@pytest.mark.parametrize("num_buckets", [1 << 10, 1 << 20])
def test_large_tables_cost_what_their_rows_cost(num_buckets):
    """The share of index and room does not drift with size: buckets stand in the same cycle."""
    found = Footprint("ads", SPEC)
    per_row = [found.memory_bytes(num_buckets * rows, num_buckets) / (num_buckets * rows) for rows in (2e5, 1e6, 1e7)]
    assert all(found.row_bytes * 1.1 < each < found.row_bytes * 1.35 for each in per_row)
    assert max(per_row) < 1.1 * min(per_row)


def test_more_rows_than_buckets_hold():
    with pytest.raises(ValueError, match="it holds 16777216"):
        Footprint("ads", SPEC).memory_bytes(65 << 24, 64)


def test_rows_count_with_their_late_segments():
    linear, late = ps.SegmentSpec(dim=1, optimizer="sgd"), ps.SegmentSpec(dim=4, optimizer="sgd", late=2.0)
    spec = ps.TableSpec(segments={"linear": linear, "embedding": late})
    table, found = Table("ads", spec, seed=0, num_buckets=64), Footprint("ads", spec)
    assert (table.bytes_per_row, found.max_rows) == (found.row_bytes, 1 << 23)
    assert found.memory_bytes(0, 64) == table.memory_bytes
    assert 1.1 < found.memory_bytes(10**7, 64) / (10**7 * table.bytes_per_row) < 1.35


def test_a_checkpoint_is_as_long_as_planned(tmp_path):
    spec, rows = ps.ClusterSpec(tables={"ads": SPEC}, num_buckets=8), 40_000
    with ps.LocalCluster(spec) as cluster, cluster.connect() as client:
        keys = np.arange(rows, dtype=np.uint64)
        client.push("ads", keys, np.zeros((rows, SPEC.width), np.float32), step=1).wait()
        client.save(str(tmp_path))
    written = sum(file.stat().st_size for file in tmp_path.glob("rows-*.weir"))
    planned = Footprint("ads", SPEC).checkpoint_bytes(rows, 8)
    assert {-(-count // 4096) for count in np.bincount(bucket_of(keys, 8)).tolist()} == {2}  # as many frames as planned
    assert 0 <= written - planned < 2000  # start, end, and who wrote
