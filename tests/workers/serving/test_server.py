"""`weir serve` as a process: the same answers over gRPC and HTTP, mistakes named, limits, tokens, TLS, log."""

import json
import ssl
import subprocess
import sys

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from ps.errors import NotAllowedError, WeirError
from ps.security import SecurityOptions, TlsOptions
from ps.wire import serving_pb2 as pb
from tests.ps.certificates import Authority
from tests.test_structure import ROOT
from tests.workers.serving.processes import ServerProcess, wait_for
from tests.workers.serving.summing import PRICES, USERS, logits
from workers.cli import app
from workers.serving.client import PredictionClient, encode
from workers.serving.errors import LateError, MalformedError, TooLargeError, UnknownVersionError

EXPECTED = 1 / (1 + np.exp(-logits().astype(np.float64)))
GOOD = {"shared": {"tags": ""}, "candidates": {"user": USERS, "price": PRICES}}


@pytest.fixture(scope="module")
def client(server):
    with PredictionClient(server.address) as made:
        yield made


def test_grpc_answers_what_the_rows_and_the_tower_say(client):
    answer = client.predict({"tags": ""}, {"user": USERS, "price": np.array(PRICES)}, request_id="r1")
    assert answer.scores.shape == (3, 1)
    np.testing.assert_allclose(answer.scores[:, 0], EXPECTED, rtol=1e-5)
    assert (answer.version, answer.num_unknown_keys, answer.request_id) == ("v1", 0, "r1")
    assert answer.data_age_seconds > 0
    assert answer.timings.decode_us > 0


def test_http_answers_the_same(server):
    status, headers, body = server.call("/v1/predict", {**GOOD, "request_id": "r2", "version": "v1"})
    found = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    np.testing.assert_allclose(found["scores"]["click"], EXPECTED, rtol=1e-5)
    assert (found["version"], found["num_unknown_keys"], found["request_id"]) == ("v1", 0, "r2")


def test_unknown_keys_read_as_initial_values_and_are_counted(client, server):
    before = server.metrics()["weir_serving_unknown_keys_total"]
    answer = client.predict({"tags": ["x", "y"], "price": 0.0}, {"user": ["0", "new", "newer"]})
    assert answer.num_unknown_keys == 4  # of shared tags each once
    assert server.metrics()["weir_serving_unknown_keys_total"] == before + 4


MALFORMED = {
    "missing": ({"candidates": {"user": USERS, "price": PRICES}}, 400, "tags"),
    "wrong type": ({**GOOD, "shared": {"tags": 1.5}}, 400, "shared.tags"),
    "number as text": ({**GOOD, "candidates": {"user": ["0"], "price": ["cheap"]}}, 400, "candidates.price"),
    "lengths": ({**GOOD, "candidates": {"user": USERS, "price": [1.0]}}, 400, "candidates.user"),
    "none": ({**GOOD, "candidates": {"user": [], "price": []}}, 400, "candidates"),
    "too many": ({**GOOD, "candidates": {"user": ["0"] * 1001, "price": [0] * 1001}}, 413, "candidates"),
    "huge text": ({**GOOD, "shared": {"tags": "x" * 70_000}}, 400, "shared.tags"),
    "unknown version": ({**GOOD, "version": "v9"}, 404, "version"),
    "unknown column": ({**GOOD, "shared": {"tags": "", "tgas": ""}}, 400, "shared.tgas"),
    "unknown key": ({**GOOD, "candidate": {}}, 400, "candidate"),
    "no list": ({**GOOD, "candidates": {"user": "0"}}, 400, "candidates.user"),
    "no object": ({**GOOD, "shared": []}, 400, "shared"),
    "request id": ({**GOOD, "request_id": "a b"}, 400, "request_id"),
    "NaN": (b'{"shared": {"tags": "", "price": NaN}, "candidates": {"user": ["0"]}}', 400, ""),
    "1e999": (b'{"shared": {"tags": "", "price": 1e999}, "candidates": {"user": ["0"]}}', 400, ""),
    "bad UTF-8": (b'{"shared": {"tags": "\xff"}}', 400, ""),
    "half a pair": (b'{"shared": {"tags": "\\ud800"}}', 400, ""),
    "deep": (b"[" * 100_000, 400, ""),
    "no JSON": (b"user=0", 400, ""),
    "empty": (b"", 400, ""),
    "a list": (b"[]", 400, ""),
    "too long": (b" " * (1 << 20) + b"{}", 413, ""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_over_http_name_the_field(server, case):
    body, status, field = MALFORMED[case]
    found, headers, text = server.call("/v1/predict", body)
    error = json.loads(text)["error"]
    assert (found, error["field"]) == (status, field), error
    assert headers["content-type"] == "application/json"
    assert set(error) == {"status", "field", "message"}
    assert 0 < len(error["message"]) < 400


@pytest.mark.parametrize(
    ("message", "error", "field"),
    [
        (encode({"tags": ""}, {"user": ["0"]}), MalformedError, "price"),
        (encode({"tags": "", "price": 1.0}, {"user": np.array([1.5])}), MalformedError, "candidates.user"),
        (encode({"tags": "", "price": 0.0}, {"user": ["0"]}, version="v9"), UnknownVersionError, "version"),
        (encode({"tags": "", "price": 0.0}, {"user": ["0"] * 1001}), TooLargeError, "candidates"),
        (pb.PredictRequest(num_candidates=10**6).SerializeToString(), TooLargeError, "candidates"),
        (b"", MalformedError, "candidates"),
        (b"\xff\xff", MalformedError, ""),
        (encode({"tags": "", "pr\u00efce": 0.0}, {"user": ["0"], "price": [0]}), MalformedError, "shared.pr\u00efce"),
        (b"\x22\x02\x0a\x00" * 40_000, TooLargeError, ""),
    ],
    ids=[
        "missing",
        "fraction",
        "unknown version",
        "too many",
        "a million",
        "empty",
        "no message",
        "bad UTF-8",
        "too long",
    ],
)
def test_malformed_requests_over_grpc_name_the_field(client, message, error, field):
    with pytest.raises(error) as caught:
        client.send(message)
    assert (type(caught.value), caught.value.field) == (error, field)


def test_nan_is_refused_over_grpc(client):
    message = pb.PredictRequest.FromString(encode({"tags": ""}, {"user": ["0"], "price": [1.0]}))
    message.candidates["price"].float64s = np.array([np.nan]).tobytes()
    with pytest.raises(MalformedError, match="value 0 is nan, not a finite number") as caught:
        client.send(message.SerializeToString())
    assert caught.value.field == "candidates.price"


def test_deadlines_over_both(client, server):
    with pytest.raises(LateError):
        # gRPC counts whole milliseconds, in which a small request is answered.
        client.predict({"tags": "x|" * 32_000, "price": 0.0}, {"user": ["0"]}, timeout_seconds=1e-6)
    status, _, body = server.call("/v1/predict", GOOD, {"X-Timeout-Ms": "0.0001"})
    assert (status, json.loads(body)["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    for wrong in ("-1", "0", "nan", "inf", "soon"):
        status, _, body = server.call("/v1/predict", GOOD, {"X-Timeout-Ms": wrong})
        assert (status, json.loads(body)["error"]["field"]) == (400, "X-Timeout-Ms")
    assert server.call("/v1/predict", GOOD, {"X-Timeout-Ms": "10000"})[0] == 200


def test_other_paths_and_methods_have_the_same_shape_of_error(server):
    status, headers, body = server.call("/v1/predict")
    assert (status, headers["allow"]) == (405, "POST")
    assert "Method Not Allowed" in json.loads(body)["error"]["message"]
    status, _, body = server.call("/v2/predict", {})
    assert (status, json.loads(body)["error"]["status"]) == (404, "NOT_FOUND")


def test_the_signature_has_an_example_that_is_answered(client, server):
    found = json.loads(server.call("/v1/model")[2])
    assert json.loads(client.describe()) == found
    assert list(found["columns"]) == ["user", "tags", "price"]
    assert found["tasks"] == {"click": "binary"}
    assert found["limits"]["candidates"] == 1000
    assert server.call("/v1/predict", found["example"])[0] == 200
    page = server.call("/")[2].decode()
    assert "Predictions of small" in page
    assert "http" not in page.replace("http://localhost", ""), "the page needs nothing from elsewhere"


def test_health_and_readiness(server):
    assert server.call("/healthz")[0] == 200
    status, _, body = server.call("/readyz")
    assert (status, json.loads(body)["version"]) == (200, "v1")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "weir.serving.v1.Predictions"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_metrics_count(client, server):
    def count(name):
        return server.metrics().get(name, 0)

    ok = 'weir_serving_requests_total{protocol="grpc",status="OK"}'
    bad = 'weir_serving_requests_total{protocol="http",status="INVALID_ARGUMENT"}'
    before = count(ok), count(bad), count("weir_serving_candidates_total"), count("weir_serving_runs_total")
    client.predict({"tags": "", "price": 0.0}, {"user": USERS})
    server.call("/v1/predict", {})
    after = count(ok), count(bad), count("weir_serving_candidates_total"), count("weir_serving_runs_total")
    assert np.subtract(after, before).tolist() == [1, 1, 3, 1]
    assert count('weir_serving_model{name="small",version="v1"}') == 1
    assert count("weir_serving_ready") == 1
    for stage in ("decode", "wait", "rows", "tower", "encode"):
        assert count(f'weir_serving_seconds_count{{stage="{stage}"}}') > 0


def test_predictions_are_logged_with_what_was_asked(client, server):
    client.predict({"tags": ["a", "b"], "price": 2.5}, {"user": ["0", "7"]}, request_id="logged-1")

    def find():
        lines = [line for path in server.log.glob("*.jsonl") for line in path.read_text().splitlines()]
        return next((record for record in map(json.loads, lines) if record["request_id"] == "logged-1"), None)

    record = wait_for(find)
    assert record["shared"] == {"tags": ["a", "b"], "price": 2.5}
    assert record["candidates"] == {"user": ["0", "7"]}
    assert (record["version"], record["num_candidates"], len(record["scores"]["click"])) == ("v1", 2, 2)


def test_with_a_token_nobody_else_gets_answers(bundle, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    token.chmod(0o600)
    with ServerProcess(bundle.directory, "--token-file", str(token)) as server:
        status, headers, body = server.call("/v1/predict", GOOD)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert "no token came along" in json.loads(body)["error"]["message"]
        assert server.call("/v1/predict", GOOD, {"Authorization": "Bearer secret-tokem"})[0] == 401
        assert server.call("/openapi.json")[0] == server.call("/")[0] == server.call("/v1/model")[0] == 401
        assert server.call("/v1/predict", GOOD, {"Authorization": "Bearer secret-token"})[0] == 200
        assert server.call("/healthz")[0] == server.call("/readyz")[0] == server.call("/metrics")[0] == 200
        with PredictionClient(server.address) as client, pytest.raises(NotAllowedError, match="asks for a token"):
            client.predict({"tags": "", "price": 0.0}, {"user": ["0"]})
        security = SecurityOptions(token_file=str(token))
        with PredictionClient(server.address, security) as client:
            assert client.predict({"tags": "", "price": 0.0}, {"user": ["0"]}).version == "v1"
        with grpc.insecure_channel(server.address) as channel:  # for balancers, which have no token
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert "secret-token" not in server.said


def test_tls_over_both(bundle, tmp_path):
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.sign("server", hosts=("localhost", "127.0.0.1"))
    options = (f"security.tls.certificate={certificate}", f"security.tls.key={key}")
    with ServerProcess(bundle.directory, *(each for option in options for each in ("--set", option))) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(authority.certificate))
        assert server.call("/v1/predict", GOOD, context=trusted)[0] == 200
        security = SecurityOptions(tls=TlsOptions(authority=str(authority.certificate)))
        with PredictionClient(server.address, security) as client:
            assert client.predict({"tags": "", "price": 0.0}, {"user": ["0"]}).version == "v1"
        with PredictionClient(server.address) as client, pytest.raises(WeirError):
            client.predict({"tags": "", "price": 0.0}, {"user": ["0"]}, timeout_seconds=5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--http-port", "99999"), "http_port: must be less than or equal to 65535"),
        (("--set", "log.rate=2"), "log.directory: missing"),
        (("--token-file", "/nowhere"), "cannot be read"),
        (("--set", "thread=2"), "thread: unknown key; did you mean 'threads'?"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(bundle, options, text):
    done = CliRunner().invoke(app, ["serve", str(bundle.directory), "--grpc-port", "0", "--http-port", "0", *options])
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line(bundle, server):
    port = server.address.rsplit(":", 1)[1]
    done = CliRunner().invoke(app, ["serve", str(bundle.directory), "--http-port", "0", "--grpc-port", port])
    assert done.exit_code == 2
    assert f"gRPC cannot listen on 127.0.0.1:{port}" in done.stderr


def test_serving_needs_neither_torch_nor_ray_nor_pyarrow():
    check = (
        "import sys, workers.cli, workers.serving.server, workers.serving.client; "
        "print(*sorted({'torch', 'ray', 'pyarrow', 'onnx', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True).stdout == b"\n"
