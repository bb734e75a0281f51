"""What every gRPC server here does: asks for the token, shows its certificate, and answers errors as statuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from ps.errors import METADATA_KEY, NotAllowedError, WeirError, to_wire
from ps.security import TOKEN_KEY, SecurityOptions, is_token, server_identity

_MAX_DETAILS_BYTES = 6000  # as they travel; gRPC drops a status of more than 8 KiB of metadata
_log = logging.getLogger("weir.server")


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Lets calls with the token through, and those of services that are open to all.

    refused: told of every call that is not. who, remedy: as its caller is told, "this shard", "set ...".
    """

    def __init__(
        self, token: bytes, refused: Callable[[], None], who: str, remedy: str, open_services: tuple[str, ...] = ()
    ) -> None:
        self._token, self._refused, self._who, self._remedy = token, refused, who, remedy
        self._open = tuple(f"/{service}/" for service in open_services)
        # As a stream that is never read: the call ends before its message is received.
        self._refusal = grpc.stream_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        is_open = handler_call_details.method.startswith(self._open) if self._open else False
        if is_open or is_token(_token_of(handler_call_details.invocation_metadata), self._token):
            return continuation(handler_call_details)
        return self._refusal

    def _refuse(self, messages: Any, context: grpc.ServicerContext) -> NoReturn:
        self._refused()
        state = "no token came along" if _token_of(context.invocation_metadata()) is None else "it is another token"
        abort(context, NotAllowedError(f"{self._who} asks for a token, and {state}; {self._remedy}"))


def credentials_of(security: SecurityOptions) -> grpc.ServerCredentials | None:
    """What a server shows and trusts; None without TLS. Raises RequestError."""
    identity = server_identity(security)
    if identity is None or security.tls is None:
        return None
    assert identity.key is not None
    assert identity.certificate is not None
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)], identity.authority, security.tls.require_client_certificate
    )


def abort(context: Any, error: Exception, *metadata: tuple[str, str]) -> NoReturn:
    """End a call with the status of an error. metadata: further trailing metadata."""
    if not isinstance(error, WeirError):
        _log.error("a message failed unexpectedly", exc_info=error)
    code, message, name = to_wire(error)
    context.set_trailing_metadata(((METADATA_KEY, name), *metadata))
    context.abort(grpc.StatusCode[code], _shortened(message))
    raise AssertionError("abort raises")


def _token_of(metadata: Any) -> str | bytes | None:
    return next((value for key, value in metadata or () if key == TOKEN_KEY), None)


def _shortened(message: str) -> str:
    """As much of the beginning as a status can carry: bytes that are no visible ASCII take three."""
    size = 0
    for place, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > _MAX_DETAILS_BYTES:
            return message[:place]
    return message
