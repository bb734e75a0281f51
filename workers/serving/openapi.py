"""The OpenAPI document of a model's HTTP interface, and a page of it that needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

from workers.serving.model import Model
from workers.serving.options import ServeOptions
from workers.serving.signature import request_schema

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_ERRORS = {
    400: "malformed: the field and what is wrong with it",
    401: "no token, or another one",
    404: "the version that was asked for is not served",
    413: "more candidates or bytes than the limits",
    422: "the scores are no finite numbers",
    500: "a failure of the server",
    503: "too many requests wait, or the server is about to end; Retry-After says when to come again",
    504: "the time was over before the request was scored",
}


def openapi(model: Model, options: ServeOptions) -> dict[str, Any]:
    """The document, version 3.1."""
    timeout = {
        "name": "X-Timeout-Ms",
        "in": "header",
        "description": "milliseconds after which the answer is of no use",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000},
    }
    predict = {
        "summary": "Scores of candidates for one user and context",
        "operationId": "predict",
        "parameters": [timeout],
        "requestBody": {"required": True, "content": _content({"$ref": "#/components/schemas/Request"})},
        "responses": {"200": _answer("scores", "Answer"), **{str(code): _error(code) for code in _ERRORS}},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Predictions of {model.name}", "version": model.version},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/model": {"get": _get("model", "What the model reads and answers, with an example", guarded=True)},
            "/healthz": {"get": _get("healthz", "Whether the process runs")},
            "/readyz": {"get": {**_get("readyz", "Whether it takes requests")}},
        },
        "components": {"schemas": _schemas(model, options)},
    }
    document["paths"]["/readyz"]["get"]["responses"]["503"] = _answer("not ready", "Object")
    if options.security.token_file is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def page(document: dict[str, Any]) -> str:
    """The document as a page for people, with an example to copy."""
    schema = document["components"]["schemas"]["Request"]
    example = json.dumps(schema["example"], indent=1, ensure_ascii=False)
    rows = "".join(
        f"<tr><td><code>{html.escape(f'{method.upper()} {path}')}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td><td>{', '.join(operation['responses'])}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    columns = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(json.dumps(value))}</td></tr>"
        for name, value in schema["properties"]["shared"]["properties"].items()
    )
    title = html.escape(document["info"]["title"])
    curl = html.escape(f"curl -s localhost:PORT/v1/predict -H 'content-type: application/json' -d '{example}'")
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:15px sans-serif;margin:2em;max-width:60em}td{padding:.2em 1em .2em 0;vertical-align:top}"
        "pre{background:#f4f4f4;padding:1em;overflow:auto}</style>"
        f"<h1>{title}</h1><p>Version {html.escape(document['info']['version'])}. "
        f"<a href=openapi.json>openapi.json</a></p><table>{rows}</table>"
        f"<h2>A request</h2><pre>{curl}</pre><h2>Columns</h2><table>{columns}</table>"
    )


def _schemas(model: Model, options: ServeOptions) -> dict[str, Any]:
    error = {"status": {"type": "string"}, "field": {"type": "string"}, "message": {"type": "string"}}
    return {
        "Request": request_schema(model, options),
        "Answer": {
            "type": "object",
            "required": ["scores", "version", "data_age_seconds", "num_unknown_keys", "request_id"],
            "properties": {
                "scores": {
                    "type": "object",
                    "required": list(model.tasks),
                    "properties": dict.fromkeys(model.tasks, _NUMBERS),
                },
                "version": {"type": "string", "description": "that scored all of it"},
                "data_age_seconds": {"type": ["number", "null"], "description": "since what the rows know of"},
                "num_unknown_keys": {"type": "integer", "description": "keys without a row: initial values"},
                "request_id": {"type": "string"},
            },
        },
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "object", "required": list(error), "properties": error}},
        },
        "Object": {"type": "object"},
    }


def _get(name: str, summary: str, *, guarded: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "operationId": name, "responses": {"200": _answer("it", "Object")}}
    if guarded:
        found["responses"]["401"] = _error(401)
    else:
        found["security"] = []
    return found


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": _content({"$ref": f"#/components/schemas/{schema}"})}


def _error(code: int) -> dict[str, Any]:
    return _answer(_ERRORS[code], "Error")


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
