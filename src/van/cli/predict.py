"""``van predict MODEL IMAGES...``: predict classes, boxes, masks or maps of images."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import tyro

from van.cli.arguments import DISPLAY, INPUT, MODEL, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.errors import ImageError, UsageError

if TYPE_CHECKING:
    from van.cli.prediction_writer import PredictionWriter
    from van.predict import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Flags of ``van predict``."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...", help_behavior_hint="(required)")
    ]
    """Files, folders, patterns in quotes, or - to read paths from standard input, one a line."""
    top: int | None = None
    """Number of classes, detections or segments to print per image; 5 classes, all others if not given."""
    min_score: float | None = None
    """Detection: minimum score of a detection; 0.3 if not given."""
    tile_size: int = 0
    """Semantic segmentation: tile side in pixels for sliding-window inference at full size; 0 for the whole image."""
    multi_scale: bool = False
    """Semantic segmentation: average over six scales with horizontal flips."""
    batch_size: int | None = None
    """Images per batch; 16 for classification, 1 for other tasks if not given."""
    device: str | None = None
    """cpu, cuda or mps; the GPU if available."""
    draw: Path | None = None
    """Write each image with its prediction drawn on it to this folder."""
    masks: Path | None = None
    """Segmentation: write a PNG with the class or the segment of each pixel to this folder."""
    coco: Path | None = None
    """Detection: write all detections to this COCO results file."""
    annotations: Path | None = None
    """For --coco: the annotation file with the images' ids; they are numbered from 1 if not given."""
    json: bool = False
    """Print one JSON object per line."""
    csv: bool = False
    """Print CSV."""


COMMAND = Command(
    "predict",
    PredictSettings,
    summary=VERBS["predict"],
    details="The output depends on the model's task. Unreadable images are reported on standard error and set status "
    "1.",
    examples=(
        "van predict runs/digits/best.safetensors digits/val/7",
        "van predict van_b2 cat.jpg dog.jpg --top 3 --json",
        "van predict runs/apples/best.safetensors tree.jpg --draw drawn --coco detections.json",
        "van predict runs/streets/best.safetensors street.jpg --tile-size 512 --masks masks",
        "find . -name '*.jpg' | van predict runs/flowers/best.safetensors - --csv",
    ),
    groups={
        INPUT: ("model", "images"),
        MODEL: ("top", "min_score", "tile_size", "multi_scale"),
        OUTPUT: ("draw", "masks", "coco", "annotations"),
        RUNTIME: ("batch_size", "device"),
        DISPLAY: ("json", "csv"),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Predict all images; return 1 if an image could not be read, else 0."""
    settings = parse(COMMAND, arguments)
    _check(settings)
    from van.cli.prediction_writer import OutputOptions, PredictionWriter, read_image_ids
    from van.images import expand_images
    from van.ops import enable_memory_reuse
    from van.predict import Predictor, load_network

    enable_memory_reuse()
    paths = expand_images(_read_list(settings.images, sys.stdin))
    if not paths:
        raise UsageError("standard input: expected paths of images, one per line, got none")
    loaded = load_network(settings.model, device=settings.device)
    style = "json" if settings.json else "csv" if settings.csv else "text"
    ids = None if settings.annotations is None else read_image_ids(settings.annotations, paths)
    output = OutputOptions(
        top=settings.top or 0,
        style=style,
        draw=settings.draw,
        masks=settings.masks,
        coco=settings.coco,
        image_ids=ids,
    )
    output.check(loaded.task)
    predictor = Predictor(
        loaded,
        device=settings.device,
        min_score=settings.min_score,
        tile_size=settings.tile_size,
        multi_scale=settings.multi_scale,
    )
    for note in predictor.notes:
        print(note, file=sys.stderr)
    batch_size = settings.batch_size or (16 if loaded.task == "classify" else 1)
    writer = PredictionWriter(output)
    failed = _write_all(predictor.stream(paths, batch_size=batch_size), writer, as_json=settings.json)
    writer.close()
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _check(settings: PredictSettings) -> None:
    """Check the flags before anything is loaded."""
    for name in ("top", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if settings.min_score is not None and not 0 <= settings.min_score <= 1:
        raise UsageError(f"--min-score: expected 0 to 1, got {settings.min_score}")
    if settings.json and settings.csv:
        raise UsageError("--json and --csv exclude each other; choose one")
    if not settings.images:
        raise UsageError("IMAGES: expected files, folders or patterns, or - for a list on standard input, got none")
    for name in ("draw", "masks"):
        folder = getattr(settings, name)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--{name}: expected a folder, got the file {folder}")
    if settings.annotations is not None and settings.coco is None:
        raise UsageError("--annotations requires --coco; add it or leave both out")
    if settings.coco is not None and (settings.coco.suffix != ".json" or settings.coco.is_dir()):
        raise UsageError(f"--coco: expected a file name ending in .json, got {settings.coco}")


def _read_list(images: Iterable[str], stream: TextIO) -> list[str]:
    """Return the arguments with - replaced by the lines of standard input."""
    listed: list[str] = []
    for image in images:
        listed += [line for line in stream.read().splitlines() if line.strip()] if image == "-" else [image]
    return listed


def _write_all(predictions: "Iterable[Prediction | ImageError]", writer: "PredictionWriter", *, as_json: bool) -> int:
    """Print and write each prediction as soon as it is ready; return the number of unreadable images."""
    failed = 0
    for prediction in predictions:
        try:
            if isinstance(prediction, ImageError):
                raise prediction
            writer.write(prediction)
        except ImageError as error:  # unreadable at first, or deleted before it could be drawn
            failed += 1
            print(f"van: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"image": error.name, "error": error.reason}), flush=True)
    return failed
