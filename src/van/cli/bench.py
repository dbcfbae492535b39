"""``van bench ops | models | sessions``: how fast operators and networks are, side by side in one run."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.bench.machine import Machine
    from van.bench.rows import Case, Row

_MODELS_DESCRIPTION = """\
Measure whole networks: latency, images/s, memory, training, share of the roofline.

The weights are random, so nothing is downloaded. Every row is first compared with what float64 answers; then
all rows are timed in turn, median of --rounds. Status 1 if a row is wrong or failed.
  --models  van_b0 ... van_b6; the peers convnext_tiny, convnext_small, swin_tiny, swin_small,
            pvt_v2_b2, inception_next_tiny, resnet50
  --ways    van: this package; reference: VAN as released; eager: the peers; compile: torch.compile of plain
            PyTorch; van_compile: of this package; onnxruntime, openvino: the network exported"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpsSettings:
    """Flags of ``van bench ops``."""

    batch_size: int = 1
    """Pictures at once."""
    threads: int = 1
    """Threads of PyTorch and of the C++ code."""
    rounds: int = 15
    """How often each backend is timed, in turn with the others."""
    device: str = "auto"
    """cpu, cuda, or auto: the GPU if there is one."""
    explain: bool = False
    """Say of each backend why it can serve a shape, and name those that cannot."""
    csv: Path | None = None
    """Write the table there, with machine, versions and date."""
    json: bool = False
    """Print one JSON object a line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """Flags of ``van bench models``."""

    models: tuple[str, ...] = ()
    """Which of them; without it van_b0 to van_b2 and every peer, or van_b0 alone with --grow."""
    ways: tuple[str, ...] = ()
    """Which of them; without it all but van_compile for a VAN, eager for a peer; fewer with --grow."""
    batch_size: int = 8
    """Pictures at once for images/s, memory and training; latency is always of one picture."""
    size_px: int = 224
    """Side of the pictures, in pixels."""
    threads: int = 1
    """Threads of PyTorch, the C++ code, ONNX Runtime and OpenVINO."""
    rounds: int = 5
    """How often each row is timed, in turn with the others."""
    train: bool = False
    """Time training steps (AdamW, float32), too."""
    grow: Literal["batch", "resolution", "kernel"] | None = None
    """Let the batch grow up to --batch-size, the pictures from --size-px to 1024, or the attention's kernel."""
    device: str = "auto"
    """cpu, cuda, or auto: the GPU if there is one."""
    plot: Path | None = None
    """Draw top-1 over images/s, or what grows, into this PNG."""
    csv: Path | None = None
    """Write the table there, with machine, versions and date."""
    json: bool = False
    """Print one JSON object a line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionsSettings:
    """Flags of ``van bench sessions``."""

    model: tuple[str, ...] = ("van_b0",)
    """Which of van_b0 ... van_b6."""
    sessions: tuple[str, ...] = ()
    """Which of pytorch, onnxruntime, openvino, openvino-bf16 and openvino-int8; all if not given."""
    size_px: int = 224
    """Side of the pictures, in pixels."""
    threads: int = 2
    """Threads of every session."""
    rounds: int = 100
    """How often each session is timed, in turn with the others."""
    wait_s: float = 30.0
    """How long to wait at most for a processor that others leave alone."""
    csv: Path | None = None
    """Write the table there, with machine, versions and date."""
    json: bool = False
    """Print one JSON object a line."""


def run(arguments: Sequence[str]) -> int:
    """Choose the subject and measure it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<10}{text}" for name, (text, _) in SUBJECTS.items())
        print(f"usage: van bench SUBJECT\n\n{listed}\n\nexamples:\n\n  van bench ops --batch-size 16 --threads 2")
        print("  van bench models --train --plot speed.png\n\nvan bench SUBJECT --help says more.")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in SUBJECTS:
        raise UsageError(f"there is no subject {name!r}; known: {', '.join(SUBJECTS)}; see van bench --help")
    return SUBJECTS[name][1](rest)


def _ops(arguments: Sequence[str]) -> int:
    settings = parse(
        OpsSettings,
        arguments,
        verb="bench ops",
        description=f"Measure {SUBJECTS['ops'][0]}: in turn, median of many, each checked against float64.",
        examples=("van bench ops", "van bench ops --batch-size 16 --threads 2 --csv benchmarks/ops.csv"),
    )
    _want_at_least(settings, batch_size=1, threads=1, rounds=1)
    from van.bench import tables
    from van.bench.machine import find_device, name_of, same_terms, today, versions
    from van.bench.operators import measure

    device = find_device(settings.device)
    if not settings.json:
        print(tables.OPERATORS_HEAD)
    rows = []
    with same_terms(threads=settings.threads):
        for row in measure(batch_size=settings.batch_size, rounds=settings.rounds, device=device):
            if row.error is None and not settings.explain:
                continue  # a backend that cannot serve this machine
            rows.append(row)
            print(json.dumps(row.record()) if settings.json else tables.operator_line(row, explain=settings.explain))
    if settings.csv is not None:
        stamp = {"threads": settings.threads, "machine": name_of(device), **versions(), "date": today()}
        tables.write_csv(settings.csv, [row.record() for row in rows], stamp)
    return 0


def _models(arguments: Sequence[str]) -> int:
    settings = parse(
        ModelsSettings,
        arguments,
        verb="bench models",
        description=_MODELS_DESCRIPTION,
        examples=(
            "van bench models",
            "van bench models --models van_b1 van_b2 swin_tiny --train --threads 2 --csv models.csv --plot models.png",
            "van bench models --grow resolution --models van_b0 swin_tiny --batch-size 1 --plot resolution.png",
            "van bench models --grow kernel --models van_b0 --ways van reference compile",
        ),
    )
    _want_at_least(settings, batch_size=1, threads=1, rounds=1, size_px=32)
    if settings.plot is not None and settings.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot is {settings.plot}; wanted a name ending in .png")
    if settings.plot is not None and settings.grow is None and settings.size_px != 224:
        raise UsageError(f"--plot draws top-1 as published for 224 px, and --size-px is {settings.size_px}")
    from van.bench.machine import find_device
    from van.bench.models import Terms, measure

    terms = Terms(
        device=find_device(settings.device),
        threads=settings.threads,
        rounds=settings.rounds,
        latency=settings.grow is None,
        train=settings.train,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    machine, rows = measure(_cases(settings), terms)
    _report(settings, machine, rows)
    forgiven = ("measured",) if settings.ways else ("measured", "not installed")
    return 0 if all(row.outcome in forgiven for row in rows) else 1


def _cases(settings: ModelsSettings) -> "list[Case]":
    from van.bench.cases import growing, side_by_side
    from van.bench.networks import NETWORKS

    sizes = {"ways": settings.ways, "batch_size": settings.batch_size, "size_px": settings.size_px}
    if settings.grow is not None:
        return growing(settings.grow, settings.models or ("van_b0",), **sizes)
    peers = [name for name, network in NETWORKS.items() if not network.is_van]
    return side_by_side(settings.models or ("van_b0", "van_b1", "van_b2", *peers), **sizes)


def _report(settings: ModelsSettings, machine: "Machine", rows: "list[Row]") -> None:
    from van.bench import tables

    stamp = tables.stamp_of(machine)
    records = [row.record() for row in rows]
    if settings.json:
        for record in records:
            print(json.dumps(record | stamp))
    else:
        print(tables.table_of(machine, rows))
    if settings.csv is not None:
        tables.write_csv(settings.csv, records, stamp)
    if settings.plot is not None:
        from van.bench.charts import draw_growth, draw_speed
        from van.checkpoint import atomic_path

        with atomic_path(settings.plot) as temporary:
            if settings.grow is None:
                draw_speed(machine, rows, temporary)
            else:
                draw_growth(machine, rows, temporary, over=settings.grow)
        print(f"plot: {settings.plot}", file=sys.stderr)


def _sessions(arguments: Sequence[str]) -> int:
    settings = parse(
        SessionsSettings,
        arguments,
        verb="bench sessions",
        description=f"Measure {SUBJECTS['sessions'][0]}. The weights are random, so nothing is downloaded; every "
        "session is compared with float32 in PyTorch, then all are timed in turn.",
        examples=("van bench sessions", "van bench sessions --model van_b0 van_b2 --rounds 200 --csv sessions.csv"),
    )
    _want_at_least(settings, threads=1, rounds=1, size_px=32)
    if not settings.wait_s >= 0:
        raise UsageError(f"--wait-s is {settings.wait_s}; wanted 0 or more")
    import torch

    from van.bench import tables
    from van.bench.machine import name_of, today, versions
    from van.bench.sessions import SESSIONS, Terms, measure, table_of

    terms = Terms(
        sessions=settings.sessions or tuple(SESSIONS),
        threads=settings.threads,
        rounds=settings.rounds,
        size_px=settings.size_px,
        wait_s=settings.wait_s,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    rows = measure(settings.model, terms)
    machine = name_of(torch.device("cpu"))
    stamp = {"threads": settings.threads, "machine": machine, **versions(), "date": today()}
    records = [row.record() for row in rows]
    if settings.json:
        for record in records:
            print(json.dumps(record | stamp))
    else:
        print(table_of(rows, machine, settings.threads))
    if settings.csv is not None:
        tables.write_csv(settings.csv, records, stamp)
    forgiven = ("measured",) if settings.sessions else ("measured", "not here")
    return 0 if all(row.outcome in forgiven for row in rows) else 1


def _want_at_least(settings: OpsSettings | ModelsSettings | SessionsSettings, **least: int) -> None:
    for name, wanted in least.items():
        value = getattr(settings, name)
        if value < wanted:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; wanted at least {wanted}")


SUBJECTS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "ops": ("the operators of VAN at the shapes of its four stages, on every backend", _ops),
    "models": ("VAN and its peers from timm: latency, images/s, memory, training, share of the roofline", _models),
    "sessions": ("one VAN in PyTorch, ONNX Runtime and OpenVINO (float32, bfloat16, int8)", _sessions),
}
