"""A token on Ray: every command and worker brings it, the wrong one is one line, a node without the file is named."""

import json
import socket

import pytest

import ps
from ps import actor
from ps.transport import GrpcTransport
from tests.cluster.conftest import run_here
from tests.ps.certificates import Authority
from tests.ps.client.conftest import SPEC
from tests.workers.training.recipe import write

pytestmark = pytest.mark.cluster


@pytest.fixture
def secured(tmp_path):
    """Options with a token and TLS, and the same with another token."""
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(name * 4)
        (tmp_path / name).chmod(0o600)
    ours = Authority(tmp_path / "authority")
    certificate, key = ours.sign("shards", hosts=["shard.weir"])
    tls = {
        "authority": ours.certificate,
        "certificate": certificate,
        "key": key,
        "server_name": "shard.weir",  # on clusters shards are known by IP addresses
    }
    return {"token_file": str(tmp_path / "right"), "tls": tls}, {"token_file": str(tmp_path / "wrong"), "tls": tls}


@pytest.fixture
def file(join, tmp_path, secured):
    """The recipe of a cluster with a token and TLS that is up."""
    changes = {
        "name": "secured",
        "cluster.placement": "ray",
        "cluster.cpus_per_shard": 0.25,
        "train.epochs": 1,
        "cluster.security": secured[0],
    }
    file = write(tmp_path, changes)
    done = run_here("up", file, "--json")
    assert done.exit_code == 0, done.stderr
    assert "without a token" not in done.stderr
    yield file
    assert run_here("down", file).exit_code == 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_command_brings_the_token(file, secured, workers):
    done = run_here("train", file, "--json", "--set", f"cluster.workers.count={workers}")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] > 0
    shown = run_here("status", file, "--slots", "--json")
    assert shown.exit_code == 0, shown.stderr
    shards = json.loads(shown.stdout)["shards"]
    assert sum(shard["tables"]["main"]["rows"] for shard in shards) == result["rows"]
    for command in ("status", "train"):
        refused = run_here(command, file, "--set", f"cluster.security.token_file={secured[1]['token_file']}")
        assert refused.exit_code == 2, refused.stderr
        (line,) = [line for line in refused.stderr.splitlines() if line.startswith("weir: ")]
        assert f"the shard at {shards[0]['address']}: this shard asks for a token, and it is another token" in line


def test_a_node_without_the_file_is_named(ray_session, monkeypatch):
    monkeypatch.setattr(actor, "GrpcTransport", lambda security=None: GrpcTransport())  # here all is well
    security = ps.SecurityOptions(token_file="/nowhere/token")
    with pytest.raises(ps.UnavailableError) as caught:
        actor.start_cluster(SPEC, 1, "nameless", cpus_per_shard=0.25, security=security)
    assert f"security.token_file /nowhere/token cannot be read on {socket.gethostname()}" in str(caught.value)
    assert not actor.cluster_exists("nameless")


def test_a_cluster_open_to_other_machines_warns_in_one_line(ray_session, caplog):
    spec = ps.ClusterSpec(tables={"item": SPEC.tables["item"]}, num_buckets=64)
    actor.start_cluster(spec, 1, "open", cpus_per_shard=0.25)
    actor.stop_cluster("open")
    (said,) = [each.getMessage() for each in caplog.records if each.name == "weir.security"]
    assert "shards listen on their nodes' addresses without a token" in said
