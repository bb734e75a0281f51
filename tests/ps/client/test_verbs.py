"""pull, push, update, get, delete, prepare, save and restore, on every transport."""

import numpy as np
import pytest

import ps
from ps.mapping import Restored
from tests.ps.client.conftest import fresh_keys


def gradients_for(keys, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(len(keys), width)).astype(np.float32)


def test_pull_of_missing_rows_gives_initial_values_and_creates_none(client):
    keys = fresh_keys(50)
    rows = client.pull("user", keys)
    assert rows.dtype == np.float32
    assert rows.shape == (50, 4)
    assert (rows[:, 0] == 0).all()
    assert 0 < np.abs(rows[:, 1:]).max() <= 0.1
    assert client.get("user", ps.Size(), keys) == 0


def test_raw_keys_may_repeat_and_gradients_of_duplicates_are_summed(client):
    keys = fresh_keys(40)
    raw = keys[np.random.default_rng(1).integers(0, 40, 200)]
    before = client.pull("user", raw)
    gradients = gradients_for(raw)
    counts = client.push("user", raw, gradients, step=1, learning_rate=0.5).wait()
    used = np.unique(raw)
    assert (counts.applied, counts.created) == (len(used), len(used))
    expected = {int(key): before[raw == key][0] - np.float32(0.5) * gradients[raw == key].sum(axis=0) for key in used}
    np.testing.assert_allclose(client.pull("user", raw), [expected[int(key)] for key in raw], rtol=2e-6, atol=1e-6)


def test_learning_rates_by_segment_and_their_defaults(client):
    keys = fresh_keys(5)
    before = client.pull("user", keys)
    ones = np.ones((5, 4), np.float32)
    client.push("user", keys, ones, step=1, learning_rate={"linear": 2.0}).wait()
    change = before - client.pull("user", keys)
    np.testing.assert_allclose(change, np.tile(np.array([2.0, 0.01, 0.01, 0.01]), (5, 1)), atol=1e-6)


def test_a_batch_of_tables_is_one_message_a_shard(cluster, client):
    user, item = fresh_keys(30), fresh_keys(20)
    lookup = client.prepare({"user": user, "item": np.concatenate([item, item])})
    assert len(lookup.keys["item"]) == 20
    np.testing.assert_array_equal(lookup.keys["item"][lookup.inverse["item"]], np.concatenate([item, item]))
    rows = client.start_pull(lookup).wait()
    assert {table: found.shape for table, found in rows.items()} == {"user": (30, 4), "item": (20, 2)}
    gradients = {table: np.ones_like(found) for table, found in rows.items()}
    rates = {"user": {"embedding": 1.0}, "item": {"embedding": 0.25}}
    counts = client.start_push(lookup, gradients, step=3, learning_rates=rates).wait()
    assert {table: each.applied for table, each in counts.items()} == {"user": 30, "item": 20}
    after = client.start_pull(lookup).wait()
    np.testing.assert_allclose(rows["user"][:, 1:] - after["user"][:, 1:], 1.0, atol=1e-6)
    np.testing.assert_allclose(after["item"], -0.25, rtol=1e-5)  # Adam's first step is the learning rate
    np.testing.assert_array_equal(client.pull("item", item), after["item"][lookup.inverse["item"][:20]])


def test_tables_without_gradients_are_left_out(client):
    user, item = fresh_keys(3), fresh_keys(3)
    lookup = client.prepare({"user": user, "item": item})
    counts = client.start_push(lookup, {"item": np.ones((3, 2), np.float32)}, step=1).wait()
    assert list(counts) == ["item"]
    assert client.get("user", ps.Size(), user) == 0


def test_no_keys_at_all(client):
    assert client.pull("user", np.empty(0, np.uint64)).shape == (0, 4)
    assert client.pull("user", []).shape == (0, 4)
    assert client.push("user", [], np.empty((0, 4), np.float32), step=1).wait() == ps.Counts()
    assert client.get("user", ps.Size(), []) == 0


def test_psfuncs_over_keys(client):
    keys = fresh_keys(100)
    client.push("user", keys, gradients_for(keys), step=1, learning_rate=1.0).wait()
    rows = client.pull("user", keys).astype(np.float64)
    embedding = rows[:, 1:]
    assert client.get("user", ps.Size(), keys) == 100
    assert client.get("user", ps.Sum(), keys) == pytest.approx(rows.sum(), rel=1e-12)
    assert client.get("user", ps.Nrm2(segment="embedding"), keys) == pytest.approx(np.linalg.norm(embedding), rel=1e-12)
    assert client.get("user", ps.Min(), keys) == rows.min()
    assert client.get("user", ps.Max(segment="embedding"), keys) == embedding.max()
    assert client.get("user", ps.Nnz(segment="linear"), keys) == np.count_nonzero(rows[:, 0])
    counts = client.update("user", ps.Scale(0.5, segment="embedding"), keys[:60])
    assert counts.applied == 60
    rows[:60, 1:] *= 0.5
    np.testing.assert_array_equal(client.pull("user", keys), rows.astype(np.float32))


def test_psfuncs_over_the_whole_table(client):
    keys = fresh_keys(30)
    client.push("item", keys, np.ones((30, 2), np.float32), step=1).wait()
    size = client.get("item", ps.Size())
    assert size >= 30
    assert client.update("item", ps.Fill(2.0)).applied == size
    assert client.get("item", ps.Sum()) == 4.0 * size
    assert client.get("item", ps.Min()) == client.get("item", ps.Max()) == 2.0


def test_delete(client):
    keys = fresh_keys(10)
    first = client.pull("user", keys)
    client.push("user", keys[:6], gradients_for(keys[:6]), step=1).wait()
    assert client.delete("user", keys).applied == 6
    np.testing.assert_array_equal(client.pull("user", keys), first)


def test_clear_removes_every_row_of_one_table(client):
    keys = fresh_keys(20)
    first = client.pull("item", keys)
    for table in ("item", "user"):
        client.push(table, keys, gradients_for(keys, client.spec.tables[table].width), step=1).wait()
    size, others = client.get("item", ps.Size()), client.get("user", ps.Size())
    assert client.clear("item").applied == size >= 20
    assert client.get("item", ps.Size()) == 0
    assert client.get("user", ps.Size()) == others
    np.testing.assert_array_equal(client.pull("item", keys), first)
    assert client.push("item", keys, np.ones((20, 2), np.float32), step=2).wait().created == 20


def test_tables_that_sweep_are_swept_at_every_shard_once_a_push(client):
    keys = fresh_keys(40)
    client.push("swept", keys, np.ones((40, 2), np.float32), step=1, learning_rate=0.5).wait()
    np.testing.assert_allclose(client.pull("swept", keys), -0.5, rtol=1e-5)
    # One key is pushed, and by momentum all rows move, wherever they live.
    client.push("swept", keys[:1], np.zeros((1, 2), np.float32), step=2, learning_rate=0.5).wait()
    after = client.pull("swept", keys)
    assert (after < -0.7).all()
    assert np.ptp(after) == 0


@pytest.mark.parametrize("wire", ["fp16", "bf16"])
def test_narrow_wires_round_both_ways_alike(connect, wire):
    exact, narrow = connect(), connect(wire=wire)
    keys = fresh_keys(200)
    gradients = gradients_for(keys)
    narrow.push("user", keys, gradients, step=1, learning_rate=1.0).wait()
    rows, rounded = exact.pull("user", keys), narrow.pull("user", keys)
    bound = {"fp16": 2.0**-11, "bf16": 2.0**-8}[wire]
    assert 0 < np.abs(rounded - rows).max() <= bound * np.abs(rows).max()
    start = exact.pull("user", keys) + gradients
    assert np.abs(start - rows).max() > 0
    assert narrow.stats()["bytes_sent"] < 200 * (8 + 2 * 4) + 200 * 8 + 2000


def test_save_and_restore(client, tmp_path):
    keys = fresh_keys(60)
    client.push("user", keys, gradients_for(keys), step=1).wait()
    saved = client.pull("user", keys)
    total = sum(client.get(table, ps.Size()) for table in client.spec.tables)
    client.save(str(tmp_path))
    epoch = client.routing.epoch
    client.push("user", keys, gradients_for(keys, seed=2), step=2)
    client.push("user", fresh_keys(5), gradients_for(range(5)), step=3)
    assert client.restore(str(tmp_path)) == Restored(total, ())
    assert client.routing.epoch > epoch
    np.testing.assert_array_equal(client.pull("user", keys), saved)
    client.push("user", keys, np.ones((60, 4), np.float32), step=2, learning_rate=1.0).wait()
    np.testing.assert_allclose(saved - client.pull("user", keys), 1.0, atol=1e-6)


def test_an_older_client_follows_to_the_new_epoch(connect, tmp_path):
    other, client = connect(), connect()
    keys = fresh_keys(8)
    client.push("user", keys, gradients_for(keys), step=1).wait()
    client.save(str(tmp_path))
    client.restore(str(tmp_path))
    assert other.routing.epoch < client.routing.epoch
    np.testing.assert_array_equal(other.pull("user", keys), client.pull("user", keys))
    assert other.routing.epoch == client.routing.epoch
    assert other.push("user", keys, gradients_for(keys), step=2).wait().applied == 8
    assert other.get("user", ps.Size(), keys) == 8


def test_stats_count_rounds_and_bytes(client):
    keys = fresh_keys(1000)
    client.pull("user", keys)
    client.push("user", keys, gradients_for(keys), step=1).wait()
    stats = client.stats()
    assert (stats["pulls"], stats["pushes"], stats["retries"]) == (1, 1, 0)
    assert 1000 * (8 + 8 + 16) <= stats["bytes_sent"] <= 1000 * (8 + 8 + 16) + 1000
    assert 1000 * 16 <= stats["bytes_received"] <= 1000 * 16 + 1000


def test_a_save_in_the_background_is_the_instant_it_began(client, tmp_path):
    keys = fresh_keys(3000)
    client.push("user", keys, gradients_for(keys), step=1).wait()
    saved = client.pull("user", keys)
    saving = client.start_save(str(tmp_path))
    for step in range(2, 12):
        client.push("user", keys, gradients_for(keys, seed=step), step=step).wait()
    client.delete("user", keys[:100])
    assert saving.wait().rows["user"] >= 3000
    assert saving.is_done
    client.restore(str(tmp_path))
    np.testing.assert_array_equal(client.pull("user", keys), saved)


def test_a_save_that_fails_raises_where_it_is_waited_for(connect, tmp_path):
    (tmp_path / "file").write_text("")
    client = connect()
    with pytest.raises(ps.CheckpointError, match="cannot write"):
        client.start_save(str(tmp_path / "file")).wait()
    client.save(str(tmp_path))  # it was told; the next one is another
    client.close()
