"""The Ray shell: placement, names, discovery, kills, start-up failures."""

import os
import signal
import socket
import time

import numpy as np
import pytest
import ray

import ps
from ps import actor, session
from ps.memory_limits import thresholds_here
from tests.ps.client.conftest import SPEC, fresh_keys

pytestmark = pytest.mark.cluster
PATIENT = ps.ClientOptions(retry=ps.RetryOptions(unavailable_seconds=40))


def wait_until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def push_ones(client, keys, step=1):
    return client.push("user", keys, np.ones((len(keys), 4), np.float32), step=step)


def test_status_names_every_shard_and_its_rows(cluster):
    with cluster.connect() as client:
        push_ones(client, fresh_keys(100)).wait()
        report = actor.cluster_status(cluster.name)
        assert (report["name"], report["epoch"], report["lost"]) == (cluster.name, client.routing.epoch, [])
        assert [shard["address"] for shard in report["shards"]] == list(client.routing.addresses)
        assert {shard["state"] for shard in report["shards"]} == {"serving"}
        assert sum(shard["tables"]["user"]["rows"] for shard in report["shards"]) == client.get("user", ps.Size())


def test_the_address_of_any_shard_is_enough_for_a_client_outside_of_ray(cluster):
    keys = fresh_keys(10)
    with cluster.connect() as inside:
        push_ones(inside, keys).wait()
        with ps.connect(inside.routing.addresses[1]) as outside:
            assert outside.spec == SPEC
            np.testing.assert_array_equal(outside.pull("user", keys), inside.pull("user", keys))


def test_shards_and_clients_go_on_while_the_coordinator_is_down(cluster):
    keys = fresh_keys(10)
    with cluster.connect() as client:
        epoch = client.routing.epoch
        ray.kill(actor.find_coordinator(cluster.name), no_restart=False)
        assert push_ones(client, keys).wait().applied == 10
        client.pull("user", keys)

        def is_back():
            try:
                report = actor.cluster_status(cluster.name)
            except ps.UnavailableError:
                return False
            return not report["silent"]

        wait_until(is_back)
        report = actor.cluster_status(cluster.name)
        assert (report["epoch"], report["lost"]) == (epoch, [])


def test_a_killed_shard_is_one_clear_error_until_restored(cluster, tmp_path):
    keys = fresh_keys(50)
    with cluster.connect(PATIENT) as client:
        push_ones(client, keys).wait()
        rows = client.pull("user", keys)
        client.save(str(tmp_path))
        addresses = client.routing.addresses
        os.kill(cluster.pids()[1], signal.SIGKILL)
        lost = rf"shard 1 of cluster '{cluster.name}' lost its rows .* restore from a checkpoint"
        with pytest.raises(ps.RowsLostError, match=lost):
            client.pull("user", keys)
        with pytest.raises(ps.RowsLostError, match=lost):
            push_ones(client, keys, step=2).wait()
        with pytest.raises(ps.RowsLostError, match=lost):
            cluster.connect()
        assert actor.cluster_status(cluster.name)["shards"][1]["state"] == "lost its rows"
        client.restore(str(tmp_path))
        assert client.routing.addresses[0] == addresses[0]
        assert client.routing.addresses[1] != addresses[1]
        np.testing.assert_array_equal(client.pull("user", keys), rows)
        assert push_ones(client, keys, step=2).wait().applied == 50
        with cluster.connect() as another:
            assert another.routing.epoch == client.routing.epoch


def test_a_name_is_taken_once(cluster):
    with pytest.raises(ps.RequestError, match=f"cluster '{cluster.name}' runs already"):
        actor.start_cluster(SPEC, 1, cluster.name)


def test_an_unknown_cluster(ray_session):
    for call in (actor.connect_cluster, actor.stop_cluster, actor.cluster_status):
        with pytest.raises(ps.UnavailableError, match="no cluster 'nowhere' runs in this Ray"):
            call("nowhere")


def test_no_room(ray_session):
    started = time.monotonic()
    with pytest.raises(ps.RequestError, match=r"no room for 9 processes of \{'CPU': 0.5\} each; free now: CPU"):
        actor.start_cluster(SPEC, 9, "too-many", start_seconds=3)
    assert time.monotonic() - started < 30
    with pytest.raises(ps.UnavailableError):
        actor.find_coordinator("too-many")


def test_a_cluster_that_is_stopped_leaves_nothing(ray_session):
    spec = ps.ClusterSpec(tables={"item": SPEC.tables["item"]}, num_buckets=64)
    actor.start_cluster(spec, 1, "short", cpus_per_shard=0.25)
    with actor.connect_cluster("short") as client:
        pid = actor.cluster_status("short")["shards"][0]["pid"]
        assert client.pull("item", fresh_keys(3)).shape == (3, 2)
    actor.stop_cluster("short")
    with pytest.raises(ps.UnavailableError, match="no cluster 'short'"):
        actor.cluster_status("short")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    actor.start_cluster(spec, 1, "short", cpus_per_shard=0.25)
    actor.stop_cluster("short")


@pytest.fixture
def no_ray(monkeypatch):
    """As if this process had not joined Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_a_dead_ray_address_is_one_line_at_once(no_ray):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ps.UnavailableError, match=rf"no Ray cluster at 127.0.0.1:{port}: .*ray start --head") as caught:
        session.open_ray(f"127.0.0.1:{port}")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_auto_joins_only_what_ray_start_began(no_ray, monkeypatch, tmp_path):
    """Ray's own "auto" would join any Ray here, such as the private one of another program."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ps.errors.NoClusterError, match="no Ray cluster runs on this machine"):
        session.open_ray("auto")
    (tmp_path / "ray").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    (tmp_path / "ray" / "ray_current_cluster").write_text(address + "\n")
    with pytest.raises(ps.errors.NoClusterError, match=address):
        session.open_ray("auto")


def test_a_ray_address_without_a_port(no_ray):
    with pytest.raises(ps.RequestError, match="Ray address 'somewhere' is not host:port"):
        session.open_ray("somewhere")


def test_memory_limits_above_what_ray_allows_are_refused_here_or_at_the_shard(ray_session, monkeypatch):
    limit = int(0.97 * min(each.num_bytes for each in thresholds_here()))
    segments = SPEC.tables["item"].segments
    spec = ps.ClusterSpec(tables={"large": ps.TableSpec(segments=segments, memory_limit_bytes=limit)})
    with pytest.raises(
        ps.RequestError, match=r"^memory_limit_bytes of table 'large'.*RAY_memory_usage_threshold, 0.95"
    ):
        actor.start_cluster(spec, 1, "large")
    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)  # now it is not known here where the shard will be
    with pytest.raises(ps.RequestError, match=r"^assign: shard 0 at .*RAY_memory_usage_threshold, 0.95"):
        actor.start_cluster(spec, 1, "large")
    assert not actor.cluster_exists("large")
