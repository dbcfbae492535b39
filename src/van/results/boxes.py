"""The answer of a detector for one picture: things, each with a class, a score, a box and perhaps a mask.

Shapes: boxes x1, y1, x2, y2 in pixels of the picture, so that x2 - x1 is the width; masks (rows, columns) bool.
Result files are COCO's: cocodataset.org, "Results format".
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.results.drawing import (
    Chip,
    Rectangle,
    class_colour,
    draw_chip,
    draw_frame,
    enlarged,
    frame_of,
    label_chip,
    magnified,
    paint_mask,
    style_for,
)
from van.results.placing import place_chip

_MOST_LABELS = 300
"""As many as a detector commonly gives; the work grows with their square."""


class FoundThing(NamedTuple):
    """One thing of an answer, with its class's place in the label list; ``mask`` is None where only boxes are found."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """The things found in a picture, sorted best first whatever order they came in; equal ones keep theirs.

    Two answers are compared by ``to_dict``: masks are arrays.

    Args:
        labels: names of the classes.
        found: the things.
        size: rows and columns of the picture.
        name: the picture's path or other name.
        category_ids: the number that result files use for each class; its place where there are none.

    Raises:
        ShapeError: a class, a score, a box or a mask cannot be; the message names the thing by its place in ``found``.
    """

    labels: tuple[str, ...]
    found: tuple[FoundThing, ...]
    size: tuple[int, int]
    name: str = "picture"
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ShapeError(f"size is {self.size}; wanted rows and columns of the picture, each at least 1")
        if self.category_ids and len(self.category_ids) != len(self.labels):
            raise ShapeError(f"{len(self.category_ids)} category_ids for {len(self.labels)} labels")
        plain = [self._checked(place, thing) for place, thing in enumerate(self.found)]
        object.__setattr__(self, "found", tuple(sorted(plain, key=lambda thing: -thing.score)))

    def above(self, score: float) -> "Boxes":
        """The things whose score is at least ``score``.

        Raises:
            ShapeError: ``score`` is not between 0 and 1.
        """
        if not 0 <= score <= 1:
            raise ShapeError(f"score is {score}; wanted 0 to 1")
        return dataclasses.replace(self, found=tuple(thing for thing in self.found if thing.score >= score))

    def top(self, k: int) -> "Boxes":
        """The ``k`` best things (all of them if there are fewer).

        Raises:
            ShapeError: ``k`` is less than 1.
        """
        if k < 1:
            raise ShapeError(f"k is {k}; wanted at least 1")
        return dataclasses.replace(self, found=self.found[:k])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the picture's name and size, and its things; masks as COCO's compressed run lengths."""
        things = []
        for thing in self.found:
            plain: dict[str, Any] = {key: getattr(thing, key) for key in ("label", "index", "score")}
            plain["box"] = list(thing.box)
            if thing.mask is not None:
                plain |= {"area": int(thing.mask.sum()), "mask": _run_lengths(thing.mask)}
            things.append(plain)
        return {"picture": self.name, "width": self.size[1], "height": self.size[0], "things": things}

    def to_coco(self, picture_number: int) -> list[dict[str, Any]]:
        """The entries of a COCO results file; ``picture_number`` is the picture's id in the data set."""
        entries = []
        for thing in self.found:
            x1, y1, x2, y2 = thing.box
            entry: dict[str, Any] = {
                "image_id": int(picture_number),
                "category_id": int(self.category_ids[thing.index]) if self.category_ids else thing.index,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": thing.score,
            }
            if thing.mask is not None:
                entry["segmentation"] = _run_lengths(thing.mask)
            entries.append(entry)
        return entries

    def draw(self, picture: Image.Image, *, scores: bool = True) -> Image.Image:
        """A copy of ``picture`` with masks, boxes and labels, the best on top; small pictures are enlarged.

        The best 300 have labels, unless one would lie mostly on others or the picture is too small for it.
        ``scores`` stand in the labels; annotators gave none.

        Raises:
            ShapeError: the picture's size is not that of the answer.
        """
        pixels, scale = enlarged(picture, self.size)
        height, width = pixels.shape[:2]
        font_px, line_px = style_for(width, height)
        worst_first = self.found[::-1]
        for thing in worst_first:
            if thing.mask is not None:
                paint_mask(pixels, magnified(thing.mask, scale), class_colour(thing.index), max(1, line_px // 2))
        sheet = Image.fromarray(pixels)
        draw = ImageDraw.Draw(sheet)
        frames = [frame_of([side * scale for side in thing.box], sheet.size, line_px) for thing in self.found]
        for thing, frame in zip(worst_first, reversed(frames), strict=True):
            draw_frame(draw, frame, class_colour(thing.index), line_px)
        for chip, place in reversed(self._placed_chips(frames[:_MOST_LABELS], sheet.size, font_px, scores=scores)):
            draw_chip(draw, chip, place, font_px)
        return sheet

    def _placed_chips(
        self, frames: Sequence[Rectangle], bounds: tuple[int, int], font_px: int, *, scores: bool
    ) -> list[tuple[Chip, tuple[int, int]]]:
        """Labels for the things that have ``frames``, and their upper left corners; the best thing chooses first."""
        covered = np.array(frames).reshape(-1, 4)
        placed: list[tuple[Chip, tuple[int, int]]] = []
        taken = np.empty((0, 4), np.int64)
        for thing, frame in zip(self.found, frames, strict=False):
            room_px = min(bounds[0], max(frame[2] - frame[0], 14 * font_px))
            score = thing.score if scores else None
            chip = label_chip(thing.label, score, class_colour(thing.index), font_px, room_px)
            place = place_chip(chip.size, frame, bounds, taken, covered)
            if place is not None:
                placed.append((chip, place))
                corner = np.array([[*place, place[0] + chip.size[0], place[1] + chip.size[1]]])
                taken = np.concatenate([taken, corner])
        return placed

    def _checked(self, place: int, thing: FoundThing) -> FoundThing:
        """The thing in plain numbers, if it is one."""
        where = f"thing {place}"
        if not 0 <= thing.index < len(self.labels):
            raise ShapeError(f"the index of {where} is {thing.index}; wanted 0 to {len(self.labels) - 1}, its label's")
        score = float(thing.score)
        if not 0 <= score <= 1.001:  # rounding is forgiven, NaN is not
            raise ShapeError(f"the score of {where} is {score}; wanted 0 to 1, so look at the weights")
        box = tuple(float(side) for side in thing.box)
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
            raise ShapeError(f"the box of {where} is {box}; wanted finite x1, y1, x2, y2, x1 <= x2 and y1 <= y2")
        if thing.mask is not None and (thing.mask.shape != tuple(self.size) or thing.mask.dtype != np.bool_):
            raise ShapeError(
                f"the mask of {where} is {thing.mask.dtype} {thing.mask.shape}; wanted bool {tuple(self.size)}, "
                "a value for each pixel of the picture"
            )
        return FoundThing(thing.label, int(thing.index), min(score, 1.0), box, thing.mask)


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, as JSON can hold them."""
    from faster_coco_eval.core.mask import encode  # what only boxes are found in does without

    packed = encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode("ascii")}
