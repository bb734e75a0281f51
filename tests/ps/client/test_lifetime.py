"""Admission, counts and eviction through a client, on every transport; what keys gathered is in a checkpoint."""

import numpy as np
import pytest

import ps
from ps.errors import MemoryLimitError, RequestError
from ps.keys import pack
from tests.ps.client.conftest import PLACEMENTS

DAY = 86_400
f32 = np.float32


def table(**options):
    return ps.TableSpec.model_validate(
        {"segments": {"e": {"dim": 2, "optimizer": {"name": "sgd", "learning_rate": 1}}}, **options}
    )


SPEC = ps.ClusterSpec(
    tables={
        "counted": table(admission={"name": "count", "threshold": 3}),
        "aged": table(eviction={"max_age_seconds": DAY, "min_score": 0.5}),
        "small": table(memory_limit_bytes=2 << 20, eviction={"when_full": "oldest"}),
        "full": table(memory_limit_bytes=1 << 20),
        "plain": table(),
    },
    num_buckets=64,
    seed=7,
)


@pytest.fixture(scope="module", params=PLACEMENTS, ids=lambda param: f"{param[0]}-{param[1]}")
def cluster(request):
    placement, shards = request.param
    with ps.LocalCluster(SPEC, shards=shards, placement=placement) as running:
        yield running


@pytest.fixture
def client(cluster):
    with cluster.connect() as client:
        yield client
        for name in SPEC.tables:
            client.clear(name)


def ones(count):
    return np.ones((count, 2), f32)


def stored(client, name):
    return sum(shard["tables"][name]["rows"] for shard in client.describe())


def test_duplicates_of_a_batch_are_shows(client):
    keys = pack(1, np.arange(100, dtype=np.uint64))
    thrice = np.concatenate([keys[:30]] * 3 + [keys[30:]])
    counts = client.push("counted", thrice, ones(len(thrice)), step=1).wait()
    assert (counts.created, counts.applied, counts.refused) == (30, 30, 70)
    np.testing.assert_array_equal(client.pull("counted", keys[:30]), np.full((30, 2), -3, f32))
    assert (client.pull("counted", keys[30:]) == 0).all()
    client.push("counted", keys[30:60], ones(30), step=2, shows=np.full(30, 2, f32)).wait()
    assert stored(client, "counted") == 60
    assert client.stats()["keys_refused"] == 70


def test_what_keys_gathered_is_in_a_checkpoint(client, tmp_path):
    keys = pack(2, np.arange(500, dtype=np.uint64))
    for step in (1, 2):
        client.push("counted", keys, ones(500), step=step).wait()
    client.save(str(tmp_path))
    client.push("counted", keys, ones(500), step=3).wait()
    assert stored(client, "counted") == 500
    client.restore(str(tmp_path))
    assert stored(client, "counted") == 0
    assert client.push("counted", keys, ones(500), step=3).wait().created == 500


def test_rows_that_were_not_pushed_for_a_day_go(client):
    keys = pack(3, np.arange(1000, dtype=np.uint64))
    clicks = np.ones(1000, f32)
    client.push("aged", keys, ones(1000), step=1, clicks=clicks, event_time=0).wait()
    client.push("aged", keys[:300], ones(300), step=2, clicks=clicks[:300], event_time=DAY).wait()
    assert client.evict("aged", event_time=DAY).applied == 0
    assert client.evict("aged", event_time=DAY + 1).applied == 700
    assert stored(client, "aged") == 300
    assert (client.pull("aged", keys[300:]) == 0).all()
    assert client.evict("aged", event_time=100 * DAY).applied == 300
    client.update("aged", ps.Fill(1.0), keys[:10], event_time=100 * DAY)
    assert client.evict("aged", event_time=100 * DAY).applied == 10  # young, but never shown


def test_a_lookup_counts_its_batch(client):
    keys = pack(4, np.arange(40, dtype=np.uint64))
    lookup = client.prepare({"aged": np.concatenate([keys, keys[:20]])})
    gradients = {"aged": np.zeros((40, 2), f32)}
    clicked = np.concatenate([np.zeros(40, f32), np.ones(20, f32)])
    client.start_push(lookup, gradients, step=1, clicks={"aged": clicked}, event_time=5).wait()
    assert client.evict("aged", event_time=5).applied == 20  # a show alone is worth 0.1, a click and a show 1.1
    assert stored(client, "aged") == 20


def test_a_full_table_makes_room_while_pushes_come(client):
    rng = np.random.default_rng(3)
    for day in range(1, 40):
        keys = pack(5, rng.integers(0, 1 << 40, 8000).astype(np.uint64))
        client.push("small", keys, ones(8000), step=day, event_time=day * DAY).wait()
        assert (client.pull("small", keys) == -1).any()
    shards = client.describe()
    assert all(shard["tables"]["small"]["memory_bytes"] <= 2 << 20 for shard in shards)
    assert sum(shard["tables"]["small"]["evicted"] for shard in shards) > 0


def test_a_full_table_without_eviction_is_an_error(client):
    with pytest.raises(MemoryLimitError, match="memory_limit_bytes"):
        for step in range(100):
            keys = pack(6, np.arange(2000 * step, 2000 * (step + 1), dtype=np.uint64))
            client.push("full", keys, ones(2000), step=step + 1).wait()


def test_mistakes(client):
    keys = np.arange(3, dtype=np.uint64)
    with pytest.raises(RequestError, match="neither keeps nor counts"):
        client.push("plain", keys, ones(3), step=1, clicks=np.ones(3, f32))
    with pytest.raises(RequestError, match=r"shows of table 'aged' are float64 \[3\]"):
        client.push("aged", keys, ones(3), step=1, shows=np.ones(3))
    with pytest.raises(RequestError, match="not negative"):
        client.push("aged", keys, ones(3), step=1, shows=-np.ones(3, f32))
    with pytest.raises(RequestError, match="event_time"):
        client.push("aged", keys, ones(3), step=1, event_time=-1)
    with pytest.raises(RequestError, match="no `eviction`"):
        client.evict("plain")
    for options, text in [
        ({"eviction": {}}, "needs one of"),
        ({"eviction": {"when_full": "oldest"}}, "memory_limit_bytes"),
        ({"eviction": {"min_norm": 1, "norm_segment": "x"}}, "no segment 'x'"),
        ({"admission": {"name": "count", "threshold": 0}}, "threshold"),
        ({"admission": {"name": "count", "threshold": 2, "slots": {3: 1e9}}}, "slots.3: a threshold is at most 4096"),
    ]:
        with pytest.raises(ValueError, match=text):
            table(**options)
    with pytest.raises(ValueError, match="no keyed field has this name"):
        ps.ClusterSpec(tables={"t": table(admission={"name": "count", "threshold": 2, "slots": {"user": 3}})})
