"""Settings of the server and limits on what its clients may send; the fields have the names of the flags."""

import dataclasses
import os
from pathlib import Path

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on one request, and on all of them together.

    Args:
        max_body_bytes: size of a request body.
        max_pixels: pixels of an image, read from its header before it is decoded.
        max_images: images in a request.
        max_url_bytes: size of the path and the query.
        header_timeout_s: time to receive the request headers of a connection.
        body_timeout_s: time to receive the request body.
        body_idle_timeout_s: time between two chunks of a body.
        timeout_s: time from the request headers to the response.
        max_connections: open connections.
        max_requests: requests in progress.
        max_queue: images in progress for one model.
        max_memory_bytes: memory for the bodies and images of all requests, from reading until the response; the memory
            of the workers is not included.

    Raises:
        UsageError: a limit is not positive and finite.
    """

    max_body_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_images: int = 32
    max_url_bytes: int = 2048
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    body_idle_timeout_s: float = 10.0
    timeout_s: float = 60.0
    max_connections: int = 512
    max_requests: int = 128
    max_queue: int = 128
    max_memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):  # false for NaN as well
                raise UsageError(f"{field.name}: expected a finite number above 0, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server.

    Args:
        host, port: address to bind; port 0 selects a free port.
        workers: number of worker processes; each holds all models.
        threads: threads of each worker; 0 divides the CPU cores among the workers.
        device: device of the workers; None selects the GPU if there is one.
        max_batch: largest batch size; 0 selects 16 for classification and 1 for the other tasks.
        max_wait_s: longest time that the first image of a batch waits for further images.
        shutdown_timeout_s: time to finish the accepted requests after a stop signal.
        reload_interval_s: time between checks for changed model files; 0 disables reloading.
        api_key: key that clients must send; empty disables authentication.
        allow_origins: other origins whose pages may use the server from a browser.
        limits: limits on requests.

    Raises:
        UsageError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 0
    device: str | None = None
    max_batch: int = 0
    max_wait_s: float = 0.005
    shutdown_timeout_s: float = 30.0
    reload_interval_s: float = 1.0
    api_key: str = dataclasses.field(default="", repr=False)
    allow_origins: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port: expected 0 to 65535, got {self.port}")
        if self.workers < 1:
            raise UsageError(f"--workers: expected at least 1, got {self.workers}")
        for name in ("threads", "max_batch", "max_wait_s", "shutdown_timeout_s", "reload_interval_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name}: expected a finite number of at least 0, got {value}")
        for origin in self.allow_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise UsageError(
                    f"--allow-origin: expected an origin without a path, such as https://example.org, got {origin!r}"
                )

    @property
    def worker_threads(self) -> int:
        """Return the number of threads of each worker."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)


def read_key(path: Path) -> str:
    """Read the API key from a file.

    Raises:
        UsageError: the file cannot be read, or its key cannot be sent in a header.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise UsageError(f"{path}: cannot read the API key ({reason})") from error
    return check_key(text, str(path))


def check_key(key: str, source: str) -> str:
    """Return the key if it is valid; the error message never contains it.

    Raises:
        UsageError: the key is too short, or has spaces or non-ASCII characters.
    """
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{source}: invalid API key; expected one line of at least 16 printable ASCII characters without spaces"
        )
    return key
