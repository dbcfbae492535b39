"""What a service may be told, and the bounds of what it takes from strangers."""

import dataclasses
import os
from pathlib import Path

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one request, and all of them together, may cost.

    Args:
        body_bytes: of one request.
        pixels: of one picture, told from its header before anything is decoded.
        pictures: in one request.
        url_bytes: of path and query.
        head_s: until a connection has sent the head of a request.
        body_s: until it has sent the body.
        pause_s: between two pieces of a body.
        timeout_s: from head to answer.
        connections: open at once.
        requests: in work at once.
        queue: pictures for one model that are accepted and not yet answered.
        memory_bytes: for bodies and pictures of all requests together, while they are read and while they wait; what
            the workers hold is not in it.

    Raises:
        UsageError: one of them is not positive.
    """

    body_bytes: int = 32 << 20
    pixels: int = 50_000_000
    pictures: int = 32
    url_bytes: int = 2048
    head_s: float = 10.0
    body_s: float = 30.0
    pause_s: float = 10.0
    timeout_s: float = 60.0
    connections: int = 512
    requests: int = 128
    queue: int = 128
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0 or value != value or value == float("inf"):
                raise UsageError(f"{field.name} is {value}; wanted more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One service.

    Args:
        host, port: where it listens; port 0 takes any free one.
        workers: processes that hold the networks.
        threads: of each worker; the cores shared out among the workers if 0.
        device: where the workers compute; the GPU where there is one if None.
        max_batch: pictures that a network sees at once; 16 for classes, 1 for whole pictures if 0.
        max_wait_s: how long the first picture of a batch waits for others.
        grace_s: how long a stopping service finishes what it has accepted.
        watch_s: how often model files are looked at for a new one; 0 never.
        api_key: what a client must show; nothing if empty.
        allow_origins: other sites whose pages may use the service.
        limits: bounds on requests.

    Raises:
        UsageError: a value cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 0
    device: str | None = None
    max_batch: int = 0
    max_wait_s: float = 0.005
    grace_s: float = 30.0
    watch_s: float = 1.0
    api_key: str = dataclasses.field(default="", repr=False)
    allow_origins: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is {self.port}; wanted 0 to 65535")
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}; wanted at least 1")
        for name in ("threads", "max_batch", "max_wait_s", "grace_s", "watch_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} is {value}; wanted at least 0")
        for origin in self.allow_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise UsageError(
                    f"--allow-origin is {origin!r}; wanted one such as https://example.org, without a path"
                )

    @property
    def worker_threads(self) -> int:
        """Of each worker."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)


def read_key(path: Path) -> str:
    """The key in a file's first line.

    Raises:
        UsageError: it cannot be read, or holds none that a header can carry.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the key in {path} cannot be read ({getattr(error, 'strerror', None) or 'not ASCII'})"
        ) from error
    return check_key(text, str(path))


def check_key(key: str, source: str) -> str:
    """The key, if it can be one; messages never show it.

    Raises:
        UsageError: it is too short, or holds blanks.
    """
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the key of {source} is none: wanted one line of at least 16 letters, digits or signs, no blanks"
        )
    return key
