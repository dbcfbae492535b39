"""``van predict MODEL PICTURES...``: what is in pictures."""

import csv
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from van.cli.arguments import parse
from van.errors import PictureError, UsageError

if TYPE_CHECKING:
    from van.results import Classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Flags of ``van predict``."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Files, folders, patterns in quotes, or - to read paths from standard input, one a line."""
    top: int = 5
    """How many classes to show."""
    batch_size: int = 16
    """Pictures at once."""
    device: str | None = None
    """cpu, cuda or mps; the GPU where there is one."""
    draw: Path | None = None
    """Draw each picture with its classes into this folder."""
    json: bool = False
    """Print one JSON object a line."""
    csv: bool = False
    """Print CSV: picture, rank, label, probability."""


def run(arguments: Sequence[str]) -> int:
    """Classify; go on past unreadable pictures, and end with status 1 if there was one."""
    settings = parse(
        PredictSettings,
        arguments,
        verb="predict",
        description="Classify pictures. Unreadable ones are named on standard error and give status 1.",
        examples=(
            "van predict runs/digits/best.safetensors digits/val/7",
            "van predict van_b2 cat.jpg dog.jpg --top 3 --json",
            "find . -name '*.jpg' | van predict runs/flowers/best.safetensors - --csv",
        ),
    )
    if settings.top < 1 or settings.batch_size < 1:
        raise UsageError(f"--top is {settings.top}, --batch-size {settings.batch_size}; wanted at least 1")
    if settings.json and settings.csv:
        raise UsageError("--json and --csv exclude each other; choose one")
    if not settings.pictures:
        raise UsageError("no pictures given; name files, folders or patterns, or - for a list on standard input")
    if settings.draw is not None and settings.draw.exists() and not settings.draw.is_dir():
        raise UsageError(f"--draw {settings.draw} is a file; wanted a folder")
    from van.ops import keep_freed_memory
    from van.predict import Predictor, expand_pictures

    keep_freed_memory()
    paths = expand_pictures(_read_list(settings.pictures, sys.stdin))
    if not paths:
        raise UsageError("standard input lists no pictures")
    predictor = Predictor.load(settings.model, device=settings.device)
    for note in predictor.notes:
        print(note, file=sys.stderr)
    failed = _print_all(predictor.stream(paths, batch_size=settings.batch_size), settings)
    if failed:
        print(f"{failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _read_list(pictures: Iterable[str], stream: TextIO) -> list[str]:
    """The arguments, with - replaced by the lines of standard input."""
    listed: list[str] = []
    for picture in pictures:
        listed += [line for line in stream.read().splitlines() if line.strip()] if picture == "-" else [picture]
    return listed


def _print_all(answers: "Iterable[Classes | PictureError]", settings: PredictSettings) -> int:
    """Print each answer as it comes; returns how many pictures could not be read."""
    failed = 0
    drawn: dict[str, Path] = {}
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if settings.csv:
        rows.writerow(["picture", "rank", "label", "probability"])
    for answer in answers:
        try:
            if isinstance(answer, PictureError):
                raise answer
            _print_answer(answer, settings, rows)
            if settings.draw is not None:
                _draw(answer, settings.draw / _drawing_name(Path(answer.name), drawn), settings.top)
        except PictureError as error:  # at once, or gone since it was read
            failed += 1
            print(f"van: {error}", file=sys.stderr)
            if settings.json:
                print(json.dumps({"picture": error.name, "error": error.reason}), flush=True)
    return failed


def _print_answer(answer: "Classes", settings: PredictSettings, rows: Any) -> None:
    if settings.json:
        print(json.dumps(answer.to_dict(settings.top)), flush=True)
    elif settings.csv:
        ranked = enumerate(answer.top(settings.top), start=1)
        rows.writerows([answer.name, rank, one.label, f"{one.probability:.6f}"] for rank, one in ranked)
        sys.stdout.flush()
    else:
        shown = ", ".join(f"{one.label} {one.probability:.1%}" for one in answer.top(settings.top))
        print(f"{answer.name}: {shown}", flush=True)


def _drawing_name(source: Path, drawn: dict[str, Path]) -> str:
    """FOLDER-STEM.png, numbered where another picture of this run has that name already."""
    stem = f"{source.parent.name}-{source.stem}".lstrip("-")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(f"{name}.png" for name in names if drawn.setdefault(name.casefold(), source) == source)


def _draw(answer: "Classes", target: Path, top: int) -> None:
    from van.checkpoint import atomic_path
    from van.pictures import read_picture

    with atomic_path(target) as temporary:
        answer.draw(read_picture(answer.name), top).save(temporary, format="png")
