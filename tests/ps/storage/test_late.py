"""Late segments against a dict of rows: random calls to the bit, collisions, growth, images, memory and its limit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ps.errors import MemoryLimitError, RequestError
from ps.keys import bucket_of
from ps.spec import TableSpec
from ps.storage.layout import layout_of, learning_rates_of
from ps.storage.table import Table
from ps.types import Seen
from tests.ps.storage.late_oracle import DAY, NEVER, SPEC, LateOracle, late_at
from tests.ps.storage.oracle import Oracle
from tests.ps.storage.test_table import LAST, gradients, same

RATES = np.array([0.1, 0.2, 0.3], np.float32)
OWN_RATES = learning_rates_of(SPEC)
LATE = ["embedding", "swept"]
MASK = (1 << 64) - 1


def pair(num_buckets=4, spec=SPEC):
    return Table("user", spec, seed=3, num_buckets=num_buckets), LateOracle("user", spec, 3)


def check(table, oracle):
    """All that can be seen of both is equal; full rows stand before early ones."""
    same(table, oracle)
    assert table.num_early == len(oracle.rows) - len(oracle.full)
    for bucket in range(table.num_buckets):
        order = [key in oracle.full for block in table.scan(bucket) for key in block.keys.tolist()]
        assert order == sorted(order, reverse=True)
        for name in LATE:
            assert sum(order) == sum(len(block.keys) for block in table.scan(bucket, name))


def images_of(table):
    """{key: image} of every row."""
    pieces = [piece for bucket in range(table.num_buckets) for piece in table.read_images(bucket)]
    return {key: image for keys, images in pieces for key, image in zip(keys.tolist(), images)}


def write_images(table, images):
    """Images of both sizes, those of one size at a time."""
    for size in {len(image) for image in images.values()}:
        some = {key: image for key, image in images.items() if len(image) == size}
        table.write_images(np.array(list(some), np.uint64), np.array(list(some.values())))


class Play:
    """Does the same to a table and to the oracle."""

    def __init__(self, num_buckets, spec):
        self.table, self.oracle = pair(num_buckets, spec)
        self.rng = np.random.default_rng(7)
        self.images, self.copied = {}, ({}, set(), {})

    def push(self, keys, step):
        g = gradients(self.rng, keys, SPEC)
        clicks = self.rng.random(len(keys)) < 0.2
        shown, now = np.stack([self.rng.integers(1, 4, len(keys)), clicks], 1).astype(np.float32), step * DAY // 2
        counts = self.table.push(keys, g, step=step, learning_rates=RATES, seen=Seen(now, shown))
        assert (counts.applied, counts.created) == (len(keys), self.oracle.push(keys, g, step, RATES, shown, now))

    def many(self, keys, step):
        """Enough new rows that blocks, directories and indexes grow."""
        self.push((keys[0] >> np.uint64(1)) + np.arange(150, dtype=np.uint64) * np.uint64(7), step)

    def pull(self, keys, step):
        repeated = np.concatenate([keys, keys])
        assert np.array_equal(self.table.pull(repeated), self.oracle.pull(repeated))

    def promote(self, keys, step):
        assert self.table.promote(keys) == self.oracle.promote(keys)

    def promote_most(self, keys, step):
        present = np.array([key for key in self.oracle.rows if key % 5], np.uint64)
        self.promote(present, step)

    def delete(self, keys, step):
        assert self.table.delete(keys) == self.oracle.delete(keys)

    def write(self, keys, step):
        values = self.rng.normal(size=(len(keys), 3)).astype(np.float32)
        self.table.write_values(keys, values, "embedding")
        self.oracle.write(keys, values, "embedding", OWN_RATES)

    def scale(self, keys, step):
        """Table-wide: rows without the segment are passed over."""
        for bucket in range(self.table.num_buckets):
            for block in self.table.scan(bucket, "swept"):
                block.write(block.values * np.float32(0.5))
        for key in self.oracle.full:
            swept = self.oracle.rows[key][2]
            swept.overwrite(swept.w * np.float32(0.5))

    def sweep(self, keys, step):
        for bucket in range(self.table.num_buckets):
            self.table.sweep(bucket, step=step, learning_rates=RATES)
        self.oracle.sweep(step, RATES)

    def drop(self, keys, step):
        bucket = int(bucket_of(keys[:1], self.table.num_buckets)[0])
        self.table.drop_bucket(bucket)
        rows = np.array(list(self.oracle.rows), np.uint64)
        self.oracle.delete(rows[bucket_of(rows, self.table.num_buckets) == bucket])

    def copy(self, keys, step):
        self.images, self.copied = images_of(self.table), self.oracle.copied()

    def put_back(self, keys, step):
        """Rows become what they were, whatever they are now: gone, early or full."""
        some = {key: image for key, image in self.images.items() if key % 3}
        write_images(self.table, some)
        self.oracle.put_back(some, self.copied)

    def move(self, keys, step):
        """Into another table."""
        images = images_of(self.table)
        self.table = Table("user", self.table.spec, seed=3, num_buckets=self.table.num_buckets)
        write_images(self.table, images)


keys_of_a_call = st.lists(
    st.integers(0, 30) | st.sampled_from([LAST, LAST - 1, 1 << 63]), min_size=1, max_size=25, unique=True
)
often = ["push", "promote", "many", "promote_most"]
rest = ["pull", "delete", "write", "scale", "sweep", "drop", "copy", "put_back", "move"]
actions = st.lists(st.tuples(st.sampled_from(often * 2 + rest), keys_of_a_call), max_size=14)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, num_buckets=st.sampled_from([1, 8]), late=st.sampled_from([NEVER, 3.0, 1.5, 0.5]))
def test_random_calls(actions, num_buckets, late):
    """Rows grow when the test says so, or by their score as well: after some pushes, a few, or at the first."""
    play = Play(num_buckets, late_at(late))
    for step, (action, chosen) in enumerate(actions, 1):
        getattr(play, action)(np.array(chosen, np.uint64), step)
    check(play.table, play.oracle)


def unmix64(h):
    """The key whose mix64 is h."""
    x = h ^ (h >> 31) ^ (h >> 62)
    x = (x * pow(0x94D049BB133111EB, -1, 1 << 64)) & MASK
    x = x ^ (x >> 27) ^ (x >> 54)
    x = (x * pow(0xBF58476D1CE4E5B9, -1, 1 << 64)) & MASK
    return x ^ (x >> 30) ^ (x >> 60)


def test_keys_that_share_home_and_tag():
    """Every search compares many keys, in the last groups of the index and around its end."""
    table, oracle = pair(num_buckets=1)
    hashes = [(0xFFFFFFFF - top << 32) | (low << 24) | 0xABCDE for top in range(2) for low in range(250)]
    keys = np.array([unmix64(h) for h in hashes], np.uint64)
    assert (bucket_of(keys, 2) == 1).all()
    rng = np.random.default_rng(0)
    for step in range(1, 7):
        some, grown, gone = (rng.choice(keys, size, replace=False) for size in (300, 120, 60))
        g = gradients(rng, some, SPEC)
        table.push(some, g, step=step, learning_rates=RATES)
        oracle.push(some, g, step, RATES)
        assert table.promote(grown) == oracle.promote(grown)
        assert table.delete(gone) == oracle.delete(gone)
        check(table, oracle)


def test_what_is_late_stands_behind_the_rest():
    """An early row is the beginning of a full one; without late segments nothing changes."""
    plain = SPEC.model_dump()
    for segment in plain["segments"].values():
        del segment["late"]
    keeping = layout_of(TableSpec.model_validate({**plain, "keep_counts": True}))
    late = layout_of(SPEC)
    assert [k.row_bytes for k in late.kinds] == [8 + 12 + (4 + 8) + (4 + 4 + 8 + 12), 8 + 12 + 4 + 8]
    assert keeping.image_words == late.image_words
    assert late.text().splitlines() == [
        "image 1: 52 bytes, or the first 24 without late segments, little-endian",
        "metadata: last_seen, shows, clicks at 0",
        "'embedding': 3 int8 at 24, adagrad 3 bf16 at 32",
        "'linear': 1 fp32 at 12, ftrl 2 fp32 at 16",
        "'swept': 1 fp32 at 28, adam_sweep 3 fp32 at 40",
    ]
    assert layout_of(TableSpec.model_validate(plain)).text().splitlines()[:2] == [
        "image 1: 40 bytes, little-endian",
        "'embedding': 3 int8 at 0, adagrad 3 bf16 at 12",
    ]


def test_growing_keeps_every_bit_of_the_early_part():
    table, _ = pair(num_buckets=2)
    keys = np.arange(500, dtype=np.uint64)
    table.push(keys, np.ones((500, 5), np.float32), step=1, learning_rates=RATES)
    before, values = images_of(table), table.pull(keys)
    assert {len(image) for image in before.values()} == {24}
    assert table.promote(keys[100:400]) == 300
    assert table.promote(keys[100:400]) == 0
    assert table.promote(np.array([10_000], np.uint64)) == 0
    assert np.array_equal(table.pull(keys), values)
    after = images_of(table)
    assert {key for key, image in after.items() if len(image) == 52} == set(range(100, 400))
    assert all(np.array_equal(after[key][:24], before[key]) for key in before)


def test_early_rows_cost_their_own_bytes():
    spec = {
        "segments": {
            "linear": {"dim": 1, "optimizer": "sgd"},
            "embedding": {"dim": 64, "optimizer": "adagrad", "late": NEVER},
        }
    }
    table = Table("user", TableSpec.model_validate(spec), seed=0, num_buckets=64)
    keys, size = np.arange(200_000, dtype=np.uint64), 25_000
    for part in np.split(keys, len(keys) // size):
        table.push(part, np.ones((size, 65), np.float32), step=1, learning_rates=RATES[:2])
    assert (table.bytes_per_early_row, table.bytes_per_row) == (8 + 12 + 4, 8 + 12 + 4 + 512)
    # An index entry is 5 to 6.5 bytes; the rest is the unused end of runs.
    assert table.memory_bytes / len(keys) < 1.35 * (24 + 6.5)
    assert table.promote(keys[::20]) == 10_000
    assert table.memory_bytes < 1.35 * (30.5 * len(keys) + 536 * 10_000)
    table.clear()
    assert table.memory_bytes < 1 << 20


def limited(limit, spec=SPEC):
    return Table("user", spec.model_copy(update={"memory_limit_bytes": limit}), seed=3, num_buckets=4)


def test_no_room_for_full_rows_changes_nothing():
    table = limited(2 << 20)
    keys = np.arange(30_000, dtype=np.uint64)
    table.push(keys, np.ones((len(keys), 5), np.float32), step=1, learning_rates=RATES)
    before = images_of(table)
    full = np.zeros((len(keys), 52), np.uint8)
    for refused in (
        lambda: table.promote(keys),
        lambda: table.write_values(keys, np.ones((len(keys), 3), np.float32), "embedding"),
        lambda: table.write_images(keys, full),
    ):
        with pytest.raises(MemoryLimitError, match="30000 new rows"):
            refused()
        after = images_of(table)
        assert list(after) == list(before)
        assert all(np.array_equal(after[key], before[key]) for key in before)
    assert table.memory_bytes <= 2 << 20
    assert table.promote(keys[:100]) == 100


def test_deleted_rows_of_both_kinds_give_memory_back():
    table, _ = pair(num_buckets=2)
    keys = np.arange(40_000, dtype=np.uint64)
    for part in np.split(keys, 40):  # a run that came at once goes at once
        table.push(part, np.ones((len(part), 5), np.float32), step=1, learning_rates=RATES)
        table.promote(part[::2])
    most = table.memory_bytes
    kept, values = keys[:2000], table.pull(keys[:2000])
    assert table.delete(keys[2000:]) == 38_000
    assert (table.num_rows, table.num_early) == (2000, 1000)
    assert table.memory_bytes < 0.4 * most
    assert np.array_equal(table.pull(kept), values)
    table.push(keys, np.ones((len(keys), 5), np.float32), step=2, learning_rates=RATES)
    assert (table.num_rows, table.num_early) == (40_000, 39_000)


def test_images_of_neither_size_are_refused():
    table, _ = pair()
    with pytest.raises(RequestError, match=r"this layout has uint8 \[n, 52 or 24\]"):
        table.write_images(np.zeros(1, np.uint64), np.zeros((1, 32), np.uint8))


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ({"linear": 1.0, "embedding": 1.0}, "every segment is late"),
        ({"embedding": 1.0, "other": 2.0}, "late is embedding: 1.0, other: 2.0; a row gets all"),
        ({"embedding": 0.0}, "greater than 0"),
    ],
)
def test_specs_that_make_no_sense(late, message):
    segments = {name: {"dim": 1, "late": late.get(name)} for name in ("linear", "embedding", "other")}
    if len(late) == 2 and "other" not in late:
        del segments["other"]
    with pytest.raises(ValidationError, match=message):
        TableSpec.model_validate({"segments": segments})
    assert SPEC.late == NEVER
    assert SPEC.keeps_counts


def test_rows_that_reach_the_score_at_once_are_as_if_nothing_were_late():
    table, oracle, rng = (
        Table("user", late_at(0.5), seed=3, num_buckets=4),
        Oracle("user", SPEC, 3),
        np.random.default_rng(1),
    )
    for step in range(1, 9):
        keys = rng.choice(400, 200, replace=False).astype(np.uint64)
        g = gradients(rng, keys, SPEC)
        assert table.push(keys, g, step=step, learning_rates=RATES).created == oracle.push(keys, g, step, RATES)
        assert sum(table.sweep(b, step=step, learning_rates=RATES) for b in range(4)) == len(oracle.rows)
        oracle.sweep(step, RATES)
        assert table.num_early == 0
        same(table, oracle)


def test_rows_that_find_no_room_to_grow_are_pushed_as_early_ones():
    table, never = limited(2 << 20, late_at(1.0)), limited(2 << 20, late_at(NEVER))
    keys, rng = np.arange(30_000, dtype=np.uint64), np.random.default_rng(2)
    for step in (1, 2):  # half a point each
        g = gradients(rng, keys, SPEC)
        for each in (table, never):
            assert each.push(keys, g, step=step, learning_rates=RATES).applied == len(keys)
    assert table.num_early == table.turned_away == len(keys)
    assert table.memory_bytes <= 2 << 20
    before, expected = images_of(table), images_of(never)
    assert list(before) == list(expected)
    assert all(np.array_equal(before[key], expected[key]) for key in before)
    table.push(keys[:100], g[:100], step=3, learning_rates=RATES)
    assert (table.num_early, table.turned_away) == (len(keys) - 100, len(keys))


def test_a_row_gets_its_late_segments_at_the_push_that_brings_its_score():
    """That push's gradient of them is applied, and so it is where a new row has the score at once."""
    spec = TableSpec.model_validate(
        {
            "segments": {
                "linear": {"dim": 1, "optimizer": {"name": "sgd", "learning_rate": 1}},
                "embedding": {"dim": 2, "late": 2.5, "optimizer": {"name": "sgd", "learning_rate": 1}},
            },
            "score": {"show": 0.5, "click": 2, "decay": 0.5},
        }
    )
    table, keys, day = Table("t", spec, seed=0, num_buckets=4), np.arange(300, dtype=np.uint64), 86_400
    ones, rates = np.ones((300, 3), np.float32), np.ones(2, np.float32)

    def push(some, shows, clicks, at, step=1):
        counts = np.tile(np.array([shows, clicks], np.float32), (len(some), 1))
        table.push(some, ones[: len(some)], step=step, learning_rates=rates, seen=Seen(at, counts))

    push(keys, 2, 0, day)  # 1.0
    assert table.num_early == 300
    push(keys[:100], 2, 1, day)  # 0.5 * 3 + 2 = 3.5
    assert table.num_early == 200
    np.testing.assert_array_equal(table.pull(keys[:100]), np.tile(np.array([-2, -1, -1], np.float32), (100, 1)))
    push(keys[:100], 1, 0, day)
    np.testing.assert_array_equal(table.pull(keys[:100]), np.tile(np.array([-3, -2, -2], np.float32), (100, 1)))
    push(keys[100:200], 3, 0, 2 * day)  # 1.0 halved, and 1.5
    assert table.num_early == 200
    push(keys[200:], 3, 0, day)  # 1.0 and 1.5
    assert table.num_early == 100
    new = keys + np.uint64(1000)
    push(new, 9, 0, day)
    assert (table.num_early, table.num_rows) == (100, 600)
    np.testing.assert_array_equal(table.pull(new), np.tile(np.array([-1, -1, -1], np.float32), (300, 1)))
