"""The gRPC shell with real connections: round trips, errors, random bytes, ports, metrics, a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.errors import (
    METADATA_KEY,
    ExpiredError,
    OverloadedError,
    RequestError,
    WeirError,
    WrongEpochError,
    from_wire,
    to_wire,
)
from ps.process import main
from ps.routing import Routing
from ps.server import ShardServer
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats
from tests.ps.driving import NUM_BUCKETS, SPEC, call, keys_in, message, push

KEYS = keys_in(range(NUM_BUCKETS))


def assign(transport, address):
    routing = Routing.initial(SPEC.num_buckets, [address]).to_message()
    request = pb.AssignRequest(cluster_spec=SPEC.model_dump_json().encode(), routing=routing)
    transport.send(address, "Assign", request, 120).result()


@pytest.fixture(scope="module")
def server():
    started = ShardServer()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def send(server):
    transport = GrpcTransport()
    assign(transport, server.address)
    yield lambda request, method="Execute": transport.send(server.address, method, request, 30).result()
    transport.close()


def test_round_trip(send):
    before = decode_floats(send(message(call("pull", keys=KEYS))).results[0].payload, pb.FLOAT32, 3)
    result = send(message(push(KEYS, 0.5, dtype=pb.FLOAT16), client=50, sequence=1)).results[0]
    assert (result.num_applied, result.num_created) == (len(KEYS), len(KEYS))
    after = decode_floats(send(message(call("pull", keys=KEYS))).results[0].payload, pb.FLOAT32, 3)
    np.testing.assert_array_equal(after, before - np.float32(0.5))


def test_errors_keep_their_class_and_message(send):
    with pytest.raises(RequestError, match=r"call 0 \('pull' on table 'nobody'\): no such table; there are: user"):
        send(message(call("pull", table="nobody", keys=KEYS)))
    with pytest.raises(WrongEpochError, match="routing epoch 9 at shard 0, now at 1"):
        send(message(call("pull", keys=KEYS), epoch=9))
    send(message(push(KEYS), client=51, sequence=100))
    with pytest.raises(ExpiredError, match="at most 64 updates unsettled"):
        send(message(push(KEYS), client=51, sequence=1))
    with pytest.raises(RequestError, match=r"MANIFEST\.json does not exist"):
        send(pb.RestoreRequest(directory="/nowhere"), "Restore")


def test_control(send, server, tmp_path):
    send(message(push(KEYS), client=52, sequence=1))
    manifest = send(pb.SaveRequest(directory=str(tmp_path)), "Save").manifest
    assert b"num_owned_buckets" in manifest
    status = send(pb.StatusRequest(), "Status")
    assert status.pid == os.getpid()
    assert status.metrics_address == server.metrics_address


def test_every_error_class_goes_over_the_wire_and_back():
    def below(cls):
        return [cls, *(found for child in cls.__subclasses__() for found in below(child))]

    classes = [cls for cls in below(WeirError) if cls.__module__ == "ps.errors"]
    assert len(classes) >= 9
    for cls in classes:
        code, text, name = to_wire(cls("what and where"))
        assert hasattr(grpc.StatusCode, code)
        back = from_wire(code, text, name)
        assert (type(back), str(back)) == (cls, "what and where")
    assert to_wire(ZeroDivisionError("x")) == ("INTERNAL", "unexpected ZeroDivisionError: x", "WeirError")
    assert type(from_wire("UNKNOWN", "x", "SomeNewerError")) is WeirError


@settings(max_examples=60)
@given(st.sampled_from(["Execute", "Assign", "Restore", "Status"]), st.binary(max_size=120))
def test_random_bytes_get_a_clear_error(server, send, method, data):
    with grpc.insecure_channel(server.address) as channel:
        stub = channel.unary_unary(f"/weir.v1.Shard/{method}", lambda raw: raw, lambda raw: raw)
        outcome = stub.future(data, timeout=20)
        error = outcome.exception()
    if error is not None:
        on_purpose = any(key == METADATA_KEY for key, _ in error.trailing_metadata() or ())
        assert error.code() != grpc.StatusCode.INTERNAL or not on_purpose, error.details()
        assert on_purpose or "deserializ" in error.details()  # bytes that are no message at all
    assert send(message(call("size"))).results


def test_a_port_in_use_is_one_clear_error(server, capfd):
    with pytest.raises(RequestError, match=rf"cannot listen on 127\.0\.0\.1:{server.port}: the port is in use"):
        ShardServer(port=server.port)
    metrics_port = int(server.metrics_address.split(":")[1])
    with pytest.raises(RequestError, match=rf"metrics cannot listen on 127\.0\.0\.1:{metrics_port}: .*in use"):
        ShardServer(metrics_port=metrics_port)
    assert main(["--port", str(server.port)]) == 2
    assert "error: a shard cannot listen on" in capfd.readouterr().err


def test_a_full_queue_comes_as_its_own_error():
    server, transport = ShardServer(capacity=0), GrpcTransport()
    try:
        assign(transport, server.address)
        with pytest.raises(OverloadedError, match="shard 0 has 0 messages waiting"):
            transport.send(server.address, "Execute", message(call("size")), 30).result()
    finally:
        transport.close()
        server.stop()


def scraped(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics():
    server, transport = ShardServer(), GrpcTransport()
    try:
        assert scraped(server)["weir_routing_epoch"] == 0
        assign(transport, server.address)

        def send(request):
            return transport.send(server.address, "Execute", request, 30).result()

        for _ in range(2):
            send(message(push(KEYS), sequence=1))
        for rank in (0, 1):
            transport.send(
                server.address,
                "Execute",
                message(push(KEYS, 100.0, drop_above=1.0), client=60 + rank, sequence=1, group=(1, rank, 3)),
                30,
            )
        send(message(call("pull", keys=KEYS)))
        with pytest.raises(RequestError):
            send(message(call("nothing")))
        with pytest.raises(WrongEpochError):
            send(message(call("size"), epoch=2))
        found = scraped(server)
        assert found["weir_routing_epoch"] == 1
        assert found['weir_rows{table="user"}'] == len(KEYS)
        assert found['weir_bytes{table="user"}'] > 0
        assert found['weir_bucket_skew{table="user"}'] == 1.0
        assert found['weir_updated_rows_total{outcome="applied"}'] == len(KEYS)
        assert found['weir_updated_rows_total{outcome="skipped"}'] == len(KEYS)
        assert found['weir_seconds_count{kind="apply"}'] == 2
        assert found['weir_seconds_count{kind="pull"}'] == 1
        assert found['weir_refused_total{reason="malformed"}'] == 1
        assert found['weir_refused_total{reason="error"}'] == 1
        assert found["weir_queue_depth"] == 0
        assert found["weir_waiting_for_ranks"] == 2
    finally:
        transport.close()
        server.stop()


def start_process(*arguments):
    command = [sys.executable, "-m", "ps.process", *arguments]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return started, json.loads(started.stdout.readline())


@pytest.mark.parametrize("how", ["SIGTERM", "stdin"])
def test_a_process_of_its_own_serves_and_ends(how):
    process, where = start_process(*(["--stop-at-eof"] if how == "stdin" else []))
    transport = GrpcTransport()
    try:
        assert where["pid"] == process.pid
        assign(transport, where["address"])
        reply = transport.send(where["address"], "Execute", message(push(KEYS), sequence=1), 30).result()
        assert reply.results[0].num_applied == len(KEYS)
        # One that waits for ever must not keep the process from ending.
        waiting = transport.send(
            where["address"], "Execute", message(push(KEYS), client=2, sequence=1, group=(1, 0, 2)), 30
        )
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert isinstance(waiting.exception(10), WeirError)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
        transport.close()
