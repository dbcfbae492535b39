"""What annotators marked in pictures: boxes, outlines and maps, as every reader gives them.

Shapes: boxes x1, y1, x2, y2 in pixels of the picture, so that x2 - x1 is the width; masks (H, W) bool;
maps (H, W), one label for each pixel, ``IGNORED`` where there is none; sizes are (rows, columns).
What can be wrong with a box or an outline is told here, for every reader; crossing edges are found as in
de Berg et al., "Computational Geometry", chapter 2: edges are sorted, and only near ones are compared.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as run_lengths

from van.errors import DataError

IGNORED = -1
"""The label of pixels that neither train nor count."""
TOLERANCE_PX = 1.0
"""How far a box or an outline may reach over the picture's edge: annotators and formats round differently."""


WANTED = {"detect": "boxes", "instances": "masks", "segment": "map", "panoptic": "panoptic"}
"""What each task reads of a marked data set."""
WANTS = tuple(WANTED.values())
"""What can be read of one: boxes, masks, map, panoptic."""


_SINGLE = ("annotation ", "line ", "object ")
"""How the places of single marks begin."""
_TOLERATED = 0.05


class Problem(NamedTuple):
    """Something wrong in a data set: in which file, at which annotation (empty where none is meant), and what.

    ``kept`` says that the thing can be used all the same, and is.
    """

    file: str
    place: str
    what: str
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.file}{f', {self.place}' if self.place else ''}: {self.what}"


class Wrong(Exception):
    """What is wrong with one thing in a file; the reader, who knows where it is, makes a ``Problem`` of it."""


class Problems:
    """What readers do with something wrong: raise at once, or collect and go on without it.

    Args:
        collect: keep everything in ``found``; else the first problem is raised.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[Problem] = []

    def add(self, file: Path | str, what: str, *, place: str = "", kept: bool = False) -> None:
        """Note a problem; the reader then leaves the thing out, unless it is ``kept``.

        Args:
            file: where it is.
            what: what is wrong, with the value seen and the value wanted.
            place: such as ``annotation 17`` or ``line 3``.

        Raises:
            DataError: problems are not collected, and the thing cannot be used.
        """
        problem = Problem(str(file), place, what, kept)
        if not self.collect and not kept:
            raise DataError(f"{problem}; van data check lists everything that is wrong in a data set")
        self.found.append(problem)

    def tolerate(self, *, marks: int) -> list[Problem]:
        """What a run may begin with: single marks that were left out, up to a share of 5 %, and nothing else.

        Args:
            marks: how many are left.

        Returns:
            What is wrong with the single marks.

        Raises:
            DataError: something else is wrong, or too much.
        """
        small = [problem for problem in self.found if problem.place.startswith(_SINGLE) and not problem.kept]
        others = [problem for problem in self.found if not problem.place.startswith(_SINGLE) and not problem.kept]
        if others or len(small) > _TOLERATED * (marks + len(small)):
            first, count = (others or small)[0], len(others) + len(small)
            rest = f", and {count - 1} more" if count > 1 else ""
            raise DataError(f"{first}{rest}; van data check lists everything that is wrong in a data set")
        return small


Outline = list[list[float]] | Mapping[str, Any]
"""Polygons x1, y1, x2, y2, ... in pixels, or run lengths as COCO stores them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One thing marked in a picture.

    Args:
        label: its class, from 0.
        box: x1, y1, x2, y2.
        outline: its shape, or None where only a box was drawn.
        crowd: several things in one mark, which no detector is asked to tell apart.
        area: pixels, as annotated; that of the box where nothing was said.
        number: the annotation's id in its file.
    """

    label: int
    box: tuple[float, float, float, float]
    outline: Outline | None = None
    crowd: bool = False
    area: float = 0.0
    number: int = 0

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """(rows, columns) bool: the pixels of the thing; those of its box where there is no outline.

        Raises:
            DataError: the outline cannot be drawn.
        """
        rows, columns = size
        if self.outline is None:
            x1, y1, x2, y2 = (round(side) for side in self.box)
            mask = np.zeros(size, bool)
            mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
            return mask
        try:
            parts: Any = self.outline
            if isinstance(parts, list) or isinstance(parts["counts"], list):
                parts = run_lengths.frPyObjects(parts, rows, columns)
            merged = run_lengths.merge(parts) if isinstance(parts, list) else parts
            drawn = run_lengths.decode(merged).astype(bool)
        except Exception as error:  # the library raises nearly anything on a damaged outline
            raise DataError(f"annotation {self.number}: its outline cannot be drawn ({error})") from error
        if drawn.shape != size:
            raise DataError(f"annotation {self.number}: its mask is {drawn.shape}, the picture {size}")
        return drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """One colour of a panoptic map: its id there, its class from 0, and whether it is a crowd."""

    id: int
    label: int
    crowd: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkedPicture:
    """A picture with all that is marked in it.

    Args:
        path: the picture's file.
        name: what messages and result files call it.
        number: its id in the data set, as COCO's result files want it.
        marks: things, in the order of the file.
        map_path: a file with a value (semantic) or a colour (panoptic) for each pixel.
        segments: what the colours of a panoptic map mean.
        size: (rows, columns) that its marks were made for, (0, 0) where nothing was said.
    """

    path: Path
    name: str
    number: int
    marks: tuple[Mark, ...] = ()
    map_path: Path | None = None
    segments: tuple[Segment, ...] = ()
    size: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """A marked data set, or one part of it.

    Args:
        labels: class names.
        category_ids: the number that result files use for each class.
        things: for each class, whether it is countable; the others are stuff (panoptic only).
        map_values: the value in semantic maps of each class; other values are ``IGNORED``.
    """

    labels: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: tuple[MarkedPicture, ...]
    things: tuple[bool, ...] = ()
    map_values: tuple[int, ...] = ()


def check_box(box: Sequence[float], size: tuple[int, int]) -> None:
    """Refuse a box x1, y1, x2, y2 with no width or height, or that lies outside a picture of (rows, columns).

    Raises:
        Wrong: with both.
    """
    x1, y1, x2, y2 = box
    rows, columns = size
    shown = f"box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
    if not all(map(math.isfinite, box)):
        raise Wrong(f"its {shown} is no box; wanted finite numbers")
    if x2 <= x1 or y2 <= y1:
        raise Wrong(f"its {shown} has no {'width' if x2 <= x1 else 'height'}; wanted more than 0 pixels")
    far = min(x1, y1, columns - x2, rows - y2) < -TOLERANCE_PX
    if far or x2 <= 0 or y2 <= 0 or x1 >= columns or y1 >= rows:
        raise Wrong(f"its {shown} lies outside its picture, which is {columns} wide and {rows} high")


def check_outline(outline: Any, size: tuple[int, int]) -> None:
    """Refuse an outline that cannot be drawn on a picture of (rows, columns); ``crossing`` looks at its edges.

    Raises:
        Wrong: an empty or broken polygon, one outside the picture, or run lengths that do not fill it.
    """
    if isinstance(outline, Mapping):
        _check_run_lengths(outline, size)
        return
    if not isinstance(outline, list) or not outline:
        what = "empty" if isinstance(outline, list) else f"of type {type(outline).__name__}"
        raise Wrong(f"its outline is {what}; wanted polygons or run lengths")
    rows, columns = size
    for place, polygon in enumerate(outline):
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise Wrong(f"polygon {place} of its outline is no list of numbers")
        if not polygon:
            raise Wrong(f"polygon {place} of its outline is empty; wanted at least 3 points")
        if len(polygon) % 2:
            raise Wrong(
                f"polygon {place} of its outline has {len(polygon)} numbers; wanted an x and a y for each point"
            )
        if len(polygon) < 6:
            raise Wrong(f"polygon {place} of its outline has {len(polygon) // 2} points; wanted at least 3")
        xs, ys = polygon[::2], polygon[1::2]
        # NaN is in order with nothing, so it is told by itself
        inside = min(xs) >= -TOLERANCE_PX and max(xs) <= columns + TOLERANCE_PX
        inside = inside and min(ys) >= -TOLERANCE_PX and max(ys) <= rows + TOLERANCE_PX
        if not inside or not math.isfinite(math.fsum(polygon)):
            raise Wrong(
                f"polygon {place} of its outline lies outside its picture, which is {columns} wide and {rows} high, "
                "or holds what is no number"
            )


def crossing(polygons: Sequence[Sequence[float]]) -> list[int]:
    """Places of the polygons of which two edges cross, each in the midst of the other; edges that touch are fine.

    The test is exact. Time grows with the pairs of edges that share an x, not with all pairs.
    """
    found: set[int] = set()
    first, held = 0, 0
    for place, polygon in enumerate(polygons):
        held += len(polygon)
        if held >= _BATCH or place == len(polygons) - 1:
            found.update(first + number for number in _crossing(polygons[first : place + 1]))
            first, held = place + 1, 0
    return sorted(found)


_BATCH = 1 << 20
"""Coordinates, and then pairs of edges, that are looked at together."""


def _crossing(polygons: Sequence[Sequence[float]]) -> set[int]:
    lengths = np.array([len(polygon) // 2 for polygon in polygons])
    starts = np.fromiter(chain.from_iterable(polygons), float).reshape(-1, 2)
    owner = np.repeat(np.arange(len(polygons)), lengths)
    following = np.arange(1, len(starts) + 1)
    following[np.cumsum(lengths) - 1] -= lengths
    ends = starts[following]
    # polygons lie side by side on the line by which edges are sorted; rounding keeps that order
    shift = owner * (np.ptp(starts[:, 0]) + 1)
    order = np.argsort(np.minimum(starts[:, 0], ends[:, 0]) + shift)
    starts, ends, owner, shift = starts[order], ends[order], owner[order], shift[order]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    last = np.searchsorted(low[:, 0] + shift, high[:, 0] + shift, side="right")
    partners = np.maximum(last - np.arange(len(last)) - 1, 0)
    total = np.cumsum(partners)
    found: set[int] = set()
    begin = 0
    while begin < len(partners):
        done = total[begin] - partners[begin]
        end = max(begin + 1, int(np.searchsorted(total, done + _BATCH, side="right")))
        some = partners[begin:end]
        i = np.repeat(np.arange(begin, end), some)
        j = i + 1 + np.arange(len(i)) - np.repeat(np.cumsum(some) - some, some)
        near = (owner[i] == owner[j]) & (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        i, j = i[near], j[near]
        for one, other in ((starts, starts), (starts, ends), (ends, starts), (ends, ends)):
            apart = (one[i, 0] != other[j, 0]) | (one[i, 1] != other[j, 1])  # with a common end none crosses
            i, j = i[apart], j[apart]
        a, b, c, d = starts[i], ends[i], starts[j], ends[j]
        cross = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
        found.update(owner[i[cross]].tolist())
        begin = end
    return found


def _side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """On which side of the line from ``a`` to ``b`` lies ``c``: 1, -1, or 0 on the line; all (P, 2), exact."""
    (x, y), (u, v) = (b - a).T, (c - a).T
    left, right = x * v, y * u
    side = np.sign(left - right)
    exact_zeros = ((x == 0) | (v == 0)) & ((y == 0) | (u == 0))
    doubtful = np.abs(left - right) <= 1e-15 * (np.abs(left) + np.abs(right)) + 1e-290
    for place in np.flatnonzero(doubtful & ~exact_zeros):
        (ax, ay), (bx, by), (cx, cy) = ([Fraction(float(value)) for value in p[place]] for p in (a, b, c))
        exact = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        side[place] = (exact > 0) - (exact < 0)
    return side


def _check_run_lengths(outline: Mapping[str, Any], size: tuple[int, int]) -> None:
    for key in ("size", "counts"):
        if key not in outline:
            raise Wrong(f"{key} of its outline is missing; wanted size and counts")
    if outline["size"] != list(size):
        raise Wrong(f"size of its outline is {outline['size']!r}; wanted [{size[0]}, {size[1]}], as its picture")
    counts = outline["counts"]
    if isinstance(counts, str):
        runs = _unpacked(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        runs = counts
    else:
        raise Wrong("counts of its outline are neither whole numbers nor text")
    if any(run < 0 for run in runs):
        raise Wrong("counts of its outline do not add up: one is below 0")
    if sum(runs) != size[0] * size[1]:
        raise Wrong(
            f"counts of its outline do not add up: they cover {sum(runs)} pixels; "
            f"wanted {size[0] * size[1]}, as its picture is {size[1]} wide and {size[0]} high"
        )
    if not sum(runs[1::2]):
        raise Wrong("its outline covers no pixel")


def _unpacked(text: str) -> list[int]:
    """The counts in COCO's packed text: five bits a letter, the lowest first, as differences to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text.encode("utf-8"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 40:
            break
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    else:
        if not shift:
            return runs
    raise Wrong("counts of its outline are damaged: no run lengths as COCO packs them")
