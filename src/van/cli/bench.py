"""``van bench ops | models | sessions``: benchmark operators, networks and inference sessions."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from van.cli.arguments import DISPLAY, INPUT, OUTPUT, RUNTIME, Command, Subcommands, parse, run_subcommand
from van.errors import UsageError

if TYPE_CHECKING:
    from van.bench.machine import Machine
    from van.bench.rows import Row

_MODELS_DETAILS = """\
The weights are random; nothing is downloaded. The output of every row is first compared with float64, then all rows
are timed in turn, median of --rounds. Status 1 if a row failed or its output is incorrect.

  --models    van_b0 ... van_b6, convnext_tiny, convnext_small, swin_tiny, swin_small, pvt_v2_b2,
              inception_next_tiny, resnet50
  --backends  van: this package; reference: VAN as released; eager: other models; compile: torch.compile of plain
              PyTorch; van_compile: of this package; onnxruntime, openvino: the exported model"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpsSettings:
    """Flags of ``van bench ops``."""

    batch_size: int = 1
    """Batch size, in images."""
    threads: int = 1
    """Threads of PyTorch and of the C++ code."""
    rounds: int = 15
    """Timed runs per backend, interleaved with the other backends."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto for the GPU if one is available."""
    explain: bool = False
    """Print why each backend is available or unavailable for each shape."""
    csv: Path | None = None
    """CSV file for the table, with machine, package versions and date."""
    json: bool = False
    """Print one JSON object per line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """Flags of ``van bench models``."""

    models: tuple[str, ...] = ()
    """Networks to benchmark; by default van_b0 to van_b2 and every peer, or only van_b0 with --sweep."""
    backends: tuple[str, ...] = ()
    """Backends to benchmark; by default all but van_compile for a VAN, and eager for peers; fewer with --sweep."""
    batch_size: int = 8
    """Batch size for throughput, memory and training; latency is always measured at batch size 1."""
    image_size: int = 224
    """Height and width of the images, in pixels."""
    threads: int = 1
    """Threads of PyTorch, the C++ code, ONNX Runtime and OpenVINO."""
    rounds: int = 5
    """Timed runs per row, interleaved with the other rows."""
    train: bool = False
    """Also time training steps (AdamW, float32)."""
    sweep: Literal["batch", "resolution", "kernel"] | None = None
    """Sweep over the batch size up to --batch-size, the image size from --image-size to 1024, or the kernel size."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto for the GPU if one is available."""
    plot: Path | None = None
    """PNG file for a chart of top-1 over throughput, or with --sweep of throughput over the swept parameter."""
    csv: Path | None = None
    """CSV file for the table, with machine, package versions and date."""
    json: bool = False
    """Print one JSON object per line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionsSettings:
    """Flags of ``van bench sessions``."""

    model: tuple[str, ...] = ("van_b0",)
    """Networks to benchmark, of van_b0 ... van_b6."""
    sessions: tuple[str, ...] = ()
    """Sessions to benchmark, of pytorch, onnxruntime, openvino, openvino-bf16 and openvino-int8; by default all."""
    image_size: int = 224
    """Height and width of the images, in pixels."""
    threads: int = 2
    """Threads of every session."""
    rounds: int = 100
    """Timed runs per session, interleaved with the other sessions."""
    wait_s: float = 30.0
    """Longest time to wait for an idle CPU, in seconds."""
    csv: Path | None = None
    """CSV file for the table, with machine, package versions and date."""
    json: bool = False
    """Print one JSON object per line."""


OPS_COMMAND = Command(
    "bench ops",
    OpsSettings,
    summary="Benchmark the operators of VAN at the shapes of its four stages, on every backend",
    details="Backends are timed in turn, median of --rounds; each output is first compared with float64.",
    examples=(
        "van bench ops",
        "van bench ops --batch-size 16 --threads 2",
        "van bench ops --explain",
        "van bench ops --device cuda --csv ops.csv",
    ),
    groups={
        INPUT: ("batch_size",),
        RUNTIME: ("rounds", "threads", "device"),
        OUTPUT: ("csv",),
        DISPLAY: ("explain", "json"),
    },
)


MODELS_COMMAND = Command(
    "bench models",
    ModelsSettings,
    summary="Benchmark VAN and other timm models: latency, throughput, memory, training, fraction of the roofline",
    details=_MODELS_DETAILS,
    examples=(
        "van bench models",
        "van bench models --models van_b1 van_b2 swin_tiny --train --threads 2 --csv models.csv --plot models.png",
        "van bench models --sweep resolution --models van_b0 swin_tiny --batch-size 1 --plot resolution.png",
        "van bench models --sweep kernel --models van_b0 --backends van reference compile",
    ),
    groups={
        INPUT: ("models", "backends", "batch_size", "image_size", "sweep", "train"),
        RUNTIME: ("rounds", "threads", "device"),
        OUTPUT: ("plot", "csv"),
        DISPLAY: ("json",),
    },
)


SESSIONS_COMMAND = Command(
    "bench sessions",
    SessionsSettings,
    summary="Benchmark one VAN in PyTorch, ONNX Runtime and OpenVINO (float32, bfloat16, int8)",
    details="The weights are random; nothing is downloaded. Every session is first compared with float32 in PyTorch, "
    "then all are timed in turn.",
    examples=(
        "van bench sessions",
        "van bench sessions --model van_b0 van_b2 --rounds 200 --csv sessions.csv",
        "van bench sessions --sessions pytorch openvino-int8 --threads 4 --json",
    ),
    groups={
        INPUT: ("model", "sessions", "image_size"),
        RUNTIME: ("rounds", "threads", "wait_s"),
        OUTPUT: ("csv",),
        DISPLAY: ("json",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Run the sub-command that the first argument names."""
    return run_subcommand("bench", SUBCOMMANDS, arguments)


def _ops(arguments: Sequence[str]) -> int:
    settings = parse(OPS_COMMAND, arguments)
    _check_at_least(settings, batch_size=1, threads=1, rounds=1)
    from van.bench import tables
    from van.bench.machine import benchmark_settings, device_name, resolve_device, today, versions
    from van.bench.operators import measure

    device = resolve_device(settings.device)
    if not settings.json:
        print(tables.OPERATORS_HEADER)
    rows = []
    with benchmark_settings(threads=settings.threads):
        for row in measure(batch_size=settings.batch_size, rounds=settings.rounds, device=device):
            if row.error is None and not settings.explain:
                continue  # a backend that is unavailable on this machine
            rows.append(row)
            print(
                json.dumps(row.to_dict())
                if settings.json
                else tables.format_operator_row(row, explain=settings.explain)
            )
    if settings.csv is not None:
        metadata = {"threads": settings.threads, "machine": device_name(device), **versions(), "date": today()}
        tables.write_csv(settings.csv, [row.to_dict() for row in rows], metadata)
    return 0


def _models(arguments: Sequence[str]) -> int:
    settings = parse(MODELS_COMMAND, arguments)
    _check_at_least(settings, batch_size=1, threads=1, rounds=1, image_size=32)
    if settings.plot is not None and settings.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a name ending in .png, got {settings.plot}")
    if settings.plot is not None and settings.sweep is None and settings.image_size != 224:
        raise UsageError(
            f"--plot: expected --image-size 224, for which top-1 is published, got {settings.image_size}; "
            "use 224 or add --sweep"
        )
    from van.bench.cases import select_cases
    from van.bench.machine import resolve_device
    from van.bench.models import BenchmarkConfig, measure

    config = BenchmarkConfig(
        device=resolve_device(settings.device),
        threads=settings.threads,
        rounds=settings.rounds,
        latency=settings.sweep is None,
        train=settings.train,
        log=lambda text: print(text, file=sys.stderr, flush=True),
    )
    cases = select_cases(
        settings.models,
        backends=settings.backends,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        sweep=settings.sweep,
    )
    machine, rows = measure(cases, config)
    _report(settings, machine, rows)
    accepted_outcomes = ("measured",) if settings.backends else ("measured", "unavailable")
    return 0 if all(row.outcome in accepted_outcomes for row in rows) else 1


def _report(settings: ModelsSettings, machine: "Machine", rows: "list[Row]") -> None:
    from van.bench import tables

    metadata = tables.run_metadata(machine)
    records = [row.to_dict() for row in rows]
    if settings.json:
        for record in records:
            print(json.dumps(record | metadata))
    else:
        print(tables.format_table(machine, rows))
    if settings.csv is not None:
        tables.write_csv(settings.csv, records, metadata)
    if settings.plot is not None:
        from van.bench.charts import plot_accuracy_over_throughput, plot_sweep
        from van.checkpoint import atomic_path

        with atomic_path(settings.plot) as temporary:
            if settings.sweep is None:
                plot_accuracy_over_throughput(machine, rows, temporary)
            else:
                plot_sweep(machine, rows, temporary, sweep=settings.sweep)
        print(f"plot: {settings.plot}", file=sys.stderr)


def _sessions(arguments: Sequence[str]) -> int:
    settings = parse(SESSIONS_COMMAND, arguments)
    _check_at_least(settings, threads=1, rounds=1, image_size=32)
    if not settings.wait_s >= 0:
        raise UsageError(f"--wait-s: expected at least 0, got {settings.wait_s}")
    import torch

    from van.bench import tables
    from van.bench.machine import device_name, today, versions
    from van.bench.sessions import SESSIONS, BenchmarkConfig, format_table, measure

    config = BenchmarkConfig(
        sessions=settings.sessions or tuple(SESSIONS),
        threads=settings.threads,
        rounds=settings.rounds,
        image_size=settings.image_size,
        wait_s=settings.wait_s,
        log=lambda text: print(text, file=sys.stderr, flush=True),
    )
    rows = measure(settings.model, config)
    machine = device_name(torch.device("cpu"))
    metadata = {"threads": settings.threads, "machine": machine, **versions(), "date": today()}
    records = [row.to_dict() for row in rows]
    if settings.json:
        for record in records:
            print(json.dumps(record | metadata))
    else:
        print(format_table(rows, machine, settings.threads))
    if settings.csv is not None:
        tables.write_csv(settings.csv, records, metadata)
    accepted_outcomes = ("measured",) if settings.sessions else ("measured", "unavailable")
    return 0 if all(row.outcome in accepted_outcomes for row in rows) else 1


def _check_at_least(settings: OpsSettings | ModelsSettings | SessionsSettings, **least: int) -> None:
    for name, expected in least.items():
        value = getattr(settings, name)
        if value < expected:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least {expected}, got {value}")


SUBCOMMANDS: Subcommands = {
    "ops": (OPS_COMMAND, _ops),
    "models": (MODELS_COMMAND, _models),
    "sessions": (SESSIONS_COMMAND, _sessions),
}
