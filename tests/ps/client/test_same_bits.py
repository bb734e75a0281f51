"""Same inputs, same bits: one shard or four, in this process or over gRPC, give equal rows after the same pushes."""

import numpy as np
import pytest

import ps
from ps.keys import pack

SEGMENTS = {
    "sgd_fp32": ps.SegmentSpec(dim=3, initializer=ps.Normal(std=0.1), optimizer=ps.SGD(l2=0.01)),
    "adagrad_bf16": ps.SegmentSpec(dim=4, initializer=ps.Uniform(scale=0.1), optimizer=ps.AdaGrad(), codec="bf16"),
    "rowwise_fp16": ps.SegmentSpec(
        dim=5, initializer=ps.Uniform(scale=0.1), optimizer=ps.RowWiseAdaGrad(), codec="fp16"
    ),
    "adam_bf16": ps.SegmentSpec(dim=2, initializer=ps.Normal(std=0.1), optimizer=ps.Adam(l2=0.001), codec="bf16"),
    "adagrad_int8": ps.SegmentSpec(
        dim=6, initializer=ps.Normal(std=0.1), optimizer=ps.AdaGrad(), codec="int8", state_codec="bf16"
    ),
    "ftrl_fp32": ps.SegmentSpec(dim=1, optimizer=ps.FTRL(l1=0.01)),
}
SPEC = ps.ClusterSpec(
    tables={
        "mixed": ps.TableSpec(segments=SEGMENTS),
        "swept": ps.TableSpec(segments={"w": ps.SegmentSpec(dim=2, optimizer=ps.Adam(sweep=True, l2=0.01))}),
    },
    num_buckets=256,
    seed=11,
)
NUM_STEPS, NUM_KEYS = 12, 400


def train(client):
    """The same pushes, whatever the cluster; returns all rows and a few aggregates."""
    generator = np.random.default_rng(17)
    everything = {table: pack(5, np.arange(NUM_KEYS, dtype=np.uint64)) for table in SPEC.tables}
    for step in range(1, NUM_STEPS + 1):
        raw = {table: generator.choice(keys, 300) for table, keys in everything.items()}
        lookup = client.prepare(raw)
        rows = client.start_pull(lookup).wait()
        gradients = {}
        for table, keys in raw.items():
            given = generator.normal(size=(len(keys), SPEC.tables[table].width)).astype(np.float32)
            sums = np.zeros_like(rows[table])
            np.add.at(sums, lookup.inverse[table], given)
            gradients[table] = sums + np.float32(0.1) * rows[table]
        client.start_push(lookup, gradients, step=step)
    client.update("mixed", ps.Scale(0.75, segment="adagrad_bf16"))
    rows = {table: client.pull(table, keys) for table, keys in everything.items()}
    return rows, [client.get("mixed", psfunc) for psfunc in (ps.Sum(), ps.Nrm2(), ps.Max(), ps.Size())]


@pytest.fixture(scope="module")
def one_shard():
    with ps.local(SPEC) as client:
        return train(client)


def check_equal(found, expected):
    for table in SPEC.tables:
        assert found[0][table].tobytes() == expected[0][table].tobytes(), table
    assert found[1] == expected[1]


def test_the_reference_moves_every_segment(one_shard):
    rows = one_shard[0]["mixed"]
    with ps.local(SPEC) as client:
        start = client.pull("mixed", pack(5, np.arange(NUM_KEYS, dtype=np.uint64)))
    for columns in SPEC.tables["mixed"].columns().values():
        assert (rows[:, columns] != start[:, columns]).mean() > 0.9


@pytest.mark.parametrize(("placement", "shards"), [("in-process", 4), ("process", 1), ("process", 4)])
def test_placements_and_numbers_of_shards_give_the_same_bits(one_shard, placement, shards):
    with ps.local(SPEC, shards=shards, placement=placement) as client:
        check_equal(train(client), one_shard)


def test_a_checkpoint_of_four_shards_restored_on_one_goes_on_with_the_same_bits(one_shard, tmp_path):
    with ps.local(SPEC, shards=4) as client:
        train(client)
        client.save(str(tmp_path))
        expected = train(client)
    with ps.local(SPEC) as client:
        client.restore(str(tmp_path))
        check_equal(train(client), expected)
