"""``van report RUN``: write an HTML report of a training run."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from van.cli.arguments import DISPLAY, INPUT, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError
from van.settings import Positional

if TYPE_CHECKING:
    from van.report.data import ReportData


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Flags of ``van report``."""

    run: Annotated[Path, Positional("RUN")]
    """Run folder of van train."""
    out: Path | None = None
    """Output file, ending in .html; default: RUN/report.html."""
    data: Path | None = None
    """Dataset folder with the validation images; default: the one in the run's settings."""
    limit: int = 0
    """Maximum number of validation images, evenly spaced; 0 for all."""
    num_errors: int = 12
    """Number of errors to show."""
    batch_size: int | None = None
    """Images per batch; default: 64 for classification, 4 for other tasks."""
    device: str = "auto"
    """cpu, cuda, mps, or auto, which takes the first one available of cuda, mps and cpu."""
    speed: bool = True
    """Measure the inference speed."""
    json: bool = False
    """Print the data of the page as JSON instead of a table."""


COMMAND = Command(
    "report",
    ReportSettings,
    summary=VERBS["report"],
    details="The page is one file without external resources: curves, metrics overall and per class, the worst errors "
    "with Grad-CAM, speed, settings, versions.",
    examples=(
        "van report runs/digits",
        "van report runs/flowers --out flowers.html --num-errors 30",
        "van report runs/streets --data streets --limit 200 --no-speed --json",
    ),
    groups={
        INPUT: ("run", "data", "limit"),
        OUTPUT: ("out", "num_errors", "speed"),
        RUNTIME: ("batch_size", "device"),
        DISPLAY: ("json",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Collect the data, write the page, and print the metrics and the path of the page."""
    settings = parse(COMMAND, arguments)
    out = _check(settings)
    import van
    from van.checkpoint import write_text
    from van.report.data import ReportOptions, collect_report_data
    from van.report.page import render

    on_terminal = sys.stderr.isatty()
    data = collect_report_data(
        settings.run,
        ReportOptions(
            data=settings.data,
            limit=settings.limit,
            num_errors=settings.num_errors,
            speed=settings.speed,
            device=settings.device,
            batch_size=settings.batch_size,
            on_progress=_print_progress if on_terminal else lambda text: None,
        ),
    )
    if on_terminal:
        _print_progress("")
    write_text(out, render(data, version=van.__version__))
    _print_results(data, out, as_json=settings.json)
    return 0


def _check(settings: ReportSettings) -> Path:
    """Validate the flags before torch is imported, and return the path of the page."""
    for name, least in (("limit", 0), ("num_errors", 0), ("batch_size", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if settings.out is not None and settings.out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out: expected a name ending in .html, got {settings.out}")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UsageError(f"van report: expected 1 process, got {processes}; run it without torchrun")
    return settings.out or settings.run / "report.html"


def _print_results(data: "ReportData", out: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**data.to_dict(), "page": str(out)}, indent=2))
    elif data.validation is not None:
        for name, value in data.validation.evaluation.metrics.items():
            interval = data.validation.intervals.get(name)
            print(f"{name:<16}{value:.4f}" + (f"  95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""))
        print(f"{'samples':<16}{data.validation.evaluation.samples}")
    for line in (*data.missing, *data.notes):
        print(line, file=sys.stderr)
    print(f"page: {out}", file=sys.stderr if as_json else sys.stdout)


def _print_progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
