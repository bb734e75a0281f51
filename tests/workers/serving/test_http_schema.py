"""The HTTP interface keeps what its OpenAPI document says, for requests that nobody would write by hand."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
PATHS = {"/v1/predict", "/v1/model", "/healthz", "/readyz"}


@pytest.fixture(scope="module")
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_names_all_paths(server):
    found = json.loads(server.call("/openapi.json")[2])
    assert set(found["paths"]) == PATHS
    assert found["info"]["version"] == "v1"
    assert set(found["paths"]["/v1/predict"]["post"]["responses"]) >= {"200", "400", "401", "404", "413", "503", "504"}


@pytest.mark.parametrize(
    ("path", "mode"),
    [*((path, GenerationMode.POSITIVE) for path in sorted(PATHS)), ("/v1/predict", GenerationMode.NEGATIVE)],
)
def test_answers_are_as_documented(document, path, mode):
    operation, statuses = document[path]["POST" if path == "/v1/predict" else "GET"], set()

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    run()
    assert 500 not in statuses  # 503 and 504 are answers, too
    if mode is GenerationMode.NEGATIVE:
        assert 400 in statuses
