"""The server process: it binds the address, loads the models, handles signals and shuts down in order."""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
from collections.abc import Generator, Sequence

import uvicorn

from van.errors import UsageError
from van.serving.app import create_app
from van.serving.http_limits import make_limited_protocol
from van.serving.image_probe import quiet_pillow
from van.serving.logs import log_to_stderr
from van.serving.middleware import RequestMiddleware
from van.serving.model_files import ModelSource
from van.serving.service import Service
from van.serving.settings import Settings

_log = logging.getLogger("van.serving")
_FLUSH_S = 2
_SEND_ERRORS_S = 0.2
"""Time to send the errors of unfinished requests."""


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to ``serve``: it would stop listening at once and end by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture no signals."""
        yield


def serve(settings: Settings, sources: Sequence[ModelSource]) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 if all accepted requests were finished, and 1 if not.

    Raises:
        UsageError: the address cannot be bound.
        VanError: a model cannot be loaded.
    """
    listener = _bind(settings.host, settings.port)
    log_to_stderr()
    quiet_pillow()
    try:
        return asyncio.run(_serve(settings, sources, listener))
    finally:
        listener.close()
        for child in multiprocessing.active_children():  # workers that were still loading
            child.kill()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as resources:
            listener = resources.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            resources.pop_all()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot bind {host}, port {port} ({reason}); choose another --host or --port") from error
    return listener


async def _serve(settings: Settings, sources: Sequence[ModelSource], listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stop_event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_event.set)
    service = Service(settings, sources)
    app = create_app(service)
    server = _Server(_uvicorn_config(app, service))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(_start(service, listener))
    stop_signal = asyncio.create_task(stop_event.wait())
    try:
        await asyncio.wait([starting, stop_signal, serving], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            reloading = asyncio.create_task(service.watch_model_files())
            await asyncio.wait([stop_signal, serving], return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
        else:
            for child in multiprocessing.active_children():
                child.kill()
        return await _shut_down(service, app)
    finally:
        starting.cancel()
        stop_signal.cancel()
        server.should_exit = True
        await asyncio.gather(serving, starting, return_exceptions=True)
        await service.stop()


async def _start(service: Service, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log.info("loading", extra={"url": url})
    await service.start()
    _log.info("serving", extra={"url": url, "models": list(service.cards), "workers": service.pool.pids})


async def _shut_down(service: Service, app: RequestMiddleware) -> int:
    """Finish the accepted requests within the shutdown timeout; returns the exit status."""
    service.state = "stopping"
    _log.info("stopping", extra={"in_progress": app.in_progress})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.shutdown_timeout_s):
            while app.in_progress:
                await asyncio.sleep(0.02)
    unfinished = app.in_progress
    if unfinished:
        await service.abort()
        await asyncio.sleep(_SEND_ERRORS_S)
    _log.info("stopped", extra={"unfinished": unfinished})
    return 1 if unfinished else 0


def _uvicorn_config(app: RequestMiddleware, service: Service) -> uvicorn.Config:
    limits, rejected = service.settings.limits, service.metrics.requests_rejected
    return uvicorn.Config(
        app,  # pyrefly: ignore[bad-argument-type]
        http=make_limited_protocol(limits, lambda reason: rejected.labels(reason).inc()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_FLUSH_S,
        h11_max_incomplete_event_size=max(16384, limits.max_url_bytes + 8192),
        backlog=min(2048, 2 * limits.max_connections),
    )
