"""``van report RUN``: one page about a run, with everything in it."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.report.facts import Facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Flags of ``van report``."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run, as van train made it."""
    out: Path | None = None
    """The page, a name ending in .html; RUN/report.html if not given."""
    data: Path | None = None
    """Where the held-out pictures are, if not where the run's settings say."""
    limit: int = 0
    """Most pictures to measure on, evenly taken; 0 takes all."""
    mistakes: int = 12
    """How many of the worst answers to show."""
    batch_size: int | None = None
    """Pictures at once; 64 for classes, 4 for whole pictures if not given."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the first there is."""
    speed: bool = True
    """Leave out how fast the network is here."""
    json: bool = False
    """Print what the page says as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Gather, write the page, say where it is."""
    settings = parse(
        ReportSettings,
        arguments,
        verb="report",
        description="Make one page about a run, with everything in it and nothing outside: what was trained, curves, "
        "figures overall and for each class, the worst mistakes with Grad-CAM, speed, settings, versions.",
        examples=(
            "van report runs/digits",
            "van report runs/flowers --out flowers.html --mistakes 30",
            "van report runs/streets --data streets --limit 200 --no-speed --json",
        ),
    )
    out = _check(settings)
    import van
    from van.checkpoint import write_text
    from van.report.facts import Wanted, gather
    from van.report.page import render

    on_terminal = sys.stderr.isatty()
    facts = gather(
        settings.run,
        Wanted(
            data=settings.data,
            limit=settings.limit,
            mistakes=settings.mistakes,
            speed=settings.speed,
            device=settings.device,
            batch_size=settings.batch_size,
            say=_say if on_terminal else lambda text: None,
        ),
    )
    if on_terminal:
        _say("")
    write_text(out, render(facts, version=van.__version__))
    _tell(facts, out, as_json=settings.json)
    return 0


def _check(settings: ReportSettings) -> Path:
    """Refuse what cannot be done before anything is loaded; returns where the page goes."""
    for name, least in (("limit", 0), ("mistakes", 0), ("batch_size", 1)):
        given = getattr(settings, name)
        if given is not None and given < least:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; wanted at least {least}")
    if settings.out is not None and settings.out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out is {settings.out}; wanted a name ending in .html")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a report is made by one process; start it without torchrun")
    return settings.out or settings.run / "report.html"


def _tell(facts: "Facts", out: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**facts.to_dict(), "page": str(out)}, indent=2))
    elif facts.measured is not None:
        for name, value in facts.measured.found.metrics.items():
            print(f"{name:<16}{value:.4f}")
        print(f"{'samples':<16}{facts.measured.found.samples}")
    for line in (*facts.gaps, *facts.notes):
        print(line, file=sys.stderr)
    print(f"page: {out}", file=sys.stderr if as_json else sys.stdout)


def _say(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
