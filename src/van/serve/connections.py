"""Connections of clients that are slow, silent or too many: uvicorn's protocol has no bounds for these.

A connection that does not send the head of a request in time, or does not take its answer, is closed; so is one above
the number that may be open.

A client that closes its sending side after a whole request is taken for one that has left, and gets no answer: a
connection that is closed altogether looks the same from here until something is sent into it, and what is asked by
visitors who have left is not to be computed.
"""

import asyncio
from collections.abc import Callable
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from van.serve.settings import Limits


class PatientProtocol(H11Protocol):
    """One connection; ``patient_protocol`` makes the class that uvicorn is given."""

    limits: ClassVar[Limits]
    on_refusal: ClassVar[Callable[[str], None]]
    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore[bad-override]
        """Wait for the first head."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._give_up("too_many_connections")
        else:
            self._head = self._give_up_in(self.limits.head_s, "slow_head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._head = _stopped(self._head)
        self._taking = _stopped(self._taking)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A head that is not whole runs against the time that its first byte began."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self._give_up_in(self.limits.head_s, "slow_head")

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        super().pause_writing()
        self._taking = self._give_up_in(self.limits.timeout_s, "slow_reader")

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._taking = _stopped(self._taking)

    def _give_up_in(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._give_up, reason)

    def _give_up(self, reason: str) -> None:
        type(self).on_refusal(reason)
        self.transport.abort()


def patient_protocol(limits: Limits, on_refusal: Callable[[str], None]) -> type[H11Protocol]:
    """The protocol class with these bounds; ``on_refusal`` is told why a connection is closed."""
    return type("PatientProtocol", (PatientProtocol,), {"limits": limits, "on_refusal": staticmethod(on_refusal)})


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    """Stop a timer; what is returned stands in its place."""
    if timer is not None:
        timer.cancel()
