"""``van serve MODEL...``: answer over HTTP what is in pictures."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from van.cli.arguments import parse
from van.errors import MissingExtra, UsageError
from van.serve.settings import Limits, Settings, check_key, read_key

_LOCAL = ("127.0.0.1", "localhost", "::1")
_MB, _MEGAPIXEL = 1 << 20, 1_000_000
_LEAST = {
    "max_queue": 1,
    "max_body_mb": 0.001,
    "max_megapixels": 0.001,
    "max_pictures": 1,
    "max_requests": 1,
    "max_connections": 1,
    "max_memory_mb": 0.001,
    **dict.fromkeys(("threads", "max_batch", "max_wait_ms", "grace_s", "watch_s"), 0),
}
_TIMES = ("head_s", "body_s", "timeout_s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Flags of ``van serve``."""

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...", help_behavior_hint="(required)")
    ]
    """Checkpoints or other model files, each perhaps as NAME=FILE; the first answers requests that name none."""
    host: str = Settings.host
    """Address to listen at; any but this machine's own needs a key."""
    port: int = Settings.port
    """Port to listen at; 0 takes a free one."""
    workers: int = Settings.workers
    """Processes that hold the networks; each holds all of them."""
    threads: int = Settings.threads
    """Threads of each worker; the cores shared out among them if 0."""
    device: str | None = Settings.device
    """cpu, cuda or mps; the GPU where there is one."""
    max_batch: int = Settings.max_batch
    """Pictures that a network sees at once; 16 for classes, 1 for whole pictures if 0."""
    max_wait_ms: float = 1000 * Settings.max_wait_s
    """How long the first picture of a batch waits for others."""
    max_queue: int = Limits.queue
    """Pictures for one model accepted and not yet answered; what is more is refused with 429."""
    max_body_mb: float = Limits.body_bytes / _MB
    """Largest body of a request."""
    max_megapixels: float = Limits.pixels / _MEGAPIXEL
    """Largest picture."""
    max_pictures: int = Limits.pictures
    """Most pictures in a request."""
    max_requests: int = Limits.requests
    """Most requests in work."""
    max_connections: int = Limits.connections
    """Most connections."""
    max_memory_mb: float = Limits.memory_bytes / _MB
    """For bodies and pictures of all requests together; reading a picture takes 13 to 35 bytes a pixel."""
    head_s: float = Limits.head_s
    """Until a connection has sent the head of a request."""
    body_s: float = Limits.body_s
    """Until it has sent the body; a pause in it may take a third of that."""
    timeout_s: float = Limits.timeout_s
    """Until a request is answered."""
    grace_s: float = Settings.grace_s
    """How long a stopping service finishes what it has accepted."""
    watch_s: float = Settings.watch_s
    """How often model files are looked at for a new one; 0 never."""
    api_key_file: Path | None = None
    """A file with the key that clients must show; else it is taken from the environment, VAN_API_KEY."""
    allow_origin: tuple[str, ...] = Settings.allow_origins
    """Sites whose pages may use the service from a browser, such as https://example.org."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            self._want(name, f"at least {least:g}", fits=getattr(self, name) >= least)
        for name in _TIMES:
            self._want(name, "more than 0", fits=getattr(self, name) > 0)

    def _want(self, name: str, wanted: str, *, fits: bool) -> None:
        value = getattr(self, name)
        if value == float("inf"):
            fits, wanted = False, f"{wanted}, and finite"
        if not fits:
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}; wanted {wanted}")


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal; status 0 if everything accepted was answered."""
    flags = parse(
        ServeSettings,
        arguments,
        verb="serve",
        description="Answer over HTTP what is in pictures: /predict, /explain, the Open Inference Protocol under /v2, "
        "measures under /metrics, and a page to try it under /. A model file that is replaced is taken up while the "
        "service runs.",
        examples=(
            "van serve runs/digits/best.safetensors",
            "van serve flowers=runs/flowers/best.safetensors apples=runs/apples/best.safetensors --port 8080",
            "van serve runs/flowers/best.safetensors --host 0.0.0.0 --api-key-file key.txt --workers 2",
        ),
    )
    if not flags.models:
        raise UsageError("no model given; name a checkpoint, or several, each perhaps as NAME=FILE")
    _want_packages()
    from van.serve.files import sources_of
    from van.serve.run import serve

    key = check_key(os.environ["VAN_API_KEY"], "VAN_API_KEY") if os.environ.get("VAN_API_KEY") else ""
    if flags.api_key_file is not None:
        key = read_key(flags.api_key_file)
    if flags.host not in _LOCAL and not key:
        raise UsageError(
            f"--host {flags.host} can be reached by others; give --api-key-file or VAN_API_KEY, or listen at 127.0.0.1"
        )
    limits = Limits(
        body_bytes=int(flags.max_body_mb * _MB),
        pixels=round(flags.max_megapixels * _MEGAPIXEL),
        pictures=flags.max_pictures,
        head_s=flags.head_s,
        body_s=flags.body_s,
        pause_s=flags.body_s / 3,
        timeout_s=flags.timeout_s,
        connections=flags.max_connections,
        requests=flags.max_requests,
        queue=flags.max_queue,
        memory_bytes=int(flags.max_memory_mb * _MB),
    )
    settings = Settings(
        host=flags.host,
        port=flags.port,
        workers=flags.workers,
        threads=flags.threads,
        device=flags.device,
        max_batch=flags.max_batch,
        max_wait_s=flags.max_wait_ms / 1000,
        grace_s=flags.grace_s,
        watch_s=flags.watch_s,
        api_key=key,
        allow_origins=flags.allow_origin,
        limits=limits,
    )
    return serve(settings, sources_of(flags.models))


def _want_packages() -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtra(package, "serve", "serving a network") from error
