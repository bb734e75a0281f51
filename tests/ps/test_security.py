"""Who is let in: the token's file, every method with and without it, and what a shard open to others says."""

import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

import ps
from ps import control
from ps.client import Client
from ps.errors import NotAllowedError, RequestError
from ps.routing import Routing
from ps.security import SecurityOptions, is_token, read_token, token_metadata, warn_if_open
from ps.server import ShardServer
from ps.transport import REPLIES, GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.ps.driving import NUM_BUCKETS, SPEC, call, keys_in, message

KEYS = keys_in(range(NUM_BUCKETS))
EMPTY = {
    "Execute": message(call("size")),
    "Assign": pb.AssignRequest(),
    "Save": pb.SaveRequest(directory="/nowhere"),
    "Restore": pb.RestoreRequest(directory="/nowhere"),
    "Status": pb.StatusRequest(),
    "Give": pb.GiveRequest(),
    "Take": pb.TakeRequest(),
    "Pair": pb.PairRequest(),
    "Replicate": pb.ReplicateRequest(),
    "Mark": pb.MarkRequest(),
}


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """Makes the options of a token; the same text twice is the same token in two files."""

    def make(text="correct-horse", mode=0o600):
        path = tmp_path_factory.mktemp("token") / "token"
        path.write_text(text)
        path.chmod(mode)
        return SecurityOptions(token_file=str(path))

    return make


@pytest.fixture(scope="module")
def guarded(token):
    """A cluster of two shard processes behind a token."""
    with ps.LocalCluster(SPEC, shards=2, placement="process", name="guarded", security=token()) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("", 0o600, r"is empty; write one line: openssl rand -hex 32"),
        (" \n", 0o600, "is empty"),
        ("two words", 0o600, "one line of visible ASCII"),
        ("one\ntwo\n", 0o600, "one line of visible ASCII"),
        ("schlüssel", 0o600, "one line of visible ASCII"),
        ("x" * 5000, 0o600, "longer than 4096 bytes; is it the right file"),
        ("secret", 0o604, r"open to every user \(mode 604\); run: chmod 600 "),
        ("secret", 0o602, r"open to every user \(mode 602\)"),
    ],
)
def test_a_file_that_does_not_do_is_refused_with_its_node(token, text, mode, said):
    options = token(text, mode)
    with pytest.raises(RequestError, match=said) as caught:
        read_token(options)
    assert options.token_file in str(caught.value)
    assert socket.gethostname() in str(caught.value)
    assert "secret" not in str(caught.value)
    for start in (lambda: ShardServer(security=options), lambda: GrpcTransport(options)):
        with pytest.raises(RequestError, match=said):
            start()


def test_a_file_that_is_missing_is_told_with_its_node(tmp_path):
    options = SecurityOptions(token_file=str(tmp_path / "none"))
    with pytest.raises(RequestError, match=f"none cannot be read on {socket.gethostname()}: No such file"):
        read_token(options)
    with pytest.raises(RequestError, match="cannot be read"):
        ps.LocalCluster(SPEC, shards=1, placement="process", security=options)
    with pytest.raises(RequestError, match="cannot be read"):
        ps.connect("127.0.0.1:1", security=options)


def test_a_file_of_the_group_will_do_and_its_end_of_line_does_not_count(token):
    assert read_token(token("abc\n", 0o640)) == b"abc"
    assert read_token(SecurityOptions()) is None


def test_only_the_whole_token_counts():
    ((key, value),) = token_metadata(b"abc")
    assert (key, value) == ("authorization", "Bearer abc")
    assert is_token("Bearer abc", b"abc")
    for other in (None, "", "abc", "bearer abc", "Bearer ab", "Bearer abcd", b"Bearer \xff", "Bearer äbc"):
        assert not is_token(other, b"abc"), other


@pytest.mark.parametrize("method", REPLIES)
@pytest.mark.parametrize("options", [None, "wrong-horse"])
def test_no_method_answers_without_the_token(guarded, token, method, options):
    transport = GrpcTransport(None if options is None else token(options))
    try:
        with pytest.raises(NotAllowedError, match="this shard asks for a token, and") as caught:
            transport.send(guarded.addresses[0], method, EMPTY[method], 20).result()
    finally:
        transport.close()
    assert ("no token came along" if options is None else "it is another token") in str(caught.value)
    assert "cluster.security.token_file" in str(caught.value)
    assert "horse" not in str(caught.value)


def test_the_status_is_that_of_grpc_for_other_languages(guarded):
    with grpc.insecure_channel(guarded.addresses[0]) as channel:
        stub = channel.unary_unary("/weir.v1.Shard/Status", lambda raw: raw, lambda raw: raw)
        failure = stub.future(b"", timeout=20).exception()
        assert failure.code() == grpc.StatusCode.UNAUTHENTICATED
        assert stub(b"", timeout=20, metadata=(("authorization", "Bearer correct-horse"),))


def test_with_the_token_all_is_as_without(guarded, token, tmp_path):
    again = token("correct-horse\n")
    with guarded.connect() as one, ps.connect(guarded.addresses[1], security=again) as two:
        one.push("user", KEYS, np.ones((len(KEYS), 3), np.float32), step=1).wait()
        np.testing.assert_array_equal(one.pull("user", KEYS), two.pull("user", KEYS))
        one.save(str(tmp_path))
        two.restore(str(tmp_path))
        assert two.get("user", ps.Size()) == len(KEYS)


def test_a_client_that_is_not_let_in_hears_it_at_once(guarded, token):
    with pytest.raises(NotAllowedError, match=f"the shard at {guarded.addresses[0]}: .*it is another token"):
        ps.connect(guarded.addresses[0], security=token("wrong-horse"))
    routing = Routing.initial(SPEC.num_buckets, guarded.addresses)
    transport = GrpcTransport(token("wrong-horse"))
    directory = control.StatusDirectory("guarded", transport, guarded.addresses)
    with Client(SPEC, transport, directory, routing, cluster="guarded") as client:
        with pytest.raises(NotAllowedError, match=r"pull from .*: shard \d of cluster 'guarded' at .*another token"):
            client.pull("user", KEYS)
        with pytest.raises(NotAllowedError):
            client.push("user", KEYS, np.ones((len(KEYS), 3), np.float32), step=1).wait()
        assert client.stats()["retries"] == 0
        with pytest.raises(NotAllowedError):
            client.describe()


def peak_bytes(pid):
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_message_without_the_token_is_not_even_received(guarded):
    transport, before = GrpcTransport(), peak_bytes(guarded.processes[0].pid)
    try:
        with pytest.raises(NotAllowedError):
            large = pb.Request(calls=[pb.Call(keys=bytes(256 << 20))])
            transport.send(guarded.addresses[0], "Execute", large, 20).result()
    finally:
        transport.close()
    assert peak_bytes(guarded.processes[0].pid) - before < 32 << 20


def test_refusals_are_counted(token):
    server, transport = ShardServer(security=token()), GrpcTransport()
    try:
        assert isinstance(transport.send(server.address, "Status", pb.StatusRequest(), 20).exception(), NotAllowedError)
        assert (server.metrics.num_not_allowed, server.metrics.num_malformed) == (1, 0)
    finally:
        transport.close()
        server.stop()


@pytest.mark.parametrize(
    ("host", "has_token", "warns"),
    [("127.0.0.1", False, 0), ("localhost", False, 0), ("::1", False, 0), ("0.0.0.0", False, 1), ("0.0.0.0", True, 0)],
)
def test_a_shard_open_to_other_machines_warns_in_one_line(token, caplog, host, has_token, warns):
    with caplog.at_level(logging.WARNING):
        warn_if_open(host, token() if has_token else SecurityOptions())
    assert len(caplog.records) == warns
    for record in caplog.records:
        assert f"shards listen on {host} without a token" in record.getMessage()
        assert "\n" not in record.getMessage()


def test_a_process_started_by_hand(token):
    options = token()
    command = [sys.executable, "-m", "ps.process", "--host", "0.0.0.0", "--stop-at-eof"]
    for security, num_warnings in ((options, 0), (SecurityOptions(), 1)):
        process = subprocess.Popen(
            [*command, "--security", security.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        where = json.loads(process.stdout.readline())
        transport = GrpcTransport(security)
        try:
            assert transport.send(f"127.0.0.1:{where['port']}", "Status", pb.StatusRequest(), 20).result().pid
        finally:
            transport.close()
            _, said = process.communicate(timeout=60)
        assert said.count("without a token") == num_warnings, said
    refused = subprocess.run(
        [*command, "--security", '{"tokenfile": "x"}'], check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "error: --security" in refused.stderr


def test_paths_are_made_absolute_before_they_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = SecurityOptions.model_validate(
        {"token_file": "token", "tls": {"authority": "ca.pem", "certificate": "/a/s.pem", "key": "s.key"}}
    ).absolute()
    assert options.token_file == str(tmp_path / "token")
    tls = options.tls
    assert (tls.authority, tls.certificate, tls.key) == (str(tmp_path / "ca.pem"), "/a/s.pem", str(tmp_path / "s.key"))
    assert tls.client_key is None
    assert SecurityOptions().absolute() == SecurityOptions()
