"""``van serve MODEL...``: serve predictions over HTTP."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from van import api
from van.cli.arguments import MODEL, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError
from van.serving.settings import Limits, Settings, read_key
from van.settings import Positional

_MB, _MEGAPIXEL = 1 << 20, 1_000_000
_MINIMUM = {
    "max_queue": 1,
    "max_body_mb": 0.001,
    "max_megapixels": 0.001,
    "max_images": 1,
    "max_requests": 1,
    "max_connections": 1,
    "max_memory_mb": 0.001,
    **dict.fromkeys(("threads", "max_batch", "max_wait_ms", "shutdown_timeout_s", "reload_interval_s"), 0),
}
_POSITIVE = ("header_timeout_s", "body_timeout_s", "timeout_s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Flags of ``van serve``."""

    models: Annotated[tuple[str, ...], Positional("MODEL...", required=True)]
    """Checkpoints or other model files, each optionally as NAME=FILE; the first one is the default model."""
    host: str = Settings.host
    """Address to bind; any address but the loopback address needs an API key."""
    port: int = Settings.port
    """Port to bind; 0 selects a free port."""
    workers: int = Settings.workers
    """Number of worker processes; each holds all models."""
    threads: int = Settings.threads
    """Threads of each worker; 0 divides the CPU cores among the workers."""
    device: str | None = Settings.device
    """Device: cpu, cuda or mps; the GPU by default if there is one."""
    max_batch: int = Settings.max_batch
    """Largest batch size; 0 selects 16 for classification and 1 for the other tasks."""
    max_wait_ms: float = 1000 * Settings.max_wait_s
    """Longest time that the first image of a batch waits for further images."""
    max_queue: int = Limits.max_queue
    """Most images in progress for one model; more are rejected with 429."""
    max_body_mb: float = Limits.max_body_bytes / _MB
    """Largest request body."""
    max_megapixels: float = Limits.max_pixels / _MEGAPIXEL
    """Largest image."""
    max_images: int = Limits.max_images
    """Most images in a request."""
    max_requests: int = Limits.max_requests
    """Most requests in progress."""
    max_connections: int = Limits.max_connections
    """Most open connections."""
    max_memory_mb: float = Limits.max_memory_bytes / _MB
    """Memory for the bodies and images of all requests; decoding takes 13 to 35 bytes per pixel."""
    header_timeout_s: float = Limits.header_timeout_s
    """Time to receive the request headers."""
    body_timeout_s: float = Limits.body_timeout_s
    """Time to receive the request body; a pause in it may take a third of that."""
    timeout_s: float = Limits.timeout_s
    """Time from the request headers to the response."""
    shutdown_timeout_s: float = Settings.shutdown_timeout_s
    """Time to finish the accepted requests after a stop signal."""
    reload_interval_s: float = Settings.reload_interval_s
    """Time between checks for changed model files; 0 disables reloading."""
    api_key_file: Path | None = None
    """File with the API key that clients must send; by default the environment variable VAN_API_KEY."""
    allow_origin: tuple[str, ...] = Settings.allow_origins
    """Origins whose pages may use the server from a browser, such as https://example.org."""

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            self._check(name, f"at least {minimum:g}", is_valid=getattr(self, name) >= minimum)
        for name in _POSITIVE:
            self._check(name, "more than 0", is_valid=getattr(self, name) > 0)

    def _check(self, name: str, expected: str, *, is_valid: bool) -> None:
        value = getattr(self, name)
        if value == float("inf"):
            is_valid, expected = False, f"a finite number, {expected}"
        if not is_valid:
            raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, got {value:g}")


COMMAND = Command(
    "serve",
    ServeSettings,
    summary=VERBS["serve"],
    details="Endpoints: /predict, /explain, the Open Inference Protocol under /v2, metrics under /metrics, a web page "
    "under / and the API documentation under /docs. A model file that is replaced is reloaded without a restart.",
    examples=(
        "van serve runs/digits/best.safetensors",
        "van serve flowers=runs/flowers/best.safetensors apples=runs/apples/best.safetensors --port 8080",
        "van serve runs/flowers/best.safetensors --host 0.0.0.0 --api-key-file key.txt --workers 2",
    ),
    groups={
        MODEL: ("models", "device", "threads", "workers"),
        "Network": ("host", "port", "api_key_file", "allow_origin"),
        "Batching": ("max_batch", "max_wait_ms", "max_queue"),
        "Limits": ("max_body_mb", "max_megapixels", "max_images", "max_requests", "max_connections", "max_memory_mb"),
        "Timeouts": ("header_timeout_s", "body_timeout_s", "timeout_s", "shutdown_timeout_s", "reload_interval_s"),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Serve until a stop signal; returns 0 if all accepted requests were finished."""
    flags = parse(COMMAND, arguments)
    options = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    if (key_file := options.pop("api_key_file")) is not None:
        options["api_key"] = read_key(key_file)
    # flags in the units that people use, settings in base units
    options |= {
        "allow_origins": options.pop("allow_origin"),
        "max_wait_s": options.pop("max_wait_ms") / 1000,
        "max_body_bytes": int(options.pop("max_body_mb") * _MB),
        "max_memory_bytes": int(options.pop("max_memory_mb") * _MB),
        "max_pixels": round(options.pop("max_megapixels") * _MEGAPIXEL),
        "body_idle_timeout_s": flags.body_timeout_s / 3,
    }
    return api.serve(options.pop("models"), **options)
