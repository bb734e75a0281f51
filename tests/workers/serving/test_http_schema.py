"""The HTTP interface keeps what its OpenAPI document says, for requests that nobody would write by hand."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PATHS = {"/v1/predict", "/v1/model", "/healthz", "/readyz"}


@pytest.fixture(scope="module")
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_names_all_paths(server):
    found = json.loads(server.call("/openapi.json")[2])
    assert set(found["paths"]) == PATHS
    assert found["info"]["version"] == "v1"
    assert set(found["paths"]["/v1/predict"]["post"]["responses"]) >= {"200", "400", "401", "404", "413", "503", "504"}


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", sorted(PATHS))
def test_answers_are_as_documented(document, path, mode):
    operation = document[path]["POST" if path == "/v1/predict" else "GET"]
    statuses = set()

    def run(case):
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)(
        schemathesis_given(operation, mode, run)
    )()
    if path == "/v1/predict" and mode is schemathesis.GenerationMode.NEGATIVE:
        assert statuses & {400, 413, 404}


def schemathesis_given(operation, mode, run):
    from hypothesis import given

    return given(case=operation.as_strategy(generation_mode=mode))(run)
