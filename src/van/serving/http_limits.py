"""Limits on connections that uvicorn does not have: their number, and timeouts for slow clients.

A connection that does not send the request headers in time, or does not read its response, is closed; so is one above
the maximum number of connections.

A client that closes its sending side after a whole request counts as disconnected and gets no response: a connection
that is closed altogether cannot be distinguished from it until something is sent, and predictions for clients that have
disconnected are not computed.
"""

import asyncio
from collections.abc import Callable
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from van.serving.settings import Limits


class LimitedProtocol(H11Protocol):
    """One connection with limits; ``make_limited_protocol`` makes the class that uvicorn gets."""

    limits: ClassVar[Limits]
    on_reject: ClassVar[Callable[[str], None]]
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore[bad-override]
        """Start the timer of the first request headers, or close the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._reject("too_many_connections")
        else:
            self._header_timer = self._reject_after(self.limits.header_timeout_s, "header_timeout")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers of a closed connection."""
        self._header_timer = _cancel(self._header_timer)
        self._write_timer = _cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the header timer when the headers are complete; start one for headers that have only begun."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._header_timer = _cancel(self._header_timer)
        elif self._header_timer is None:
            self._header_timer = self._reject_after(self.limits.header_timeout_s, "header_timeout")

    def pause_writing(self) -> None:
        """Start the write timer, as the client does not read the response."""
        super().pause_writing()
        self._write_timer = self._reject_after(self.limits.timeout_s, "write_timeout")

    def resume_writing(self) -> None:
        """Stop the write timer, as the client reads again."""
        super().resume_writing()
        self._write_timer = _cancel(self._write_timer)

    def _reject_after(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._reject, reason)

    def _reject(self, reason: str) -> None:
        type(self).on_reject(reason)
        self.transport.abort()


def make_limited_protocol(limits: Limits, on_reject: Callable[[str], None]) -> type[H11Protocol]:
    """Return a protocol class with these limits; ``on_reject`` is called with the reason for closing a connection."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits, "on_reject": staticmethod(on_reject)})


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer; the None that it returns replaces the timer."""
    if timer is not None:
        timer.cancel()
