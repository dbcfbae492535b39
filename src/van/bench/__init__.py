"""Benchmarks of operators, networks and runtime sessions. Outputs are verified before throughput is reported."""

from collections.abc import Callable
from typing import Any

from van.errors import UsageError

Measurement = Callable[[], list[Any]]
"""Runs a benchmark whose options were accepted."""


def run_benchmark(subject: str, **options: Any) -> list[Any]:
    """Run the benchmark of ``van bench SUBJECT``; return its rows.

    Args:
        subject: models, ops or sessions.
        options: those of its flags that do not concern the output.

    Raises:
        UsageError: there is no such subject or option, or an option is out of range.
    """
    least = {"wait_s": 0, "image_size": 32}
    for name, value in options.items():
        if isinstance(value, int | float) and not value >= least.get(name, not isinstance(value, bool)):
            raise UsageError(f"{name}: expected at least {least.get(name, 1)}, got {value}")
    subjects = {"models": _models, "ops": _ops, "sessions": _sessions}
    if subject not in subjects:
        raise UsageError(f"subject: expected one of {', '.join(subjects)}, got {subject!r}")
    try:
        measurement = subjects[subject](**options)
    except TypeError as error:  # there is no such option
        raise UsageError(f"van bench {subject}: {error}") from error
    return measurement()


def _ops(*, batch_size: int = 1, rounds: int = 15, threads: int = 1, device: str = "auto") -> Measurement:
    from van.bench.machine import benchmark_settings, resolve_device
    from van.bench.operators import measure

    def run() -> list[Any]:
        with benchmark_settings(threads=threads):
            return list(measure(batch_size=batch_size, rounds=rounds, device=resolve_device(device)))

    return run


def _models(
    *,
    models: tuple[str, ...] = (),
    backends: tuple[str, ...] = (),
    sweep: str | None = None,
    batch_size: int = 8,
    image_size: int = 224,
    device: str = "auto",
    **options: Any,
) -> Measurement:
    from van.bench.cases import select_cases
    from van.bench.machine import resolve_device
    from van.bench.models import BenchmarkConfig, measure

    cases = select_cases(models, backends=backends, batch_size=batch_size, image_size=image_size, sweep=sweep)
    config = BenchmarkConfig(device=resolve_device(device), latency=sweep is None, **options)
    return lambda: measure(cases, config)[1]


def _sessions(*, model: tuple[str, ...] = ("van_b0",), sessions: tuple[str, ...] = (), **options: Any) -> Measurement:
    from van.bench.sessions import SESSIONS, BenchmarkConfig, measure

    config = BenchmarkConfig(sessions=tuple(sessions) or tuple(SESSIONS), **options)
    return lambda: measure(tuple(model), config)
