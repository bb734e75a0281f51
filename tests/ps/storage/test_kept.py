"""A table read as it was at a mark, while everything that can change it does: the same rows, byte by byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.keys import bucket_of
from ps.storage.kept import Kept
from ps.storage.table import Table
from ps.types import Seen
from tests.ps.storage.late_oracle import SPEC
from tests.ps.stored.make_version_1 import SPEC as STORED

NUM_BUCKETS = 4
RATES = np.array([0.1, 0.2, 0.3], np.float32)
KEYS = np.arange(200, dtype=np.uint64)


def images_of(table):
    """{key: image bytes} of every row."""
    return {
        key: image.tobytes()
        for bucket in range(table.num_buckets)
        for keys, images in table.read_images(bucket)
        for key, image in zip(keys.tolist(), images)
    }


def push(table, keys, step):
    keys = keys[np.argsort(bucket_of(keys, table.num_buckets), kind="stable")]
    gradients = np.random.default_rng(step).normal(size=(len(keys), table.spec.width)).astype(np.float32)
    table.push(keys, gradients, step=step, learning_rates=RATES[: len(table.spec.segments)], seen=Seen(step))


def table_with_rows(seed):
    table, rng = Table("user", SPEC, seed=3, num_buckets=NUM_BUCKETS), np.random.default_rng(seed)
    for step in range(1, 4):
        push(table, rng.choice(KEYS[:120], 60, replace=False), step)
    return table


def change(table, how, keys, bucket, step):
    """One of all the ways."""
    match how:
        case "push":
            push(table, keys, step)
        case "delete":
            table.delete(keys)
        case "write":
            table.write_values(keys, np.full((len(keys), SPEC.width), step, np.float32))
        case "write late":
            table.write_values(
                keys, np.full((len(keys), SPEC.segments["embedding"].dim), step, np.float32), "embedding"
            )
        case "promote":
            table.promote(keys)
        case "sweep":
            table.sweep(bucket, step=step, learning_rates=RATES)
        case "drop":
            table.drop_bucket(bucket)
        case "clear":
            table.clear()
        case "images":
            images = images_of(table)
            some = [key for key in keys.tolist() if key in images]
            for size in {len(images[key]) for key in some}:
                chosen = [key for key in some if len(images[key]) == size]
                first = images[chosen[0]]
                table.write_images(np.array(chosen, np.uint64), np.array([list(first)] * len(chosen), np.uint8))
        case "block":
            for block in table.scan(bucket):
                block.write(block.values + np.float32(1))


HOWS = ("push", "delete", "write", "write late", "promote", "sweep", "drop", "clear", "images", "block")
STEPS = st.tuples(
    st.sampled_from(HOWS), st.sets(st.integers(0, 199), min_size=1), st.integers(0, NUM_BUCKETS - 1), st.integers(0, 3)
)


@settings(max_examples=80)
@given(st.integers(0, 3), st.lists(STEPS, max_size=12), st.permutations(range(NUM_BUCKETS)))
def test_what_is_read_is_the_table_at_the_mark(seed, steps, order):
    """Each step changes the table, then reads so many pieces."""
    table = table_with_rows(seed)
    expected = images_of(table)
    kept = Kept(table, np.arange(NUM_BUCKETS))

    def pieces():
        for bucket in order:
            for keys, images in kept.read_images(bucket):
                assert (bucket_of(keys, NUM_BUCKETS) == bucket).all()
                yield keys, images

    reading, found = pieces(), {}

    def take(count):
        for _ in range(count):
            keys, images = next(reading, (KEYS[:0], ()))
            for key, image in zip(keys.tolist(), images):
                assert key not in found
                found[key] = image.tobytes()

    for number, (how, keys, bucket, count) in enumerate(steps):
        change(table, how, np.array(sorted(keys), np.uint64), bucket, 10 + number)
        take(count)
    take(100)
    assert found == expected
    kept.close()
    assert kept.memory_bytes == 0
    change(table, "push", KEYS, 0, 99)  # nobody watches any more
    assert kept.memory_bytes == 0


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_a_bucket_that_changes_between_its_pieces_is_read_as_it_was(how, num_read):
    table = Table("user", SPEC, seed=3, num_buckets=1)
    push(table, np.arange(9000, dtype=np.uint64), 1)
    push(table, np.arange(3000, 6000, dtype=np.uint64), 2)
    expected, found = images_of(table), {}
    kept = Kept(table, np.arange(1))
    reading = kept.read_images(0)
    for number, (keys, images) in enumerate(reading):
        found |= {key: image.tobytes() for key, image in zip(keys.tolist(), images)}
        if number == num_read:
            change(table, how, np.array([2, 3500, 5999, 8999, 20_000], np.uint64), 0, 10)
    assert found == expected


def test_a_table_that_nobody_changes_is_read_as_it_stands():
    """The same pieces as Table.read_images, in the same order: files of equal tables are equal."""
    table = table_with_rows(0)
    kept = Kept(table, np.arange(NUM_BUCKETS))
    for bucket in range(NUM_BUCKETS):
        for (keys, images), (others, their) in zip(kept.read_images(bucket), table.read_images(bucket), strict=True):
            np.testing.assert_array_equal(keys, others)
            np.testing.assert_array_equal(images, their)
    assert kept.memory_bytes == 0


def test_blocks_are_bounded_and_memory_follows_what_changed():
    table = Table("user", SPEC, seed=3, num_buckets=1)
    keys = np.arange(10_000, dtype=np.uint64)
    push(table, keys, 1)
    kept = Kept(table, np.arange(1))
    for step in range(2, 12):  # the same rows again and again are kept once
        push(table, keys[:1000], step)
        if step == 2:
            once = kept.memory_bytes
    assert kept.memory_bytes == once < table.memory_bytes / 2
    sizes = [len(piece[0]) for piece in kept.read_images(0)]
    assert sum(sizes) == 10_000
    assert max(sizes) <= 4096
    before = kept.memory_bytes
    push(table, keys, 20)  # it has been read: nothing is kept
    assert kept.memory_bytes == before


@pytest.mark.parametrize("dropped", [False, True])
def test_what_admission_had_gathered_is_kept_too(dropped):
    table = Table("item", STORED.tables["item"], seed=3, num_buckets=NUM_BUCKETS)
    push(table, KEYS, 1)  # admitted at the second push
    expected = [table.admission.save(bucket) for bucket in range(NUM_BUCKETS)]
    rows = images_of(table)
    assert len(rows) < 5
    assert all(expected)
    kept = Kept(table, np.arange(NUM_BUCKETS))
    assert [kept.admission(bucket) for bucket in range(NUM_BUCKETS)] == expected
    if dropped:
        table.drop_bucket(2)
    push(table, KEYS, 2)
    assert table.num_rows > 100
    assert [kept.admission(bucket) for bucket in range(NUM_BUCKETS)] == expected
    assert [table.admission.save(bucket) for bucket in range(NUM_BUCKETS)] != expected
    found = [piece for bucket in range(NUM_BUCKETS) for piece in kept.read_images(bucket)]
    assert {key: image.tobytes() for keys, images in found for key, image in zip(keys.tolist(), images)} == rows
    kept.close()
