"""``van predict MODEL IMAGES...``: predict classes, boxes, masks or maps of images."""

import csv
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from van.cli.arguments import DISPLAY, INPUT, MODEL, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.errors import ImageError, UsageError
from van.settings import Positional

if TYPE_CHECKING:
    from van.predict import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Flags of ``van predict``."""

    model: Annotated[str, Positional("MODEL")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    images: Annotated[tuple[str, ...], Positional("IMAGES...", required=True)]
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
    from van.images import expand_images
    from van.model import Model
    from van.ops import enable_memory_reuse

    enable_memory_reuse()
    listed: list[str] = []
    for image in settings.images:
        listed += filter(str.strip, sys.stdin.read().splitlines()) if image == "-" else [image]
    paths = expand_images(listed)
    if not paths:
        raise UsageError("standard input: expected paths of images, one per line, got none")
    model = Model.load(settings.model, device=settings.device)
    writer = PredictionWriter(settings, model.task, paths)
    predictions = model.predict(
        paths,
        min_score=settings.min_score,
        tile_size=settings.tile_size,
        multi_scale=settings.multi_scale,
        batch_size=settings.batch_size,
        device=settings.device,
        errors="return",
        stream=True,
    )
    for note in model.notes:
        print(note, file=sys.stderr)
    failed = 0
    for prediction in predictions:
        try:
            if isinstance(prediction, ImageError):
                raise prediction
            writer.write(prediction)
        except ImageError as error:  # unreadable at first, or deleted before it could be drawn
            failed += 1
            print(f"van: {error}", file=sys.stderr)
            if settings.json:
                print(json.dumps({"image": error.name, "error": error.reason}), flush=True)
    writer.close()
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _check(settings: PredictSettings) -> None:
    """Check the flags before anything is loaded."""
    for name, value in (("top", settings.top), ("batch-size", settings.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected at least 1, got {value}")
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


class PredictionWriter:
    """Prints and writes predictions, one after another: text, JSON, CSV, drawings, masks, a COCO results file.

    Raises:
        UsageError: a model for ``task`` cannot give one of these outputs, such as masks from a classifier, or the
            annotation file does not list the images.
    """

    def __init__(self, settings: PredictSettings, task: str, images: Iterable[Path]) -> None:
        if settings.masks is not None and task not in ("segment", "panoptic"):
            raise UsageError(f"--masks: expected a model for segment or panoptic, got one for {task}")
        if settings.coco is not None and task not in ("detect", "instances"):
            raise UsageError(f"--coco: expected a model for detect or instances, got one for {task}")
        self.settings = settings
        self._image_ids = None if settings.annotations is None else read_image_ids(settings.annotations, images)
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        self._has_header = False
        self._names: dict[str, Path] = {}
        self._coco_results: list[dict[str, Any]] = []
        self._count = 0

    def write(self, prediction: "Prediction") -> None:
        """Print a prediction, and write its drawing and masks.

        Raises:
            ImageError: the image must be drawn, and was deleted since it was read.
            CheckpointError: a file cannot be written.
        """
        self._count += 1
        settings = self.settings
        self._print(prediction)
        if settings.draw is not None or settings.masks is not None:
            self._write_images(prediction)
        if settings.coco is not None:
            file_name = Path(prediction.name).name
            image_id = self._count if self._image_ids is None else self._image_ids[file_name]
            records = prediction.to_coco(image_id)  # pyrefly: ignore[missing-attribute] - of detections only
            self._coco_results += [{**record, "file_name": file_name} for record in records]

    def close(self) -> None:
        """Write the COCO results file, which needs all predictions.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.settings.coco is not None:
            from van.checkpoint import write_text

            write_text(self.settings.coco, json.dumps(self._coco_results))

    def _write_images(self, prediction: "Prediction") -> None:
        from van.checkpoint import atomic_path
        from van.images import read_image
        from van.predictions import Classification, Segmentation

        name = f"{output_stem(Path(prediction.name), self._names)}.png"
        drawings: list[tuple[Path, Any]] = []
        if self.settings.draw is not None:
            options = (self.settings.top or 5,) if isinstance(prediction, Classification) else ()
            drawings.append((self.settings.draw, prediction.draw(read_image(prediction.name), *options)))
        if self.settings.masks is not None and isinstance(prediction, Segmentation):
            drawings.append((self.settings.masks, prediction.to_image()))
        for folder, drawing in drawings:
            with atomic_path(folder / name) as temporary:
                drawing.save(temporary, format="png")

    def _print(self, prediction: "Prediction") -> None:
        # Flushed after each image, so that a reader of a pipe gets every prediction at once.
        plain, columns, rows, text = _describe(prediction, self.settings.top or 0)
        if self.settings.json:
            print(json.dumps(plain), flush=True)
        elif self.settings.csv:
            if not self._has_header:
                self._csv.writerow(["image", "rank", "label", "score", *columns])
            self._has_header = True
            self._csv.writerows([prediction.name, rank, *row] for rank, row in enumerate(rows, start=1))
            sys.stdout.flush()
        else:
            print(f"{prediction.name}: {text}", flush=True)


Description = tuple[dict[str, Any], list[str], list[list[Any]], str]
"""The plain values, the columns and rows of the CSV without image and rank, and the text of a prediction."""


def _describe(prediction: "Prediction", top: int) -> Description:
    """Describe a prediction; ``top`` limits the classes, detections and, except in JSON, segments; 0 is the default."""
    from van.predictions import Classification, Detections

    if isinstance(prediction, Classification):
        best = prediction.top(top or 5)
        rows = [[ranked.label, f"{ranked.score:.6f}"] for ranked in best]
        text = ", ".join(f"{ranked.label} {ranked.score:.1%}" for ranked in best)
        return prediction.to_dict(top or 5), [], rows, text
    if isinstance(prediction, Detections):
        shown = prediction.top(top) if top else prediction
        rows = [[one.label, f"{one.score:.6f}", *(f"{side:.2f}" for side in one.box)] for one in shown]
        text = ", ".join(
            f"{one.label} {one.score:.1%} at {one.box[0]:.0f},{one.box[1]:.0f}-{one.box[2]:.0f},{one.box[3]:.0f}"
            for one in shown
        )
        return shown.to_dict(), ["x1", "y1", "x2", "y2"], rows, text or "no detections"
    plain = prediction.to_dict()
    segments = sorted(plain["segments"], key=lambda segment: -segment["area"])[: top or None]
    rows = [
        [
            segment["label"],
            "" if segment["score"] is None else f"{segment['score']:.6f}",
            segment["area"],
            f"{segment['fraction']:.6f}",
        ]
        for segment in segments
    ]
    text = ", ".join(f"{segment['label']} {segment['fraction']:.1%}" for segment in segments)
    return plain, ["area", "fraction"], rows, text or "no segments"


def read_image_ids(annotations: Path, images: Iterable[Path]) -> dict[str, int]:
    """Return the ids of all images in a COCO annotation file, by file name.

    Raises:
        UsageError: the file cannot be read, or lacks one of ``images``.
    """
    try:
        records = json.loads(annotations.read_bytes())["images"]
        ids = {Path(record["file_name"]).name: int(record["id"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--annotations: {annotations} cannot be read as a COCO annotation file ({error!r})"
        ) from error
    missing = [path.name for path in images if path.name not in ids]
    if missing:
        raise UsageError(
            f"--annotations: {annotations} has no entry for {missing[0]}; it lacks {len(missing)} of the images"
        )
    return ids


def output_stem(source: Path, used: dict[str, Path]) -> str:
    """Return FOLDER-STEM, with a number appended if another image of this run has that name.

    Args:
        source: path of the image.
        used: the names of this run in lower case, to which this one is added; file systems may ignore case.
    """
    stem = f"{source.parent.name}-{source.stem}".lstrip("-")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if used.setdefault(name.casefold(), source) == source)
