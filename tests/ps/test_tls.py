"""TLS and mutual TLS over real connections, with certificates made here: who is let in, and what the others hear."""

import re
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

import ps
from ps.errors import NotAllowedError, RequestError, UnavailableError
from ps.security import SecurityOptions, TlsOptions, client_identity, server_identity
from ps.server import ShardServer
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.ps.certificates import Authority
from tests.ps.driving import NUM_BUCKETS, SPEC, keys_in

KEYS = keys_in(range(NUM_BUCKETS))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("theirs"), "another authority")


def shards(pair, **more):
    return SecurityOptions(tls=TlsOptions(certificate=pair[0], key=pair[1], **more))


def clients(authority, pair=(None, None), **more):
    return SecurityOptions(
        tls=TlsOptions(authority=authority.certificate, client_certificate=pair[0], client_key=pair[1], **more)
    )


def status(server_security, client_security):
    """What a client gets from a shard."""
    server, transport = ShardServer(security=server_security), GrpcTransport(client_security)
    try:
        return transport.send(server.address, "Status", pb.StatusRequest(), 20).result()
    finally:
        transport.close()
        server.stop(0)


def test_a_shard_that_the_authority_signed_is_trusted(ours):
    assert status(shards(ours.sign("by-address", hosts=["127.0.0.1"])), clients(ours)).pid


def test_a_name_of_the_shards_stands_for_their_addresses(ours):
    server = shards(ours.sign("by-name", hosts=["shard.weir"]))
    assert status(server, clients(ours, server_name="shard.weir")).pid
    for options in (clients(ours), clients(ours, server_name="other.weir")):
        with pytest.raises(NotAllowedError, match=r"Hostname Verification Check failed.*server_name"):
            status(server, options)


def test_certificates_that_clients_do_not_trust(ours, theirs):
    good = ours.sign("good", hosts=["127.0.0.1"])
    with pytest.raises(NotAllowedError, match=r"CERTIFICATE_VERIFY_FAILED.*cluster.security.tls"):
        status(shards(good), clients(theirs))
    with pytest.raises(NotAllowedError, match="CERTIFICATE_VERIFY_FAILED"):  # the public authorities know it not
        status(shards(good), SecurityOptions(tls=TlsOptions()))
    with pytest.raises(NotAllowedError, match="certificate has expired"):
        status(shards(ours.sign("old", hosts=["127.0.0.1"], days=-1)), clients(ours))


def test_one_end_without_tls(ours):
    with pytest.raises(UnavailableError, match="it may expect TLS"):
        status(shards(ours.sign("lonely", hosts=["127.0.0.1"])), None)
    with pytest.raises(NotAllowedError, match="whether shards use it"):
        status(None, clients(ours))


def test_mutual_tls_lets_only_signed_clients_in(ours, theirs):
    server = shards(
        ours.sign("mutual", hosts=["127.0.0.1"]), authority=ours.certificate, require_client_certificate=True
    )
    assert status(server, clients(ours, ours.sign("client"))).pid
    for options in (clients(ours), clients(ours, theirs.sign("stranger")), None):
        with pytest.raises(UnavailableError, match="a client certificate of its authority"):
            status(server, options)


def test_a_cluster_with_all_of_it(ours, tmp_path):
    """One block of options for both ends, as a recipe has it; pushes, pulls and checkpoints go on as ever."""
    token = tmp_path / "token"
    token.write_text("correct-horse")
    token.chmod(0o600)
    certificate, key = ours.sign("cluster", hosts=["shard.weir"])
    client_certificate, client_key = ours.sign("worker")
    security = SecurityOptions.model_validate(
        {
            "token_file": str(token),
            "tls": {
                "authority": ours.certificate,
                "certificate": certificate,
                "key": key,
                "require_client_certificate": True,
                "client_certificate": client_certificate,
                "client_key": client_key,
                "server_name": "shard.weir",
            },
        }
    )
    rows = np.arange(3 * len(KEYS), dtype=np.float32).reshape(-1, 3)
    with ps.LocalCluster(SPEC, shards=2, placement="process", security=security) as cluster:
        with cluster.connect() as one, ps.connect(cluster.addresses[0], security=security) as two:
            before = one.pull("user", KEYS)
            one.push("user", KEYS, rows, step=1).wait()
            np.testing.assert_array_equal(two.pull("user", KEYS), before - rows)
            one.save(str(tmp_path / "checkpoint"))
            two.restore(str(tmp_path / "checkpoint"))
            np.testing.assert_array_equal(one.pull("user", KEYS), before - rows)
        without = security.model_copy(update={"token_file": None})
        with pytest.raises(NotAllowedError, match="no token came along"):
            ps.connect(cluster.addresses[0], security=without)
        with pytest.raises(UnavailableError, match=r"no shard answers at .*security\.tls"):
            ps.connect(cluster.addresses[0])


def test_nothing_can_be_read_on_the_way(ours):
    """Bytes that are not TLS get no answer."""
    server = ShardServer(security=shards(ours.sign("dark", hosts=["127.0.0.1"])))
    try:
        with grpc.insecure_channel(server.address) as channel:
            failure = channel.unary_unary("/weir.v1.Shard/Status").future(b"", timeout=20).exception()
        assert failure.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"certificate": "a.pem"}, "certificate and key belong together"),
        ({"client_key": "a.key"}, "client_certificate and client_key belong together"),
        ({"require_client_certificate": True}, "needs 'authority'"),
        ({"certifcate": "a.pem"}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_contradict_each_other(given, said):
    with pytest.raises(ValidationError, match=said):
        TlsOptions.model_validate(given)


def test_files_that_do_not_do(ours, theirs, tmp_path):
    certificate, key = ours.sign("files", hosts=["127.0.0.1"])
    _, other_key = theirs.sign("files")
    text = tmp_path / "text"
    text.write_text("not a certificate")
    text.chmod(0o600)
    for pair, said in (
        ((certificate, other_key), "are no PEM certificate and its unencrypted key: KEY_VALUES_MISMATCH"),
        ((str(text), key), "are no PEM certificate"),
        ((certificate, str(tmp_path / "none")), "security.tls.key .* cannot be read on"),
        ((certificate, _encrypted(key, tmp_path)), "are no PEM certificate and its unencrypted key"),
    ):
        with pytest.raises(RequestError, match=said):
            server_identity(shards(pair))
        with pytest.raises(RequestError, match=re.sub(r"tls\.key", "tls.client_key", said)):
            client_identity(clients(ours, pair))
    with pytest.raises(RequestError, match=r"security\.tls\.authority .*text is no PEM certificate"):
        client_identity(SecurityOptions(tls=TlsOptions(authority=str(text))))
    with pytest.raises(RequestError, match="shards need 'certificate' and 'key'"):
        server_identity(clients(ours))


def test_a_key_that_everybody_may_read_is_refused(ours, tmp_path):
    certificate, key = ours.sign("loose")
    (tmp_path / "loose.key").write_bytes(Path(key).read_bytes())
    (tmp_path / "loose.key").chmod(0o644)
    with pytest.raises(RequestError, match=r"is open to every user \(mode 644\)"):
        server_identity(shards((certificate, str(tmp_path / "loose.key"))))


def test_a_key_is_not_shown(ours):
    identity = server_identity(shards(ours.sign("shown")))
    assert b"PRIVATE KEY" in identity.key
    assert "PRIVATE" not in repr(identity)


def _encrypted(key, folder):
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    path = folder / "encrypted.key"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    path.chmod(0o600)
    return str(path)
