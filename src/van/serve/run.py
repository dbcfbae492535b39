"""A service as a process: listening, loading, signals, and an orderly end."""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
from collections.abc import Generator, Sequence

import uvicorn

from van.errors import UsageError
from van.serve.app import make_app
from van.serve.connections import patient_protocol
from van.serve.files import Source
from van.serve.guard import Guard
from van.serve.headers import quiet_pillow
from van.serve.logs import log_to_stderr
from van.serve.service import Service
from van.serve.settings import Settings

_log = logging.getLogger("van.serve")
_FLUSH_S = 2
_REFUSE_S = 0.2
"""For the refusals of what is not finished to be sent."""


class _Server(uvicorn.Server):
    """uvicorn's, which leaves the signals to ``serve``: it would stop listening at once, and end by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def serve(settings: Settings, sources: Sequence[Source]) -> int:
    """Serve until a signal ends it; returns 0 if everything accepted was answered, and 1 if not.

    Raises:
        UsageError: the address cannot be listened at.
        VanError: a model cannot be loaded.
    """
    listening = _listen(settings.host, settings.port)
    log_to_stderr()
    quiet_pillow()
    try:
        return asyncio.run(_serve(settings, sources, listening))
    finally:
        listening.close()
        for child in multiprocessing.active_children():  # those that were still loading
            child.kill()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as held:
            listening = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            held.pop_all()
    except OSError as error:
        told = error.strerror or str(error)
        raise UsageError(f"cannot listen at {host}, port {port} ({told}); choose another --host or --port") from error
    return listening


async def _serve(settings: Settings, sources: Sequence[Source], listening: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(settings, sources)
    guard = make_app(service)
    server = _Server(_config(guard, service))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    starting = asyncio.create_task(_start(service, listening))
    asked_to_stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([starting, asked_to_stop, serving], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            watching = asyncio.create_task(service.watch())
            await asyncio.wait([asked_to_stop, serving], return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        else:
            for child in multiprocessing.active_children():
                child.kill()
        return await _finish(service, guard)
    finally:
        starting.cancel()
        asked_to_stop.cancel()
        server.should_exit = True
        await asyncio.gather(serving, starting, return_exceptions=True)
        await service.stop()


async def _start(service: Service, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log.info("loading", extra={"url": url})
    await service.start()
    _log.info("serving", extra={"url": url, "models": list(service.cards), "workers": service.pool.pids})


async def _finish(service: Service, guard: Guard) -> int:
    """Answer what is accepted, as long as the grace lasts; returns the exit status."""
    service.state = "stopping"
    _log.info("stopping", extra={"in_work": guard.in_work})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.grace_s):
            while guard.in_work:
                await asyncio.sleep(0.02)
    unfinished = guard.in_work
    if unfinished:
        await service.give_up()
        await asyncio.sleep(_REFUSE_S)
    _log.info("stopped", extra={"unfinished": unfinished})
    return 1 if unfinished else 0


def _config(guard: Guard, service: Service) -> uvicorn.Config:
    limits, rejected = service.settings.limits, service.measures.rejected
    return uvicorn.Config(
        guard,  # pyrefly: ignore[bad-argument-type]
        http=patient_protocol(limits, lambda reason: rejected.labels(reason).inc()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_FLUSH_S,
        h11_max_incomplete_event_size=max(16384, limits.url_bytes + 8192),
        backlog=min(2048, 2 * limits.connections),
    )
