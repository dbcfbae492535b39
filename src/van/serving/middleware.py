"""The outermost layer of the server: limits, authentication, timeouts, response headers and the request log.

A request body is read here, within its limits, before the route is called, so that a route always gets a whole request.
A client that disconnects is noticed while its response is computed, and the route is cancelled.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from van.serving.api_error import ApiError
from van.serving.service import Service

_log = logging.getLogger("van.serving")
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PUBLIC_PATH = re.compile(r"/(?:page/[^/]*|docs|favicon\.ico|v2/health/(?:live|ready))?")
"""Paths that need no API key: the pages, which request it, and the health checks."""
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_DRAIN_S = 1.0
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclasses.dataclass(kw_only=True)
class RequestContext:
    """Data about a request in progress, for its log line; routes find it in ``request.state.context``."""

    request_id: str
    started: float
    read_s: float = 0.0
    body_bytes: int = 0
    status: int = 0
    images: int = 0
    model: str = ""
    code: str = ""
    allowed_origin: str = ""


class RequestMiddleware:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        service: the service with the settings, limits and metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        self._limits = service.settings.limits
        self.in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _VALID_REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        context = RequestContext(request_id=request_id, started=time.perf_counter())
        scope.setdefault("state", {})["context"] = context
        sender = _ResponseSender(send, context)
        try:
            self._check_head(scope, headers, context)
            if scope["method"] == "OPTIONS" and context.allowed_origin:
                await sender.send_response(204, {"Access-Control-Max-Age": "600"})
            else:
                await self._dispatch(scope, receive, sender, context)
        except ApiError as error:
            await self._send_error(error, scope, headers, receive, sender)
        except _ClientDisconnected:
            self._service.metrics.client_disconnects.inc()
            context.code = "client_disconnected"
        except Exception:
            _log.exception("request failed", extra={"request_id": request_id})
            error = ApiError(500, "internal_error", f"internal server error; see request {request_id} in the log")
            await self._send_error(error, scope, headers, receive, sender)
        finally:
            self._log_request(scope, context)

    def _check_head(self, scope: Scope, headers: Headers, context: RequestContext) -> None:
        """Reject what can be rejected by the request line and headers."""
        path = scope["path"]
        url_bytes = len(scope.get("raw_path") or path.encode()) + 1 + len(scope["query_string"])
        if url_bytes > self._limits.max_url_bytes:
            message = f"URL: expected at most {self._limits.max_url_bytes:,} bytes, got {url_bytes:,}"
            raise ApiError(414, "url_too_long", message)
        self._check_origin(headers, scope["method"], context)
        if scope["method"] == "OPTIONS" and context.allowed_origin:
            return
        if self._settings.api_key and not _PUBLIC_PATH.fullmatch(path) and not self._has_valid_key(headers):
            message = "missing or invalid API key; send the header Authorization: Bearer KEY or X-API-Key: KEY"
            raise ApiError(401, "unauthorized", message)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.max_body_bytes:
            raise self._body_too_large(int(length))
        if scope["method"] == "POST":
            self._check_capacity()

    def _check_capacity(self) -> None:
        if self._service.state == "stopping":
            raise ApiError(503, "shutting_down", "the server is shutting down; retry later", retry_after_s=5)
        # only at the start: later, requests wait while a worker that exited is restarted
        if self._service.state == "starting":
            raise ApiError(503, "not_ready", "no worker is ready yet; retry later", retry_after_s=2)
        if self.in_progress >= self._limits.max_requests:
            message = f"expected at most {self._limits.max_requests} requests in progress, got {self.in_progress + 1}"
            raise ApiError(429, "too_many_requests", f"{message}; retry later", retry_after_s=1)

    def _check_origin(self, headers: Headers, method: str, context: RequestContext) -> None:
        """Reject pages of other sites: by their Origin, or by a host name that was pointed at this machine."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if origin in self._settings.allow_origins:
            context.allowed_origin = origin
        elif origin and method not in ("GET", "HEAD") and origin.partition("://")[2] != host:
            message = f"origin {origin[:60]!r} is not allowed; add it with --allow-origin"
            raise ApiError(403, "origin_not_allowed", message)
        if self._settings.host in _LOOPBACK_HOSTS and not self._settings.api_key:
            name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
            if name.strip("[]").lower() not in _LOOPBACK_HOSTS:
                message = f"host: expected 127.0.0.1 or localhost, got {name[:60]!r}; other names need --api-key-file"
                raise ApiError(403, "host_not_allowed", message)

    def _has_valid_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(key.encode(), self._settings.api_key.encode())  # takes the same time for any key

    async def _dispatch(
        self, scope: Scope, receive: Receive, sender: "_ResponseSender", context: RequestContext
    ) -> None:
        """Read the body and run the route until it finishes or the client disconnects."""
        counts = scope["method"] == "POST"
        self.in_progress += counts
        self._service.metrics.requests_in_progress.set(self.in_progress)
        try:
            async with contextlib.AsyncExitStack() as memory, asyncio.timeout(self._limits.timeout_s):
                body = await self._read_body(receive, context, memory)
                await _run_until_disconnect(self._app(scope, _replay_body(body), sender), receive)
        except TimeoutError as error:
            if sender.started:
                raise _ClientDisconnected from error  # it does not read the response
            raise ApiError(504, "timeout", f"timeout: no response within {self._limits.timeout_s:g} s") from error
        finally:
            self.in_progress -= counts
            self._service.metrics.requests_in_progress.set(self.in_progress)

    async def _read_body(self, receive: Receive, context: RequestContext, memory: contextlib.AsyncExitStack) -> bytes:
        """Read the whole body; ``memory`` releases the memory that is reserved for it."""
        chunks: list[bytes] = []
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                more = True
                while more:
                    async with asyncio.timeout(self._limits.body_idle_timeout_s):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientDisconnected
                    chunk = message.get("body", b"")
                    context.body_bytes += len(chunk)
                    if context.body_bytes > self._limits.max_body_bytes:
                        raise self._body_too_large(context.body_bytes)
                    memory.enter_context(self._service.memory.reserve(len(chunk)))
                    chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            limits = f"{self._limits.body_timeout_s:g} s, and pauses below {self._limits.body_idle_timeout_s:g} s"
            message = f"timeout while receiving the body: expected all of it within {limits}"
            raise ApiError(408, "body_timeout", message) from error
        context.read_s = time.perf_counter() - start
        if context.body_bytes:
            self._service.metrics.stage_seconds.labels("read").observe(context.read_s)
        return b"".join(chunks)

    async def _send_error(
        self, error: ApiError, scope: Scope, headers: Headers, receive: Receive, sender: "_ResponseSender"
    ) -> None:
        """Send an error, then receive the rest of the body for a moment, or the client would not read the error."""
        sender.context.code = error.code
        self._service.metrics.requests_rejected.labels(error.code).inc()
        if sender.started:
            return
        is_v2 = scope["path"].startswith("/v2")
        content = {"error": error.message} if is_v2 else error.to_dict(sender.context.request_id)
        extra = {**error.headers, "Connection": "close", "Content-Type": "application/json"}
        if error.status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        drain = has_body and "expect" not in headers
        await sender.send_response(error.status, extra, json.dumps(content).encode(), more=drain)
        if drain:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    while (await receive()).get("more_body", False):
                        pass
            await sender({"type": "http.response.body", "body": b""})

    def _log_request(self, scope: Scope, context: RequestContext) -> None:
        """Log a finished request and count it in the metrics."""
        seconds = time.perf_counter() - context.started
        route = getattr(scope.get("route"), "path", "other")
        self._service.metrics.requests.labels(route, str(context.status)).inc()
        if scope["method"] == "POST":
            self._service.metrics.stage_seconds.labels("total").observe(seconds)
        fields: dict[str, Any] = {
            "request_id": context.request_id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": context.status,
            "ms": round(1000 * seconds, 2),
            "body_bytes": context.body_bytes,
        }
        fields |= {key: getattr(context, key) for key in ("images", "model", "code") if getattr(context, key)}
        _log.info("request", extra=fields)

    def _body_too_large(self, size: int) -> ApiError:
        message = f"body: expected at most {self._limits.max_body_bytes:,} bytes, got at least {size:,}"
        return ApiError(413, "body_too_large", message)


class _ClientDisconnected(Exception):
    """The client has disconnected, or does not read its response."""


class _ResponseSender:
    """An ASGI ``send`` that adds the headers of every response and records its status."""

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self.context = context
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.context.status = message["status"]
            extra = {**_SECURITY_HEADERS, "X-Request-ID": self.context.request_id}
            if self.context.allowed_origin:
                extra |= {
                    "Access-Control-Allow-Origin": self.context.allowed_origin,
                    "Access-Control-Allow-Headers": "Authorization, X-API-Key, X-Request-ID, Content-Type, Accept",
                    "Access-Control-Allow-Methods": "GET, POST",
                    "Access-Control-Expose-Headers": "X-Request-ID, Retry-After",
                    "Cross-Origin-Resource-Policy": "cross-origin",
                    "Vary": "Origin",
                }
            names = {name.lower() for name, _ in message.get("headers", [])}
            if b"cache-control" not in names:
                extra["Cache-Control"] = "no-store"
            message = {**message, "headers": [*message.get("headers", []), *_encode_headers(extra)]}
        await self._send(message)

    async def send_response(
        self, status: int, headers: dict[str, str], body: bytes = b"", *, more: bool = False
    ) -> None:
        """Send a response; with ``more``, its end must be sent later."""
        length = {"Content-Length": str(len(body))} if status != 204 else {}
        lines = _encode_headers({**headers, **length})
        await self({"type": "http.response.start", "status": status, "headers": lines})
        await self({"type": "http.response.body", "body": body, "more_body": more})


def _encode_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _replay_body(body: bytes) -> Receive:
    """Return an ASGI ``receive`` that yields the body once, and then never returns."""
    messages: AsyncIterator[Message] = _yield_body_once(body)
    return messages.__anext__


async def _yield_body_once(body: bytes) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": body, "more_body": False}
    await asyncio.Event().wait()


async def _run_until_disconnect(call: Any, receive: Receive) -> None:
    """Await ``call``, and cancel it if the client disconnects.

    Raises:
        _ClientDisconnected: the client disconnected first.
    """
    running = asyncio.ensure_future(call)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait([running, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise _ClientDisconnected
        running.result()
    finally:
        for task in (running, disconnect):
            task.cancel()
        await asyncio.gather(running, disconnect, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
