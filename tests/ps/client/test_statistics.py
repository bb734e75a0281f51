"""Statistics of slots on every transport."""

import numpy as np

import ps
from tests.ps.client.conftest import fresh_keys


def test_slot_statistics(client):
    keys, others = fresh_keys(300), fresh_keys(20)
    slots = [int(each[0] >> np.uint64(52)) for each in (keys, others)]
    initial = client.pull("user", keys)
    gradients = np.zeros((300, 4), np.float32)
    gradients[:120, 1:] = 1
    client.push("user", keys, gradients, step=1, learning_rate=1.0).wait()
    client.push("user", others, np.zeros((20, 4), np.float32), step=1).wait()
    found = client.get("user", ps.SlotStatistics())
    size = client.get("user", ps.Size())
    rows = client.pull("user", keys).astype(np.float64)
    norms = np.linalg.norm(rows[:, 1:], axis=1)
    mine, embedding, linear = found[slots[0]], *(found[slots[0]].segments[name] for name in ("embedding", "linear"))
    assert (mine.rows, mine.share, mine.num_bytes) == (300, 300 / size, 300 * 24)
    assert (embedding.coverage, embedding.share_zero) == (120 / 300, 0)
    assert (linear.coverage, linear.share_zero, linear.norm_max) == (0, 1, 0)
    np.testing.assert_allclose([embedding.norm_mean, embedding.norm_max], [norms.mean(), norms.max()], rtol=1e-12)
    assert (rows[120:] == initial[120:]).all()
    assert found[slots[1]].rows == 20
    assert sum(each.rows for each in found.values()) == size
