"""``van report RUN``: write an HTML report of a training run."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from van import api
from van.cli.arguments import DISPLAY, INPUT, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.settings import Positional


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
    """Write the page, and print the metrics and the path of the page."""
    settings = parse(COMMAND, arguments)
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    page, data = api.report(options.pop("run"), **{k: v for k, v in options.items() if k != "json"})
    if settings.json:
        print(json.dumps({**data.to_dict(), "page": str(page)}, indent=2))
    elif data.evaluation is not None:
        for name, value in data.evaluation.metrics.items():
            interval = data.intervals.get(name)
            print(f"{name:<16}{value:.4f}" + (f"  95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""))
        print(f"{'samples':<16}{data.evaluation.samples}")
    for line in (*data.missing, *data.notes):
        print(line, file=sys.stderr)
    print(f"page: {page}", file=sys.stderr if settings.json else sys.stdout)
    return 0
