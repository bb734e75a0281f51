"""Rows that a replica puts where a batch wants them: those that a pull gives, each in its place, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ps.served
from ps.replica import Replica
from ps.serving_rows import serving_spec
from ps.storage.spreading import Spread
from tests.ps.publishing import TRAINED, Publisher, keys_from

UNTOUCHED = -77.0


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """In int8 with half of the keys, whose initial values are not those of its own codec; in fp32 without rows."""
    publisher = Publisher()
    publisher.set("user", keys_from(1, 60))
    known = publisher.replica()
    known.load(publisher.save(tmp_path_factory.mktemp("rows")), {0: 1})
    return {"int8": known, "fp32": Replica(TRAINED, serving_spec(TRAINED, "fp32"))}


@st.composite
def batches(draw):
    """Which fields are shared, how many candidates before, in, and behind the part that is written, and keys."""
    steps = draw(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4))
    before, number, behind = draw(st.integers(0, 2)), draw(st.integers(1, 5)), draw(st.integers(0, 2))
    count = sum(number if step else 1 for step in steps)
    keys = draw(st.lists(st.integers(1, 120), min_size=count, max_size=count))
    return (
        steps,
        before,
        number,
        behind,
        keys_from(1, 121)[np.array(keys) - 1],
        draw(st.permutations(range(len(steps)))),
    )


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize("piece", [2, 16_384])
@given(batch=batches())
def test_rows_lie_where_they_are_wanted(replicas, codec, piece, batch):
    steps, before, number, behind, keys, fields = batch
    replica = replicas[codec]
    columns, lines = TRAINED.tables["user"].columns(), before + number + behind
    runs, begin = [], 0
    for step, field in zip(steps, fields, strict=True):
        count = number if step else 1
        runs.append((begin, count, field, step))
        begin += count
    segments, offsets, sizes = [], [], []
    for place, (_, own) in enumerate(columns.items()):
        dim = own.stop - own.start
        segments.append((sum(sizes), dim * len(steps), own.start, dim, place))
        offsets.append([dim * field for field in range(len(steps))])
        sizes.append(lines * dim * len(steps))
    out = np.full(sum(sizes), UNTOUCHED, np.float32)
    spread = Spread(np.array(runs), np.array(segments), np.array(offsets), before, number, out)

    expected, unknown = replica.pull("user", keys)
    whole, ps.served.PULL_KEYS = ps.served.PULL_KEYS, piece
    try:
        assert replica.spread("user", keys, spread) == unknown
    finally:
        ps.served.PULL_KEYS = whole
    again = np.full_like(out, UNTOUCHED)
    Spread(spread.runs, spread.segments, spread.offsets, before, number, again).put(expected)
    for found in (out, again):
        parts = np.split(found, np.cumsum(sizes)[:-1])
        for own, part in zip(columns.values(), parts, strict=True):
            lying = part.reshape(lines, len(steps), -1)
            assert (lying[:before] == UNTOUCHED).all()
            assert (lying[before + number :] == UNTOUCHED).all()
            for first, _, field, step in runs:
                for candidate in range(number):
                    row = expected[first + step * candidate, own]
                    np.testing.assert_array_equal(lying[before + candidate, field], row)
