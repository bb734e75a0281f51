"""Predictions over HTTP as JSON: the application, and the thread that it runs on.

POST /v1/predict   GET /v1/model   GET /openapi.json   GET / (the same as a page)   with the token, where there is one
GET /healthz (the process runs)   GET /readyz (it takes requests)   GET /metrics (Prometheus)

An error is {"error": {"status", "field", "message"}}, whatever is wrong. Bodies are counted while they come in.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ps.errors import NotAllowedError, OverloadedError, RequestError, to_wire
from ps.security import is_token, read_token, server_identity
from workers.serving.errors import MalformedError, TooLargeError, http_status
from workers.serving.metrics import Metrics
from workers.serving.openapi import openapi, page
from workers.serving.options import ServeOptions
from workers.serving.prediction_log import PredictionLog
from workers.serving.predictor import Prediction, Predictor
from workers.serving.request import read_json, read_timeout
from workers.serving.signature import describe

_BODY_SECONDS = 10.0  # within which a body must come in
# Who sends too much gets to read the answer only where the rest is taken, too; of what is larger yet it is not.
_DISCARDED_BODIES = 8
_LARGE_BODY_BYTES = 1 << 18  # from here on decoded on another thread, so that the others go on
_RETRY_AFTER = {"Retry-After": "1"}


class HttpApplication:
    """The routes over one predictor. `asgi` is what a server runs."""

    def __init__(
        self, predictor: Predictor, metrics: Metrics, log: PredictionLog | None, options: ServeOptions
    ) -> None:
        """Raises RequestError for a token file that does not do."""
        self._predictor, self._metrics, self._log, self._options = predictor, metrics, log, options
        self._token = read_token(options.security)
        self._num_bodies = 0  # that are being received or answered
        self.asgi = Starlette(
            routes=[
                Route("/v1/predict", self._guarded(self._predict), methods=["POST"]),
                Route("/v1/model", self._guarded(self._model)),
                Route("/openapi.json", self._guarded(self._openapi)),
                Route("/", self._guarded(self._page)),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics_text),
            ],
            exception_handlers={HTTPException: _plain_error, Exception: _unexpected_error},
        )

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that asks for the token, and whose errors become answers."""

        async def answer(request: Request) -> Response:
            try:
                given = request.headers.get("authorization")
                if self._token is not None and not is_token(given, self._token):
                    state = "no token came along" if given is None else "it is another token"
                    raise NotAllowedError(
                        f"this server asks for a token, and {state}: send Authorization: Bearer TOKEN"
                    )
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                if endpoint == self._predict:
                    self._metrics.answered("http", to_wire(error)[0])
                return _error(error)

        return answer

    async def _predict(self, request: Request) -> Response:
        if self._num_bodies >= self._options.queue:
            raise OverloadedError(f"{self._num_bodies} requests are on their way already; back off")
        self._num_bodies += 1
        try:
            timeout = read_timeout(request.headers.get("x-timeout-ms"))
            body = await self._body(request)
            started = time.perf_counter()
            if len(body) >= _LARGE_BODY_BYTES:
                parsed = await asyncio.to_thread(read_json, body, self._options.max_candidates)
            else:
                parsed = read_json(body, self._options.max_candidates)
            answer = self._predictor.submit(parsed, started, timeout or self._options.timeout_seconds)
            prediction = await asyncio.wrap_future(answer)
        finally:
            self._num_bodies -= 1
        encoding = time.perf_counter()
        content = encode(prediction)
        self._metrics.observe("encode", time.perf_counter() - encoding)
        self._metrics.answered("http", "OK", parsed.num_candidates, prediction.num_unknown_keys)
        if self._log is not None:
            self._log.offer(prediction)
        return Response(content, media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        limit = self._options.max_body_bytes
        pieces, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= limit:
                        pieces.append(piece)
                    elif size > _DISCARDED_BODIES * limit:
                        break
        except TimeoutError:
            raise MalformedError("", f"the body did not come in within {_BODY_SECONDS:.0f} s") from None
        if size > limit:
            raise TooLargeError("", f"the body has more than {limit} bytes")
        return b"".join(pieces)

    async def _model(self, request: Request) -> Response:
        return _json(describe(self._predictor.model, self._options))

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(self._predictor.model, self._options))

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(page(openapi(self._predictor.model, self._options)))

    async def _healthz(self, request: Request) -> Response:
        return _json({"status": "running"})

    async def _readyz(self, request: Request) -> Response:
        model = self._predictor.model
        is_ready = self._predictor.is_ready
        state = {
            "ready": is_ready,
            "version": model.version,
            "data_age_seconds": model.age_seconds(),
            "trouble": self._predictor.trouble() or None,
        }
        return _json(state, 200 if is_ready else 503)

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class HttpService:
    """The application on a thread of its own. port: that which was taken."""

    def __init__(self, application: HttpApplication, options: ServeOptions) -> None:
        """Raises RequestError for a port in use, and for files of `security` that do not do."""
        server_identity(options.security)  # says what is wrong with the files; uvicorn says little
        tls = options.security.tls
        try:
            self._socket = socket.create_server(
                (options.host, options.http_port), family=_family(options.host), backlog=1024
            )
        except OSError as error:
            raise RequestError(
                f"HTTP cannot listen on {options.host}:{options.http_port}: {error.strerror}; choose another "
                "--http-port, or 0 for a free one"
            ) from error
        # Accepted connections inherit it; asyncio sets it on sockets of its own making only.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = int(self._socket.getsockname()[1])
        needs_certificate = tls is not None and tls.require_client_certificate
        config = uvicorn.Config(
            application.asgi,
            log_level="warning",
            access_log=False,
            loop="asyncio",
            http="httptools",
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
            ssl_ca_certs=None if tls is None else tls.authority,
            ssl_cert_reqs=ssl.CERT_REQUIRED if needs_certificate else ssl.CERT_NONE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="weir-http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Take no more connections, answer what was taken, and end."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._server.run(sockets=[self._socket])


def encode(prediction: Prediction) -> bytes:
    """The body of an answer."""
    return orjson.dumps(
        {
            "scores": prediction.by_task(),
            "version": prediction.version,
            "data_age_seconds": prediction.data_age_seconds,
            "num_unknown_keys": prediction.num_unknown_keys,
            "request_id": prediction.request.request_id,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _error(error: Exception) -> Response:
    code, message, _ = to_wire(error)
    field = error.field if isinstance(error, MalformedError) else ""
    status = http_status(error)
    headers = _RETRY_AFTER if status == 503 else {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return _json({"error": {"status": code, "field": field, "message": message}}, status, headers)


async def _plain_error(request: Request, error: Exception) -> Response:
    """No such path or method."""
    assert isinstance(error, HTTPException)
    code = "NOT_FOUND" if error.status_code == 404 else "UNIMPLEMENTED"
    body = {"error": {"status": code, "field": "", "message": f"{request.method} {request.url.path}: {error.detail}"}}
    return _json(body, error.status_code, dict(error.headers or {}))


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return _error(error)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
