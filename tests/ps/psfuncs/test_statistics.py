"""Statistics of slots against plain numpy: on one shard and on three, from a checkpoint's images, under deletion."""

import numpy as np
import pytest

import ps
from ps.keys import bucket_of, pack, slot_of
from ps.psfunc import decode_args, encode_args, run_to_end
from ps.psfuncs.statistics import SlotStatistics, SlotSums
from ps.storage.table import Table
from ps.storage.unique import unique_by_bucket
from ps.types import Seen
from tests.ps.driving import NUM_BUCKETS, SPEC, Driver
from tests.ps.psfuncs.test_psfuncs import Cluster

# Slot 0 has one row, slot 4095 the most; ids repeat over the slots.
COUNTS = {0: 1, 3: 40, 700: 200, 4095: 500}
KEYS = unique_by_bucket(
    np.concatenate([pack(slot, np.arange(count, dtype=np.uint64)) for slot, count in COUNTS.items()]), NUM_BUCKETS
)[0]


def summary_of(keys, values, initial, columns, row_bytes):
    """What SlotStatistics should say, row by row in float64."""
    found = {}
    for slot in np.unique(slot_of(keys)).tolist():
        mine = slot_of(keys) == slot
        rows = int(mine.sum())
        segments = {}
        for name, place in columns.items():
            part, began = values[mine, place], initial[mine, place]
            norms = [float(np.linalg.norm(row.astype(np.float64))) for row in part]
            segments[name] = ps.SegmentStatistics(
                norm_mean=pytest.approx(sum(norms) / rows, rel=1e-12),
                norm_max=pytest.approx(max(norms), rel=1e-12),
                share_zero=sum(not row.any() for row in part) / rows,
                coverage=sum(row.tolist() != start.tolist() for row, start in zip(part, began)) / rows,
            )
        found[slot] = ps.SlotSummary(rows, rows / len(keys), rows * row_bytes, None, None, segments)
    return found


@pytest.fixture(params=[1, 3])
def shards(request):
    return request.param


def trained(shards):
    """A cluster where a third of the rows stay at their initial value, in a segment or in both, and some are zero."""
    cluster = Cluster(shards)
    initial = cluster.rows(KEYS)
    gradients = np.random.default_rng(4).normal(size=initial.shape).astype(np.float32)
    gradients[::3] = 0
    gradients[1::3, 0] = 0
    cluster.do("push", gradients, KEYS)
    cluster.update(ps.Fill(0.0, segment="embedding"), KEYS[5::10])
    return cluster, initial


def test_slot_statistics(shards):
    cluster, initial = trained(shards)
    found = cluster.run(ps.SlotStatistics())
    row_bytes = 8 + 4 * 3
    expected = summary_of(KEYS, cluster.rows(KEYS), initial, SPEC.tables["user"].columns(), row_bytes)
    assert list(found) == sorted(COUNTS)
    assert {slot: each.rows for slot, each in found.items()} == COUNTS
    assert found == expected
    assert 0.6 < found[4095].segments["embedding"].coverage < 0.8
    linear = found[4095].segments["linear"]  # begins at 0
    assert linear.share_zero == pytest.approx(1 - linear.coverage)


def test_one_shard_or_three_give_the_same_bits():
    one, three = (trained(number)[0].run(ps.SlotStatistics()) for number in (1, 3))
    assert one == three


def test_a_table_without_rows_has_no_slots(shards):
    assert Cluster(shards).run(ps.SlotStatistics()) == {}


def test_it_travels_by_name():
    assert decode_args("slot_statistics", encode_args(ps.SlotStatistics())) == ps.SlotStatistics()


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_a_row_that_was_made_and_not_trained_has_not_moved(codec):
    """Also where the initial value is rounded by the codec."""
    normal = {"dim": 4, "codec": codec, "initializer": {"name": "normal", "std": 0.1}, "optimizer": "adagrad"}
    spec = ps.TableSpec.model_validate({"segments": {"e": normal}})
    table, keys = Table("t", spec, seed=3, num_buckets=1), pack(2, np.arange(6000, dtype=np.uint64))
    gradients = np.zeros((6000, 4), np.float32)
    gradients[:1500] = 1
    table.push(keys, gradients, step=1, learning_rates=np.full(1, 0.5, np.float32))
    found = SlotSums.of(spec)
    for block in table.scan(0):
        found.add(0, table, block)
    assert found.summary()[2].segments["e"].coverage == 0.25
    table.clear()
    np.testing.assert_array_equal(table.initial_values(keys), table.pull(keys))


def test_shows_and_clicks_where_the_table_keeps_them():
    spec = ps.TableSpec.model_validate({"segments": {"e": {"dim": 2, "optimizer": "sgd"}}, "keep_counts": True})
    table, keys = Table("t", spec, seed=3, num_buckets=1), KEYS[slot_of(KEYS) > 3]
    counts = np.random.default_rng(1).uniform(0, 5, (len(keys), 2)).astype(np.float32)
    gradients = np.ones((len(keys), 2), np.float32)
    seen = Seen(1_700_000_000, counts)
    table.push(keys, gradients, step=1, learning_rates=np.ones(1, np.float32), seen=seen)
    sums = SlotSums.of(spec)
    for block in table.scan(0):
        sums.add(0, table, block)
    found = SlotSums.decode([sums.encode()]).summary()
    for slot, each in found.items():
        shows, clicks = counts[slot_of(keys) == slot].astype(np.float64).sum(axis=0)
        assert (each.shows, each.clicks) == (pytest.approx(shows, rel=1e-12), pytest.approx(clicks, rel=1e-12))
        assert each.num_bytes == each.rows * (8 + 12 + 8)


def test_late_segments_count_as_initial_and_take_no_bytes_until_they_are_there():
    embedding = {"dim": 4, "optimizer": "sgd", "initializer": {"name": "uniform", "scale": 1}, "late": 5.0}
    spec = ps.TableSpec.model_validate({"segments": {"linear": {"dim": 1, "optimizer": "sgd"}, "embedding": embedding}})
    table, keys = Table("t", spec, seed=3, num_buckets=1), pack(6, np.arange(100, dtype=np.uint64))
    table.push(keys, np.ones((100, 5), np.float32), step=1, learning_rates=np.ones(2, np.float32))
    table.promote(keys[:30])
    table.push(keys[:20], np.ones((20, 5), np.float32), step=2, learning_rates=np.ones(2, np.float32))
    sums = SlotSums.of(spec)
    for block in table.scan(0):
        sums.add(0, table, block)
    found = sums.summary()[6]
    assert (found.rows, found.num_bytes) == (100, 30 * table.bytes_per_row + 70 * table.bytes_per_early_row)
    assert (found.segments["linear"].coverage, found.segments["embedding"].coverage) == (1.0, 0.2)
    norms = np.linalg.norm(table.pull(keys)[:, 1:].astype(np.float64), axis=1)
    assert found.segments["embedding"].norm_mean == pytest.approx(norms.mean(), rel=1e-12)
    assert found.shows == 120


def test_it_yields_after_every_block_and_stands_rows_that_vanish_between():
    driver = Driver(SPEC)
    table, keys = driver.table, pack(9, np.arange(200_000, dtype=np.uint64))
    keys = keys[bucket_of(keys, NUM_BUCKETS) == 5]
    assert len(keys) > 2 * 4096
    table.push(keys, np.ones((len(keys), 3), np.float32), step=1, learning_rates=np.ones(2, np.float32))

    def task():
        buckets = np.arange(NUM_BUCKETS)
        return ps.Task(table, None, None, buckets, payload=None, step=1, learning_rates=np.empty(0, np.float32))

    assert sum(1 for _ in SlotStatistics().apply(task())) == -(-len(keys) // 4096)
    running = SlotStatistics().apply(task())
    next(running)
    table.delete(keys[:-10])
    assert SlotSums.decode([run_to_end(running).values]).summary()[9].rows == 4096
    assert SlotSums.decode([run_to_end(SlotStatistics().apply(task())).values]).summary()[9].rows == 10
