"""What can be wrong with a request for predictions; each has one status over gRPC and one over HTTP."""

from __future__ import annotations

from ps.errors import RequestError, WeirError


class MalformedError(RequestError):
    """A request that the model cannot read. field: its place in the request, as shared.user; '' where it is none of a
    field's.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.field = field


class TooLargeError(MalformedError):
    """A request beyond the server's limits of candidates or bytes."""


class UnscorableError(RequestError):
    """A request that was read, and whose scores are no finite numbers: dense values beyond all reason."""

    code = "OUT_OF_RANGE"


class UnknownVersionError(MalformedError):
    """The version that the request asks for is not the one that is served."""

    code = "NOT_FOUND"


class LateError(WeirError):
    """The request's time was over before it was scored. Nothing was computed."""

    code = "DEADLINE_EXCEEDED"


class DrainingError(WeirError):
    """The server is about to end and takes no more requests; another one may."""

    code = "UNAVAILABLE"


_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "OUT_OF_RANGE": 422,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def http_status(error: Exception) -> int:
    """The status of an error over HTTP; 500 for what was not raised on purpose."""
    if isinstance(error, TooLargeError):
        return 413
    return _HTTP_STATUS.get(error.code, 500) if isinstance(error, WeirError) else 500
