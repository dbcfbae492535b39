"""``van predict MODEL PICTURES...``: what is in pictures."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import tyro

from van.cli.arguments import parse
from van.errors import PictureError, UsageError

if TYPE_CHECKING:
    from van.cli.answers import Writer
    from van.predict import Answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Flags of ``van predict``."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    pictures: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES...", help_behavior_hint="(required)")
    ]
    """Files, folders, patterns in quotes, or - to read paths from standard input, one a line."""
    top: int | None = None
    """How many classes or things of a picture to show; 5 classes, all things if not given."""
    min_score: float | None = None
    """Detection: what scores less is left out; 0.3 if not given."""
    tile_px: int = 0
    """Segmentation: see pictures at their own size through a sliding window of so many pixels."""
    multi_scale: bool = False
    """Segmentation: the mean over six scales and their mirror images."""
    batch_size: int | None = None
    """Pictures at once; 16 for classes, 1 for whole pictures if not given."""
    device: str | None = None
    """cpu, cuda or mps; the GPU where there is one."""
    draw: Path | None = None
    """Draw each picture with what was found into this folder."""
    masks: Path | None = None
    """Segmentation: write a PNG with the class or the region of each pixel into this folder."""
    coco: Path | None = None
    """Detection: write everything found into this file, as COCO's results."""
    annotations: Path | None = None
    """For --coco: the annotation file that has the pictures' ids; without it they count from 1."""
    json: bool = False
    """Print one JSON object a line."""
    csv: bool = False
    """Print CSV."""


def run(arguments: Sequence[str]) -> int:
    """Answer; go on past unreadable pictures, and end with status 1 if there was one."""
    settings = parse(
        PredictSettings,
        arguments,
        verb="predict",
        description="Say what is in pictures: classes, boxes, outlines or a map, by what the network was trained for. "
        "Unreadable pictures are named on standard error and give status 1.",
        examples=(
            "van predict runs/digits/best.safetensors digits/val/7",
            "van predict van_b2 cat.jpg dog.jpg --top 3 --json",
            "van predict runs/apples/best.safetensors tree.jpg --draw drawn --coco found.json",
            "van predict runs/streets/best.safetensors street.jpg --tile-px 512 --masks masks",
            "find . -name '*.jpg' | van predict runs/flowers/best.safetensors - --csv",
        ),
    )
    _check(settings)
    from van.cli.answers import Output, Writer, read_picture_ids
    from van.ops import keep_freed_memory
    from van.pictures import expand_pictures
    from van.predict import Predictor, load_network

    keep_freed_memory()
    paths = expand_pictures(_read_list(settings.pictures, sys.stdin))
    if not paths:
        raise UsageError("standard input lists no pictures")
    loaded = load_network(settings.model, device=settings.device)
    style = "json" if settings.json else "csv" if settings.csv else "text"
    ids = None if settings.annotations is None else read_picture_ids(settings.annotations, paths)
    output = Output(
        top=settings.top or 0,
        style=style,
        draw=settings.draw,
        masks=settings.masks,
        coco=settings.coco,
        picture_ids=ids,
    )
    output.check(loaded.task)
    predictor = Predictor(
        loaded,
        device=settings.device,
        min_score=settings.min_score,
        tile_px=settings.tile_px,
        multi_scale=settings.multi_scale,
    )
    for note in predictor.notes:
        print(note, file=sys.stderr)
    batch_size = settings.batch_size or (16 if loaded.task == "classify" else 1)
    writer = Writer(output)
    failed = _take_all(predictor.stream(paths, batch_size=batch_size), writer, as_json=settings.json)
    writer.finish()
    if failed:
        print(f"{failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _check(settings: PredictSettings) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    for name in ("top", "batch_size"):
        given = getattr(settings, name)
        if given is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; wanted at least 1")
    if settings.min_score is not None and not 0 <= settings.min_score <= 1:
        raise UsageError(f"--min-score is {settings.min_score}; wanted 0 to 1")
    if settings.json and settings.csv:
        raise UsageError("--json and --csv exclude each other; choose one")
    if not settings.pictures:
        raise UsageError("no pictures given; name files, folders or patterns, or - for a list on standard input")
    for name in ("draw", "masks"):
        folder = getattr(settings, name)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--{name} {folder} is a file; wanted a folder")
    if settings.annotations is not None and settings.coco is None:
        raise UsageError("--annotations is for --coco, which is not given; add it or leave both out")
    if settings.coco is not None and (settings.coco.suffix != ".json" or settings.coco.is_dir()):
        raise UsageError(f"--coco is {settings.coco}; wanted a file name ending in .json")


def _read_list(pictures: Iterable[str], stream: TextIO) -> list[str]:
    """The arguments, with - replaced by the lines of standard input."""
    listed: list[str] = []
    for picture in pictures:
        listed += [line for line in stream.read().splitlines() if line.strip()] if picture == "-" else [picture]
    return listed


def _take_all(answers: "Iterable[Answer | PictureError]", writer: "Writer", *, as_json: bool) -> int:
    """Print and write each answer as it comes; returns how many pictures could not be read."""
    failed = 0
    for answer in answers:
        try:
            if isinstance(answer, PictureError):
                raise answer
            writer.take(answer)
        except PictureError as error:  # at once, or gone since it was read
            failed += 1
            print(f"van: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"picture": error.name, "error": error.reason}), flush=True)
    return failed
