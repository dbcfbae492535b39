"""What every request passes before a route sees it: bounds, the key, whole bodies, time; and what every answer carries.

A body is read here, within its limits, before the route is called, so that a route is only ever called with a whole
request, and a client that leaves is noticed while its answer is made: the route is cancelled then.
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

from van.serve.refusals import Refused
from van.serve.service import Service

_log = logging.getLogger("van.serve")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_OPEN = re.compile(r"/(?:page/[^/]*|favicon\.ico|v2/health/(?:live|ready))?")
"""Paths that need no key: the page itself, which asks for it, and health."""
_LOCAL = ("127.0.0.1", "localhost", "::1")
_LINGER_S = 1.0
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclasses.dataclass(kw_only=True)
class Facts:
    """What is known of a request while it is in work; routes find it in their request's ``state``."""

    request_id: str
    started: float
    read_s: float = 0.0
    body_bytes: int = 0
    status: int = 0
    pictures: int = 0
    model: str = ""
    code: str = ""
    cross_origin: str = ""


class Guard:
    """The service's outermost layer.

    Args:
        app: the routes.
        service: whose limits and state hold.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        self._limits = service.settings.limits
        self.in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        made = sent_id if _PLAIN_ID.fullmatch(sent_id) else uuid.uuid4().hex
        facts = Facts(request_id=made, started=time.perf_counter())
        scope.setdefault("state", {})["facts"] = facts
        sender = _Sender(send, facts)
        try:
            self._check(scope, headers, facts)
            if scope["method"] == "OPTIONS" and facts.cross_origin:
                await sender.plain(204, {"Access-Control-Max-Age": "600"})
            else:
                await self._pass(scope, headers, receive, sender, facts)
        except Refused as refused:
            await self._refuse(refused, scope, headers, receive, sender)
        except _ClientGone:
            self._service.measures.gone.inc()
            facts.code = "client_gone"
        except Exception:
            _log.exception("a request failed", extra={"request_id": made})
            await self._refuse(
                Refused(500, "failed", "the service failed; its log has this request's id"),
                scope,
                headers,
                receive,
                sender,
            )
        finally:
            self._record(scope, facts)

    def _check(self, scope: Scope, headers: Headers, facts: Facts) -> None:
        """Refuse what can be refused by its head."""
        path = scope["path"]
        url_bytes = len(scope.get("raw_path") or path.encode()) + 1 + len(scope["query_string"])
        if url_bytes > self._limits.url_bytes:
            raise Refused(
                414, "url_too_long", f"the URL has {url_bytes} bytes; wanted at most {self._limits.url_bytes}"
            )
        self._check_sites(headers, scope["method"], facts)
        if scope["method"] == "OPTIONS" and facts.cross_origin:
            return
        if self._settings.api_key and not _OPEN.fullmatch(path) and not self._knows_key(headers):
            raise Refused(
                401, "no_key", "the key is missing or wrong; send it as Authorization: Bearer KEY or X-API-Key: KEY"
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._too_large(int(length))
        if scope["method"] == "POST":
            if self._service.state == "stopping":
                raise Refused(503, "stopping", "the service is stopping; ask another one", retry_after_s=5)
            if self._service.state == "starting":  # later a lost worker is replaced while requests wait
                raise Refused(503, "not_ready", "no worker is ready yet; come again later", retry_after_s=2)
            if self.in_work >= self._limits.requests:
                told = (
                    f"{self.in_work} requests are in work; wanted at most {self._limits.requests}, so come again later"
                )
                raise Refused(429, "too_many_requests", told, retry_after_s=1)

    def _check_sites(self, headers: Headers, method: str, facts: Facts) -> None:
        """Refuse pages of other sites in a user's browser: by their Origin, or by a name made to point here."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if origin in self._settings.allow_origins:
            facts.cross_origin = origin
        elif origin and method not in ("GET", "HEAD") and origin.partition("://")[2] != host:
            raise Refused(
                403, "other_site", "pages of another site may not use this service; --allow-origin names those that may"
            )
        if self._settings.host in _LOCAL and not self._settings.api_key:
            named = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
            if named.strip("[]").lower() not in _LOCAL:
                raise Refused(
                    403,
                    "other_name",
                    "this service is for 127.0.0.1 and localhost; use one of these names, or --api-key-file",
                )

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(shown.encode(), self._settings.api_key.encode())

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, sender: "_Sender", facts: Facts) -> None:
        """Read the body, and let the route answer while somebody waits for it."""
        works = scope["method"] == "POST"
        self.in_work += works
        self._service.measures.in_work.set(self.in_work)
        try:
            async with contextlib.AsyncExitStack() as held, asyncio.timeout(self._limits.timeout_s):
                body = await self._read(receive, facts, held)
                await _while_wanted(self._app(scope, _replay(body), sender), receive)
        except TimeoutError as error:
            if sender.started:
                raise _ClientGone from error  # it does not take its answer
            raise Refused(504, "timeout", f"no answer within {self._limits.timeout_s:g} s") from error
        finally:
            self.in_work -= works
            self._service.measures.in_work.set(self.in_work)

    async def _read(self, receive: Receive, facts: Facts, held: contextlib.AsyncExitStack) -> bytes:
        """The whole body; ``held`` gives back the memory that it counts for."""
        pieces: list[bytes] = []
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    async with asyncio.timeout(self._limits.pause_s):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    piece = message.get("body", b"")
                    facts.body_bytes += len(piece)
                    if facts.body_bytes > self._limits.body_bytes:
                        raise self._too_large(facts.body_bytes)
                    held.enter_context(self._service.memory.taken(len(piece)))
                    pieces.append(piece)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            wanted = f"{self._limits.body_s:g} s, without a pause of {self._limits.pause_s:g} s"
            raise Refused(408, "slow_body", f"the body came too slowly; wanted all of it within {wanted}") from error
        facts.read_s = time.perf_counter() - start
        if facts.body_bytes:
            self._service.measures.stage.labels("read").observe(facts.read_s)
        return b"".join(pieces)

    async def _refuse(
        self, refused: Refused, scope: Scope, headers: Headers, receive: Receive, sender: "_Sender"
    ) -> None:
        """Say why; then take what the client still sends for a moment, or it would not read the answer."""
        sender.facts.code = refused.code
        self._service.measures.rejected.labels(refused.code).inc()
        if sender.started:
            return
        v2 = scope["path"].startswith("/v2")
        said = {"error": refused.message} if v2 else refused.to_dict(sender.facts.request_id)
        extra = {**refused.headers, "Connection": "close", "Content-Type": "application/json"}
        if refused.status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        linger = unread and "expect" not in headers
        await sender.plain(refused.status, extra, json.dumps(said).encode(), more=linger)
        if linger:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (await receive()).get("more_body", False):
                        pass
            await sender({"type": "http.response.body", "body": b""})

    def _record(self, scope: Scope, facts: Facts) -> None:
        """Count and log it."""
        seconds = time.perf_counter() - facts.started
        route = getattr(scope.get("route"), "path", "other")
        self._service.measures.requests.labels(route, str(facts.status)).inc()
        if scope["method"] == "POST":
            self._service.measures.stage.labels("total").observe(seconds)
        extra: dict[str, Any] = {"request_id": facts.request_id, "method": scope["method"], "path": scope["path"][:200]}
        extra |= {"status": facts.status, "ms": round(1000 * seconds, 2), "body_bytes": facts.body_bytes}
        extra |= {key: getattr(facts, key) for key in ("pictures", "model", "code") if getattr(facts, key)}
        _log.info("request", extra=extra)

    def _too_large(self, size: int) -> Refused:
        return Refused(
            413, "body_too_large", f"the body has {size:,} bytes or more; wanted at most {self._limits.body_bytes:,}"
        )


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


class _Sender:
    """Sends, with the headers that every answer carries."""

    def __init__(self, send: Send, facts: Facts) -> None:
        self._send = send
        self.facts = facts
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.facts.status = message["status"]
            extra = {**_SECURITY, "X-Request-ID": self.facts.request_id}
            if self.facts.cross_origin:
                extra |= {
                    "Access-Control-Allow-Origin": self.facts.cross_origin,
                    "Access-Control-Allow-Headers": "Authorization, X-API-Key, X-Request-ID, Content-Type, Accept",
                    "Access-Control-Allow-Methods": "GET, POST",
                    "Access-Control-Expose-Headers": "X-Request-ID, Retry-After",
                    "Cross-Origin-Resource-Policy": "cross-origin",
                    "Vary": "Origin",
                }
            given = {name.lower() for name, _ in message.get("headers", [])}
            if b"cache-control" not in given:
                extra["Cache-Control"] = "no-store"
            lines = [(name.lower().encode(), value.encode()) for name, value in extra.items()]
            message = {**message, "headers": [*message.get("headers", []), *lines]}
        await self._send(message)

    async def plain(self, status: int, headers: dict[str, str], body: bytes = b"", *, more: bool = False) -> None:
        """A whole answer; with ``more`` its end is left open."""
        size = {"Content-Length": str(len(body))} if status != 204 else {}
        lines = [(name.lower().encode(), value.encode()) for name, value in {**headers, **size}.items()]
        await self({"type": "http.response.start", "status": status, "headers": lines})
        await self({"type": "http.response.body", "body": body, "more_body": more})


def _replay(body: bytes) -> Receive:
    """What a route reads: the body, then nothing for as long as it asks."""
    messages: AsyncIterator[Message] = _body_then_silence(body)
    return messages.__anext__


async def _body_then_silence(body: bytes) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": body, "more_body": False}
    await asyncio.Event().wait()


async def _while_wanted(answer: Any, receive: Receive) -> None:
    """Await ``answer`` until the client leaves.

    Raises:
        _ClientGone: it left first.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise _ClientGone
        answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
