"""A request for predictions, from a message or from JSON. What its fields mean is checked by the model's features."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from ps.wire import serving_pb2 as pb
from ps.wire.reading import has_fewer_fields
from workers.serving.columns import from_json
from workers.serving.errors import MalformedError, TooLargeError
from workers.serving.messages import AnyColumn, columns_of

MAX_COLUMNS = 4096  # as many as there are slots
_OTHER_FIELDS = 16
_HARMLESS_BYTES = 1 << 16  # of a message, whatever is in it
REQUEST_ID = r"[!-~]{1,128}"
_JSON_KEYS = ("request_id", "version", "shared", "candidates")


class Request(NamedTuple):
    """Columns by field: one row of each shared one, num_candidates rows of the others. version: '' for any."""

    request_id: str
    version: str
    num_candidates: int
    shared: Mapping[str, AnyColumn]
    candidates: Mapping[str, AnyColumn]


def read_message(data: bytes, max_candidates: int) -> Request:
    """The request of a PredictRequest's bytes. Raises MalformedError."""
    # Counted before parsing: an empty map entry is two bytes on the wire and hundreds in memory.
    if len(data) > _HARMLESS_BYTES and not has_fewer_fields(data, 2 * MAX_COLUMNS + _OTHER_FIELDS):
        raise TooLargeError("", f"more than {MAX_COLUMNS} columns")
    message = pb.PredictRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise MalformedError("", f"{len(data)} bytes are no PredictRequest; field names must be UTF-8") from None
    _check_count(message.num_candidates, max_candidates)
    return Request(
        _request_id(message.request_id),
        message.version,
        message.num_candidates,
        columns_of("shared", message.shared),
        columns_of("candidates", message.candidates),
    )


def read_json(data: bytes, max_candidates: int) -> Request:
    """The request of a JSON body. Raises MalformedError."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedError("", f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise MalformedError("", "the body must be an object with 'shared' and 'candidates'")
    for name in body:
        if name not in _JSON_KEYS:
            raise MalformedError(str(name)[:80], f"unknown key; allowed: {', '.join(_JSON_KEYS)}")
    shared, candidates = _mapping(body, "shared"), _mapping(body, "candidates")
    num_candidates = 1
    for name, rows in candidates.items():
        if not isinstance(rows, list):
            raise MalformedError(f"candidates.{name}", "must be a list, one value a candidate")
        num_candidates = len(rows)
    _check_count(num_candidates, max_candidates)
    return Request(
        _request_id(_text(body, "request_id")),
        _text(body, "version"),
        num_candidates,
        {name: from_json(f"shared.{name}", [value]) for name, value in shared.items()},
        {name: from_json(f"candidates.{name}", rows) for name, rows in candidates.items()},
    )


def read_timeout(milliseconds: str | None) -> float | None:
    """Seconds of the header X-Timeout-Ms. Raises MalformedError."""
    if milliseconds is None:
        return None
    try:
        seconds = float(milliseconds) / 1000
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise MalformedError("X-Timeout-Ms", "must be milliseconds, more than 0")
    return seconds


def _check_count(found: int, limit: int) -> None:
    if found < 1:
        raise MalformedError("candidates", "there are none; a request has at least one candidate")
    if found > limit:
        raise TooLargeError("candidates", f"{found} candidates; the limit is {limit}: send several requests")


def _request_id(given: str) -> str:
    if not given:
        return secrets.token_hex(8)
    if not re.fullmatch(REQUEST_ID, given):
        raise MalformedError("request_id", "must be 1 to 128 visible ASCII characters")
    return given


def _mapping(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise MalformedError(name, "must be an object of fields")
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise MalformedError(name, "must be text")
    return value
