"""How ``van predict`` prints and writes answers of every kind: as text, JSON, CSV, pictures, COCO results, masks."""

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
from van.pictures import read_picture
from van.predict import Answer
from van.results import Boxes, Classes, Masks

_COLUMNS: dict[type[Answer], list[str]] = {
    Classes: ["picture", "rank", "label", "probability"],
    Boxes: ["picture", "rank", "label", "score", "x1", "y1", "x2", "y2"],
    Masks: ["picture", "rank", "label", "score", "pixels", "share"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where answers go.

    Args:
        top: most classes or things of a picture that are shown; 0 is all of them.
        style: text, json or csv, to standard output.
        draw: a folder for drawings.
        masks: a folder for masks.
        coco: a COCO results file.
        picture_ids: for that file, the id of each picture by its file's name; their places from 1 if None.
    """

    top: int
    style: str
    draw: Path | None
    masks: Path | None
    coco: Path | None
    picture_ids: Mapping[str, int] | None = None

    def check(self, task: str) -> None:
        """Refuse what a network of that task cannot give, before it is asked.

        Raises:
            UsageError: such as masks from a network that classifies.
        """
        if self.masks is not None and task not in ("segment", "panoptic"):
            raise UsageError(f"--masks is for maps of regions; this network's task is {task}")
        if self.coco is not None and task not in ("detect", "instances"):
            raise UsageError(f"--coco is for boxes; this network's task is {task}")


def read_picture_ids(annotations: Path, pictures: Iterable[Path]) -> dict[str, int]:
    """The id of every picture in a COCO annotation file, by the name of its file.

    Raises:
        UsageError: the file cannot be read, or it lacks one of the pictures.
    """
    try:
        entries = json.loads(annotations.read_bytes())["images"]
        ids = {Path(entry["file_name"]).name: int(entry["id"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--annotations {annotations} cannot be read as COCO's ({error!r})") from error
    unknown = [path.name for path in pictures if path.name not in ids]
    if unknown:
        raise UsageError(f"--annotations {annotations} has no picture {unknown[0]}, and lacks {len(unknown)} in all")
    return ids


class Writer:
    """Takes one answer after the other."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        self._titled = False
        self._names: dict[str, Path] = {}
        self._results: list[dict[str, Any]] = []
        self._count = 0

    def take(self, answer: Answer) -> None:
        """Print it, and write what belongs into files.

        Raises:
            PictureError: its picture is gone since it was read, and was to be drawn.
            CheckpointError: a file cannot be written.
        """
        self._count += 1
        self._print(answer)
        folders = (self.output.draw, self.output.masks)
        name = f"{name_for(Path(answer.name), self._names)}.png" if any(folders) else ""
        if self.output.draw is not None:
            picture = read_picture(answer.name)
            drawn = answer.draw(picture, self.output.top or 5) if isinstance(answer, Classes) else answer.draw(picture)
            with atomic_path(self.output.draw / name) as temporary:
                drawn.save(temporary, format="png")
        if self.output.masks is not None and isinstance(answer, Masks):
            with atomic_path(self.output.masks / name) as temporary:
                answer.to_picture().save(temporary, format="png")
        if self.output.coco is not None and isinstance(answer, Boxes):
            file = Path(answer.name).name
            ids = self.output.picture_ids
            number = self._count if ids is None else ids[file]
            self._results += [{**found, "file_name": file} for found in answer.to_coco(number)]

    def finish(self) -> None:
        """Write the file that needs all answers.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.output.coco is not None:
            write_text(self.output.coco, json.dumps(self._results))

    def _print(self, answer: Answer) -> None:
        if self.output.style == "json":
            shown = (
                answer.to_dict(self.output.top or 5) if isinstance(answer, Classes) else self._topped(answer).to_dict()
            )
            print(json.dumps(shown), flush=True)
        elif self.output.style == "csv":
            if not self._titled:
                self._rows.writerow(_COLUMNS[type(answer)])
            self._titled = True
            self._rows.writerows([answer.name, *row] for row in enumerate_rows(self._topped(answer), self.output.top))
            sys.stdout.flush()
        else:
            said = ", ".join(_said(self._topped(answer), self.output.top))
            print(f"{answer.name}: {said or 'nothing found'}", flush=True)

    def _topped(self, answer: Answer) -> Answer:
        return answer.top(self.output.top) if isinstance(answer, Boxes) and self.output.top else answer


def enumerate_rows(answer: Answer, top: int) -> list[list[Any]]:
    """The rows of an answer as CSV has them, without the picture's name, the first first."""
    if isinstance(answer, Classes):
        return [[rank, one.label, f"{one.probability:.6f}"] for rank, one in enumerate(answer.top(top or 5), start=1)]
    if isinstance(answer, Boxes):
        return [
            [rank, thing.label, f"{thing.score:.6f}", *(f"{side:.2f}" for side in thing.box)]
            for rank, thing in enumerate(answer.found, start=1)
        ]
    return [
        [
            rank,
            one["label"],
            "" if one["score"] is None else f"{one['score']:.6f}",
            one["pixels"],
            f"{one['share']:.6f}",
        ]
        for rank, one in enumerate(_largest(answer, top), start=1)
    ]


def _said(answer: Answer, top: int) -> list[str]:
    if isinstance(answer, Classes):
        return [f"{one.label} {one.probability:.1%}" for one in answer.top(top or 5)]
    if isinstance(answer, Boxes):
        return [f"{thing.label} {thing.score:.1%} at {_corners(thing.box)}" for thing in answer.found]
    return [f"{one['label']} {one['share']:.1%}" for one in _largest(answer, top)]


def _largest(answer: Masks, top: int) -> list[dict[str, Any]]:
    regions = sorted(answer.to_dict()["regions"], key=lambda region: -region["pixels"])
    return regions[:top] if top else regions


def _corners(box: tuple[float, ...]) -> str:
    x1, y1, x2, y2 = (round(side) for side in box)
    return f"{x1},{y1}-{x2},{y2}"


def name_for(source: Path, taken: dict[str, Path]) -> str:
    """FOLDER-STEM, numbered where another picture of this run has that name already."""
    stem = f"{source.parent.name}-{source.stem}".lstrip("-")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if taken.setdefault(name.casefold(), source) == source)
