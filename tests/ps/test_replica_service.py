"""Rows over gRPC: exactly those of the replica; mistakes, security, metrics."""

import urllib.request

import grpc
import numpy as np
import pytest

from ps.errors import NotAllowedError, RequestError, UnavailableError
from ps.replica_service import ReplicaServer
from ps.rows_client import RowsClient
from ps.security import Limits, SecurityOptions
from ps.wire import replica_pb2 as pb
from tests.ps.publishing import Publisher, keys_from

ALL_KEYS = keys_from(1, 400)


@pytest.fixture(scope="module")
def served():
    publisher = Publisher()
    publisher.set("user", ALL_KEYS)
    publisher.mark("v7", 7)
    replica = publisher.replica()
    for batch in publisher.partitions[0]:
        replica.apply(batch, 0)
    server = ReplicaServer(replica)
    with RowsClient(server.address) as client:
        yield publisher, replica, server, client
    server.stop()


def test_rows_are_those_of_the_replica(served):
    publisher, replica, _, client = served
    keys = np.concatenate([keys_from(300, 500), keys_from(350, 450)])
    found = client.ask("user", keys)
    rows, unknown = replica.pull("user", keys)
    np.testing.assert_array_equal(found.rows, rows)
    assert (found.rows.dtype, found.num_unknown, found.version) == (np.float32, unknown, "v7")
    assert unknown == 150
    assert found.age_seconds > 0
    publisher.assert_served_by(lambda table, keys: (client.lookup(table, keys), client.ask(table, keys).num_unknown))
    assert client.lookup("item", keys[:0]).shape == (0, 6)


@pytest.mark.parametrize(("dtype", "exact"), [("fp16", True), ("bf16", False)])
def test_narrow_rows(served, dtype, exact):
    _, _, _, client = served
    found, wanted = client.lookup("user", ALL_KEYS, dtype=dtype), client.lookup("user", ALL_KEYS)
    np.testing.assert_allclose(found, wanted, rtol=0 if exact else 2**-8)  # int8 codes fit fp16


def test_status(served):
    publisher, replica, server, client = served
    status = client.status()
    assert {name: table.rows for name, table in status.tables.items()} == {"user": 399, "item": 0}
    assert dict(status.positions) == replica.positions == publisher.positions()
    assert (status.version, status.trouble, status.needs_bundle) == ("v7", "", False)
    assert status.metrics_address == server.metrics_address


def test_mistakes_are_named(served):
    _, _, server, client = served
    with pytest.raises(RequestError, match="no table 'users'; the replica has user, item"):
        client.lookup("users", ALL_KEYS)
    with pytest.raises(RequestError, match="dtype 'int8'; it is one of fp32"):
        client.lookup("user", ALL_KEYS, dtype="int8")
    channel = grpc.insecure_channel(server.address)
    lookup = channel.unary_unary("/weir.replica.v1.Replica/Lookup")
    for data, said in (
        (pb.LookupRequest(table="user", keys=b"1234567").SerializeToString(), "keys of 7 bytes"),
        (pb.LookupRequest(table="user", dtype=9).SerializeToString(), "dtype 9"),
        (b"\xff\xff\xff", "are no LookupRequest"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            lookup(data)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.details()
    channel.close()


def test_metrics_count_keys(served):
    _, _, server, client = served

    def scraped():
        text = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5).read().decode()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}

    before = scraped()
    client.lookup("user", keys_from(390, 410))
    after = scraped()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('weir_replica_keys_total{row="known",table="user"}') == 10
    assert more('weir_replica_keys_total{row="unknown",table="user"}') == 10
    assert more('weir_replica_lookups_total{outcome="answered"}') == 1
    assert more("weir_replica_lookup_seconds_count") == 1
    assert after['weir_replica_rows{table="user"}'] == 399
    assert after['weir_replica_bytes{table="user"}'] > 399 * 8
    assert after["weir_replica_lag_seconds"] > 0


def test_a_token_and_limits(served, tmp_path):
    _, replica, first, _ = served
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    security = SecurityOptions(token_file=str(token), limits=Limits(max_keys_per_request=10))
    with pytest.raises(RequestError, match=f"cannot listen on 127.0.0.1:{first.port}"):
        ReplicaServer(replica, port=first.port, metrics_port=None)
    server = ReplicaServer(replica, security=security, metrics_port=None)
    try:
        with (
            RowsClient(server.address) as client,
            pytest.raises(NotAllowedError, match="this replica asks for a token"),
        ):
            client.lookup("user", ALL_KEYS)
        with RowsClient(server.address, security) as client:
            assert client.lookup("user", ALL_KEYS[:10]).shape == (10, 6)
            with pytest.raises(RequestError, match="11 keys of table 'user' are 264 bytes of rows; the limits are 10"):
                client.lookup("user", ALL_KEYS[:11])
    finally:
        server.stop()
    with RowsClient(server.address, security, timeout_seconds=2) as client, pytest.raises(UnavailableError):
        client.lookup("user", ALL_KEYS[:10])
