"""``van bench ops``: how fast large kernel attention is on every backend, side by side in one run."""

import csv
import dataclasses
import datetime
import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.bench.operators import Row

SUBJECTS = {"ops": "LKA and its dilated convolution at the shapes of VAN's four stages, on every backend"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Flags of ``van bench ops``."""

    batch_size: int = 1
    """Pictures at once."""
    threads: int = 1
    """Threads of PyTorch and of the C++ code."""
    rounds: int = 15
    """How often each backend is timed, in turn with the others."""
    explain: bool = False
    """Say of each backend why it can serve a shape, or why not."""
    csv: Path | None = None
    """Write the table there, with machine, versions and date."""
    json: bool = False
    """Print one JSON object a line."""


def run(arguments: Sequence[str]) -> int:
    """Choose the subject, measure it, print rows as they come."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<8}{text}" for name, text in SUBJECTS.items())
        print(f"usage: van bench SUBJECT\n\n{listed}\n\nExample:\n\n  van bench ops --batch-size 16 --threads 2")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in SUBJECTS:
        raise UsageError(f"there is no subject {name!r}; known: {', '.join(SUBJECTS)}; see van bench --help")
    settings = parse(
        BenchSettings,
        rest,
        verb=f"bench {name}",
        description=f"Measure {SUBJECTS[name]}: in turn, median of many, each checked against float64.",
        examples=("van bench ops", "van bench ops --batch-size 16 --threads 2 --csv benchmarks/ops.csv"),
    )
    for flag in ("batch_size", "threads", "rounds"):
        if getattr(settings, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} is {getattr(settings, flag)}; wanted at least 1")
    import torch

    from van.bench.operators import measure

    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        rows = []
        if not settings.json:
            print(
                f"{'operator':<13}{'shape':<16}{'direction':<18}{'backend':<11}{'ms':>9}{'iqr':>8}{'times':>8}{'error':>10}"
            )
        for row in measure(batch_size=settings.batch_size, rounds=settings.rounds):
            rows.append(row)
            print(json.dumps(dataclasses.asdict(row)) if settings.json else _line(row, explain=settings.explain))
    finally:
        torch.set_num_threads(before)
    if settings.csv is not None:
        _write(settings.csv, rows, settings)
    return 0


def _line(row: "Row", *, explain: bool) -> str:
    shape = "x".join(map(str, row.shape))
    head = f"{row.operator:<13}{shape:<16}{row.direction:<18}{row.backend:<11}"
    tail = f"  {row.reason}" if explain or row.time is None else ""
    if row.time is None:
        return f"{head}{'-':>9}{'-':>8}{'-':>8}{'-':>10}{tail}"
    return f"{head}{row.time.median_ms:>9.3f}{row.time.iqr_ms:>8.3f}{row.speed_up:>7.1f}x{row.error:>10.1e}{tail}"


def _write(path: Path, rows: "list[Row]", settings: BenchSettings) -> None:
    import torch

    from van.checkpoint import write_text

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    measured = ["operator", "shape", "direction", "backend", "median_ms", "iqr_ms", "speed_up", "error"]
    table.writerow([*measured, "threads", "machine", "torch", "date"])
    machine, today = _processor(), datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    for row in rows:
        times = ("", "") if row.time is None else (f"{row.time.median_ms:.4f}", f"{row.time.iqr_ms:.4f}")
        ratio = "" if row.speed_up is None else f"{row.speed_up:.2f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        here = (row.operator, "x".join(map(str, row.shape)), row.direction, row.backend)
        table.writerow([*here, *times, ratio, error, settings.threads, machine, torch.__version__, today])
    write_text(path, text.getvalue())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return model
