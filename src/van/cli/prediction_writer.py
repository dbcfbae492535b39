"""Printing and writing of predictions for ``van predict``: text, JSON, CSV, drawings, COCO results, masks."""

import csv
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from van.checkpoint import atomic_path, write_text
from van.errors import UsageError
from van.images import read_image
from van.predict import Prediction
from van.predictions import Classification, Detections, Segmentation

_COLUMNS: dict[type[Prediction], list[str]] = {
    Classification: ["image", "rank", "label", "score"],
    Detections: ["image", "rank", "label", "score", "x1", "y1", "x2", "y2"],
    Segmentation: ["image", "rank", "label", "score", "area", "fraction"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where predictions are printed and written.

    Args:
        top: number of classes, detections or segments to print per image; 0 is the default: 5 classes, or all others.
        style: text, json or csv, to standard output.
        draw: a folder for drawings.
        masks: a folder for masks.
        coco: a COCO results file.
        image_ids: the id of each image in that file, by file name; images are numbered from 1 if None.
    """

    top: int
    style: str
    draw: Path | None
    masks: Path | None
    coco: Path | None
    image_ids: Mapping[str, int] | None = None

    def check(self, task: str) -> None:
        """Check that a model for ``task`` can give these outputs.

        Raises:
            UsageError: it cannot, such as masks from a classifier.
        """
        if self.masks is not None and task not in ("segment", "panoptic"):
            raise UsageError(f"--masks: expected a model for segment or panoptic, got one for {task}")
        if self.coco is not None and task not in ("detect", "instances"):
            raise UsageError(f"--coco: expected a model for detect or instances, got one for {task}")


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


class PredictionWriter:
    """Prints and writes predictions, one after another."""

    def __init__(self, output: OutputOptions) -> None:
        self.output = output
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        self._has_header = False
        self._names: dict[str, Path] = {}
        self._coco_results: list[dict[str, Any]] = []
        self._count = 0

    def write(self, prediction: Prediction) -> None:
        """Print a prediction, and write its drawing and masks.

        Raises:
            ImageError: the image must be drawn, and was deleted since it was read.
            CheckpointError: a file cannot be written.
        """
        self._count += 1
        self._print(prediction)
        folders = (self.output.draw, self.output.masks)
        name = f"{output_stem(Path(prediction.name), self._names)}.png" if any(folders) else ""
        if self.output.draw is not None:
            image = read_image(prediction.name)
            drawing = (
                prediction.draw(image, self.output.top or 5)
                if isinstance(prediction, Classification)
                else prediction.draw(image)
            )
            with atomic_path(self.output.draw / name) as temporary:
                drawing.save(temporary, format="png")
        if self.output.masks is not None and isinstance(prediction, Segmentation):
            with atomic_path(self.output.masks / name) as temporary:
                prediction.to_image().save(temporary, format="png")
        if self.output.coco is not None and isinstance(prediction, Detections):
            file_name = Path(prediction.name).name
            ids = self.output.image_ids
            image_id = self._count if ids is None else ids[file_name]
            self._coco_results += [{**record, "file_name": file_name} for record in prediction.to_coco(image_id)]

    def close(self) -> None:
        """Write the COCO results file, which needs all predictions.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.output.coco is not None:
            write_text(self.output.coco, json.dumps(self._coco_results))

    def _print(self, prediction: Prediction) -> None:
        # Flushed after each image, so that a reader of a pipe gets every prediction at once.
        if self.output.style == "json":
            values = (
                prediction.to_dict(self.output.top or 5)
                if isinstance(prediction, Classification)
                else self._limit_detections(prediction).to_dict()
            )
            print(json.dumps(values), flush=True)
        elif self.output.style == "csv":
            if not self._has_header:
                self._csv.writerow(_COLUMNS[type(prediction)])
            self._has_header = True
            rows = csv_rows(self._limit_detections(prediction), self.output.top)
            self._csv.writerows([prediction.name, *row] for row in rows)
            sys.stdout.flush()
        else:
            text = ", ".join(_describe(self._limit_detections(prediction), self.output.top))
            empty = "no segments" if isinstance(prediction, Segmentation) else "no detections"
            print(f"{prediction.name}: {text or empty}", flush=True)

    def _limit_detections(self, prediction: Prediction) -> Prediction:
        if isinstance(prediction, Detections) and self.output.top:
            return prediction.top(self.output.top)
        return prediction


def csv_rows(prediction: Prediction, top: int) -> list[list[Any]]:
    """Return the CSV rows of a prediction without the image's name; detections and classes in order of score."""
    if isinstance(prediction, Classification):
        best = prediction.top(top or 5)
        return [[rank, ranked.label, f"{ranked.score:.6f}"] for rank, ranked in enumerate(best, start=1)]
    if isinstance(prediction, Detections):
        return [
            [rank, detection.label, f"{detection.score:.6f}", *(f"{coordinate:.2f}" for coordinate in detection.box)]
            for rank, detection in enumerate(prediction, start=1)
        ]
    return [
        [
            rank,
            segment["label"],
            "" if segment["score"] is None else f"{segment['score']:.6f}",
            segment["area"],
            f"{segment['fraction']:.6f}",
        ]
        for rank, segment in enumerate(_largest_segments(prediction, top), start=1)
    ]


def _describe(prediction: Prediction, top: int) -> list[str]:
    if isinstance(prediction, Classification):
        return [f"{ranked.label} {ranked.score:.1%}" for ranked in prediction.top(top or 5)]
    if isinstance(prediction, Detections):
        return [f"{detection.label} {detection.score:.1%} at {_format_box(detection.box)}" for detection in prediction]
    return [f"{segment['label']} {segment['fraction']:.1%}" for segment in _largest_segments(prediction, top)]


def _largest_segments(prediction: Segmentation, top: int) -> list[dict[str, Any]]:
    segments = sorted(prediction.to_dict()["segments"], key=lambda segment: -segment["area"])
    return segments[:top] if top else segments


def _format_box(box: tuple[float, ...]) -> str:
    x1, y1, x2, y2 = (round(coordinate) for coordinate in box)
    return f"{x1},{y1}-{x2},{y2}"


def output_stem(source: Path, used: dict[str, Path]) -> str:
    """Return FOLDER-STEM, with a number appended if another image of this run has that name.

    Args:
        source: path of the image.
        used: the names of this run in lower case, to which this one is added; file systems may ignore case.
    """
    stem = f"{source.parent.name}-{source.stem}".lstrip("-")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if used.setdefault(name.casefold(), source) == source)
