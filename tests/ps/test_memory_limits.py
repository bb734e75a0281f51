"""Memory limits against the machine's memory, cgroups of both versions, and Ray: from files as they are found there."""

import pytest

import ps
from ps.errors import RequestError
from ps.memory_limits import Threshold, check_limits, shards_beside, thresholds_here
from ps.routing import Routing
from ps.shard import Shard
from ps.wire import weir_pb2 as pb
from ps.work import WorkThread

GIB = 1 << 30
MEMINFO = f"MemTotal:       {64 << 20} kB\nMemFree: 1 kB\n"
V1_NONE = "9223372036854771712\n"


def found(files, *, ray=False, environment=None):
    """{bytes in GiB: what it is}."""
    seen = thresholds_here(ray=ray, read={"/proc/meminfo": MEMINFO, **files}.get, environment=environment or {})
    return {each.num_bytes / GIB: each.what for each in seen}


def test_a_machine_without_cgroups():
    assert found({}) == {64: "the machine's memory"}


def test_cgroup_v2_its_own_and_those_above():
    files = {
        "/proc/self/cgroup": "0::/kubepods/pod7/shard\n",
        "/sys/fs/cgroup/kubepods/pod7/shard/memory.max": "max\n",
        "/sys/fs/cgroup/kubepods/pod7/memory.max": f"{16 * GIB}\n",
        "/sys/fs/cgroup/kubepods/memory.max": f"{48 * GIB}\n",
    }
    assert found(files) == {
        64: "the machine's memory",
        16: "the limit of its cgroup (/sys/fs/cgroup/kubepods/pod7/memory.max)",
        48: "the limit of its cgroup (/sys/fs/cgroup/kubepods/memory.max)",
    }


def test_cgroup_v1_in_a_container_that_sees_its_own_at_the_top():
    files = {
        "/proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/docker/ab\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
    }
    assert found(files)[8] == "the limit of its cgroup (/sys/fs/cgroup/memory/memory.limit_in_bytes)"


def test_cgroups_without_limits_and_a_hybrid_hierarchy():
    files = {
        "/proc/self/cgroup": "4:memory:/user\n0::/user\n",
        "/sys/fs/cgroup/memory/user/memory.limit_in_bytes": V1_NONE,
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NONE,
    }
    assert found(files) == {64: "the machine's memory"}


def test_ray_watches_the_node_or_its_cgroup():
    limited = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": str(40 * GIB)}
    assert found(limited, ray=True)[38] == "Ray's RAY_memory_usage_threshold, 0.95 of this node's 40 GiB"
    half = {"RAY_memory_usage_threshold": "0.5"}
    assert found({}, ray=True, environment=half)[32] == "Ray's RAY_memory_usage_threshold, 0.5 of this node's 64 GiB"
    assert found({}, ray=True, environment={"RAY_memory_monitor_refresh_ms": "0"}) == {64: "the machine's memory"}
    assert found({}, environment=half) == {64: "the machine's memory"}


def test_here_there_is_a_machine():
    assert thresholds_here()[0].what == "the machine's memory"
    assert len(thresholds_here(ray=True, environment={})) == len(thresholds_here()) + 1


def spec(**limits):
    segments = {"e": {"dim": 2, "optimizer": "sgd"}}
    return ps.ClusterSpec.model_validate(
        {"tables": {name: {"segments": segments, "memory_limit_bytes": limit} for name, limit in limits.items()}}
    )


def test_all_tables_of_all_shards_of_a_node_count():
    thresholds = [Threshold(64 * GIB, "the machine's memory"), Threshold(38 * GIB, "Ray's")]
    check_limits(spec(user="19GiB"), 2, thresholds)
    check_limits(spec(user=None, item=None), 1000, thresholds)
    check_limits(spec(user="100GiB"), 1, [])
    with pytest.raises(RequestError) as caught:
        check_limits(spec(user="12GiB", item=8 * GIB, free=None), 2, thresholds)
    assert str(caught.value) == (
        "memory_limit_bytes of table 'user' 12 GiB, 'item' 8 GiB: 2 shards on this node may take 40 GiB, above 38 GiB, "
        "Ray's; a shard's limits may add up to 19456MiB here: lower them, or put fewer shards on a node"
    )
    check_limits(spec(user="19456MiB"), 2, thresholds)  # the remedy helps


def test_shards_of_a_node_are_those_of_its_host():
    addresses = ("10.0.0.1:5", "10.0.0.2:5", "10.0.0.1:6", "[::1]:7", "[::1]:8")
    assert [shards_beside(addresses, shard) for shard in range(5)] == [2, 1, 2, 2, 2]


def test_standbys_of_a_node_count_too():
    here = [f"10.0.0.1:{port}" for port in range(3)]
    assert shards_beside(here, 0, "10.0.0.1:7") == 6
    spread = ("10.0.0.1:5", "10.0.0.2:5", "10.0.0.1:6", "10.0.0.2:6")
    assert shards_beside(spread, 0, "10.0.0.2:7") == 4  # two of its own kind, and two standbys of the other node's
    assert shards_beside(("10.0.0.1:5", "10.0.0.1:6"), 0, "10.0.0.2:5") == 2  # all standbys are on the other node
    assert shards_beside(("10.0.0.1:5",), 0, "10.0.0.2:5") == 1


def test_a_cluster_of_pairs_is_refused_by_what_both_need(monkeypatch, tmp_path):
    monkeypatch.setattr("ps.placement.thresholds_here", lambda: [Threshold(39 * GIB, "the machine's memory")])
    durability = ps.Durability(mode="replicated", directory=str(tmp_path))
    with pytest.raises(RequestError, match="4 shards and standbys on this node may take 40 GiB, above 39 GiB"):
        ps.LocalCluster(spec(user="10GiB").model_copy(update={"durability": durability}), shards=2, placement="process")


def assign(thread, shards, *, shard=0):
    addresses = [f"10.0.0.{number // 2}:1" for number in range(shards)]
    routing = Routing.initial(256, addresses).to_message()
    body = spec(user="10GiB").model_dump_json().encode()
    return thread.assign(pb.AssignRequest(cluster_spec=body, routing=routing, shard=shard))


def test_a_shard_refuses_its_tables_by_the_shards_of_its_node():
    thread = WorkThread(Shard(), thresholds=lambda: [Threshold(19 * GIB, "its cgroup")])
    try:
        with pytest.raises(RequestError, match="2 shards on this node may take 20 GiB, above 19 GiB, its cgroup"):
            assign(thread, 3)
        assert thread.shard.holding is None
        assign(thread, 3, shard=2).result(120)
    finally:
        thread.close()


def test_a_shard_of_a_pair_counts_standbys():
    thread = WorkThread(Shard(), thresholds=lambda: [Threshold(19 * GIB, "its cgroup")])
    try:
        thread.standby = "10.0.0.1:2"
        with pytest.raises(RequestError, match="3 shards on this node may take 30 GiB, above 19 GiB, its cgroup"):
            assign(thread, 3, shard=2)
    finally:
        thread.close()


def test_a_cluster_is_refused_before_a_shard_is_there(monkeypatch):
    monkeypatch.setattr("ps.placement.ShardProcess", None)
    with pytest.raises(RequestError, match=r"memory_limit_bytes of table 'user' 1024 PiB: 2 shards on this node"):
        ps.LocalCluster(spec(user="1024PiB"), shards=2, placement="process")
