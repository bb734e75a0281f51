"""Late segments through the client: psfuncs, and checkpoints of rows of both sizes, on other numbers of shards."""

import numpy as np
import pytest

import ps
from ps import chain
from tests.ps.driving import SGD
from tests.ps.storage.late_oracle import SPEC

CLUSTER = ps.ClusterSpec(tables={"user": SPEC}, num_buckets=16)
KEYS = np.arange(1, 2001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
FULL = KEYS[::3]
VECTOR = SPEC.columns()["embedding"]


def trained(client):
    rng = np.random.default_rng(1)
    client.push("user", KEYS, rng.normal(size=(len(KEYS), 5)).astype(np.float32), step=1).wait()
    client.update("user", ps.Map("add", 0.5, segment="embedding"), FULL)
    client.push("user", KEYS, rng.normal(size=(len(KEYS), 5)).astype(np.float32), step=2).wait()
    return client.pull("user", KEYS)


def test_psfuncs_see_the_segment_where_it_is():
    with ps.local(CLUSTER) as client:
        fresh = client.pull("user", KEYS)
        rows = trained(client)
        has = np.isin(KEYS, FULL)
        assert np.array_equal(rows[~has, VECTOR], fresh[~has, VECTOR])
        assert not np.isclose(rows[has, VECTOR], fresh[has, VECTOR]).any()
        assert client.get("user", ps.Size()) == len(KEYS)
        total = client.get("user", ps.Sum(segment="embedding"))
        np.testing.assert_allclose(total, rows[has, VECTOR].sum(dtype=np.float64), rtol=1e-12)
        assert client.update("user", ps.Fill(1.0, segment="embedding")).applied == len(FULL)
        assert client.update("user", ps.Fill(1.0)).applied == len(KEYS)
        rows = client.pull("user", KEYS)
        assert (rows[has] == 1).all()
        assert (rows[~has, SPEC.columns()["linear"]] == 1).all()
        assert np.array_equal(rows[~has, VECTOR], fresh[~has, VECTOR])


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_keeps_both_sizes(tmp_path, shards):
    with ps.local(CLUSTER, shards=2) as client:
        rows = trained(client)
        client.save(tmp_path)
    summary = chain.verify(tmp_path)
    assert summary.rows == {"user": len(KEYS)}
    for key, full in ((FULL[5], True), (KEYS[1], False)):
        found = chain.find_row(tmp_path, "user", int(key))
        assert len(found.image) == (52 if full else 24)
        values = np.concatenate([found.values[name] for name in SPEC.segments])
        assert np.array_equal(values, rows[key == KEYS][0])
    with ps.local(CLUSTER, shards=shards) as client:
        client.update("user", ps.Fill(3.0, segment="swept"), KEYS[::2])  # full rows that were early, and the reverse
        client.restore(tmp_path)
        assert np.array_equal(client.pull("user", KEYS), rows)
        assert client.update("user", ps.Scale(1.0, segment="swept")).applied == len(FULL)


def test_a_table_of_another_dim_refuses_the_checkpoint(tmp_path):
    with ps.local(CLUSTER) as client:
        trained(client)
        client.save(tmp_path)
    other = ps.ClusterSpec.model_validate({"tables": {"user": SGD}, "num_buckets": 16})
    with (
        ps.local(other) as client,
        pytest.raises(ps.RequestError, match="has dim 2, the checkpoint 3; map it"),
    ):
        client.restore(tmp_path)
