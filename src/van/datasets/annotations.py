"""Annotation types that every dataset reader returns: boxes, polygons, run lengths and masks; and their validation.

Shapes: boxes x1, y1, x2, y2 in pixels of the image, so that x2 - x1 is the width; instance masks (H, W) bool;
semantic masks (H, W), one class index per pixel, ``IGNORE_INDEX`` for unlabeled pixels; sizes are (rows, columns).
Self-intersections are found as in de Berg et al., "Computational Geometry", chapter 2: edges are sorted, and only
near ones are compared.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from van.errors import DataError

IGNORE_INDEX = -1
"""The class index of pixels that count neither in the loss nor in metrics."""
TOLERANCE_PX = 1.0
"""How far a box or polygon may reach beyond the image's edge: annotators and formats round differently."""
CHECK_HINT = 'run "van data check DIR" for all issues'
"""End of every error that reports the first of possibly many issues."""

TASK_TARGETS = {"detect": "boxes", "instances": "masks", "segment": "semantic", "panoptic": "panoptic"}
"""The target type that each task trains on."""
TARGET_TYPES = tuple(TASK_TARGETS.values())
"""Target types that a dataset can be read as: boxes, masks, semantic, panoptic."""

_SINGLE_ANNOTATION_PREFIXES = ("annotation ", "line ", "object ")
"""Beginnings of the locations of single annotations."""
_MAX_SKIPPED_FRACTION = 0.05


class Issue(NamedTuple):
    """One defect of a dataset.

    ``location`` is the annotation, line or image in the file, empty for the file itself. ``is_warning``: the
    annotation is kept and used despite the defect.
    """

    file: str
    location: str
    message: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {f'{self.location}: ' if self.location else ''}{self.message}"


class InvalidAnnotation(Exception):
    """A defect of one annotation; the reader, which knows its file and location, turns it into an ``Issue``."""


class Issues:
    """Issues that a reader reports: raised at once, or collected while the reader skips what is invalid.

    Args:
        collect: keep every issue in ``collected``; otherwise the first error is raised.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.collected: list[Issue] = []

    def add(self, file: Path | str, message: str, *, location: str = "", is_warning: bool = False) -> None:
        """Report an issue; the reader then skips the annotation, unless it is a warning.

        Args:
            file: the file that has it.
            message: the value expected and the value got.
            location: such as ``annotation 17`` or ``line 3``.
            is_warning: the annotation can be used anyway.

        Raises:
            DataError: issues are not collected, and this one is no warning.
        """
        issue = Issue(str(file), location, message, is_warning)
        if not self.collect and not is_warning:
            raise DataError(f"{issue}; {CHECK_HINT}")
        self.collected.append(issue)

    def raise_unless_minor(self, *, num_annotations: int) -> list[Issue]:
        """Raise unless the only errors are single skipped annotations, at most 5 % of all.

        Args:
            num_annotations: how many annotations were read successfully.

        Returns:
            The issues of the skipped annotations.

        Raises:
            DataError: anything else is invalid, or more than 5 % of the annotations are.
        """
        errors = [issue for issue in self.collected if not issue.is_warning]
        skipped = [issue for issue in errors if issue.location.startswith(_SINGLE_ANNOTATION_PREFIXES)]
        others = [issue for issue in errors if not issue.location.startswith(_SINGLE_ANNOTATION_PREFIXES)]
        if others or len(skipped) > _MAX_SKIPPED_FRACTION * (num_annotations + len(skipped)):
            first = (others or skipped)[0]
            rest = f" (and {len(errors) - 1} more issues)" if len(errors) > 1 else ""
            raise DataError(f"{first}{rest}; {CHECK_HINT}")
        return skipped


PolygonsOrRle = list[list[float]] | Mapping[str, Any]
"""COCO's ``segmentation``: polygons x1, y1, x2, y2, ... in pixels, or run lengths (RLE)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotated object of an image.

    Args:
        label: class index.
        box: x1, y1, x2, y2 in pixels.
        segmentation: polygons or run lengths, None for a box alone.
        crowd: a group of objects under one annotation (COCO's ``iscrowd``); ignored by training and metrics.
        area: in pixels, as annotated; the box's area where the file gives none.
        id: the annotation's id in its file.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: PolygonsOrRle | None = None
    crowd: bool = False
    area: float = 0.0
    id: int = 0

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the object's pixels as (rows, columns) bool; the filled box where there is no segmentation.

        Raises:
            DataError: the segmentation cannot be decoded, or has another size.
        """
        rows, columns = size
        if self.segmentation is None:
            x1, y1, x2, y2 = (round(side) for side in self.box)
            mask = np.zeros(size, bool)
            # boxes may reach over the edge by TOLERANCE_PX; a negative index would count from the other side
            mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
            return mask
        try:
            rle: Any = self.segmentation
            if isinstance(rle, list) or isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, rows, columns)
            merged = coco_mask.merge(rle) if isinstance(rle, list) else rle
            mask = coco_mask.decode(merged).astype(bool)
        except Exception as error:  # the library raises nearly anything on a damaged segmentation
            raise DataError(f"annotation {self.id}: segmentation cannot be decoded ({error})") from error
        if mask.shape != size:
            raise DataError(f"annotation {self.id}: expected a mask of shape {size}, as the image, got {mask.shape}")
        return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentAnnotation:
    """One segment of a panoptic mask: its id (encoded as a color), its class index, and whether it is a crowd."""

    id: int
    label: int
    crowd: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image of a dataset and its annotations.

    Args:
        path: the image file.
        name: its name in messages and result files.
        id: its id in the dataset, as COCO's result files use it.
        annotations: objects, in the order of the file.
        mask_path: file of the semantic mask (one class value per pixel) or the panoptic mask (one color per segment).
        segments: the segments of a panoptic mask.
        size: (rows, columns) of the image according to the annotation file, (0, 0) where it has none.
    """

    path: Path
    name: str
    id: int
    annotations: tuple[Annotation, ...] = ()
    mask_path: Path | None = None
    segments: tuple[SegmentAnnotation, ...] = ()
    size: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedDataset:
    """A dataset for detection or segmentation, or one split of it.

    Args:
        class_names: names of the classes.
        category_ids: the category id of each class in result files.
        images: the images with their annotations.
        things: for each class, whether it is a thing (countable) rather than stuff; panoptic only.
        mask_values: the pixel value of each class in semantic masks; other values are ``IGNORE_INDEX``.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    things: tuple[bool, ...] = ()
    mask_values: tuple[int, ...] = ()


def check_box(box: Sequence[float], size: tuple[int, int]) -> None:
    """Check that a box x1, y1, x2, y2 has an area and lies in an image of (rows, columns).

    Raises:
        InvalidAnnotation: it is not finite, has no width or height, or lies outside by more than ``TOLERANCE_PX``.
    """
    x1, y1, x2, y2 = box
    rows, columns = size
    got = f"got ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
    if not all(map(math.isfinite, box)):
        raise InvalidAnnotation(f"box: expected finite numbers, {got}")
    if x2 <= x1 or y2 <= y1:
        raise InvalidAnnotation(f"box: expected a {'width' if x2 <= x1 else 'height'} above 0 px, {got}")
    far = min(x1, y1, columns - x2, rows - y2) < -TOLERANCE_PX
    if far or x2 <= 0 or y2 <= 0 or x1 >= columns or y1 >= rows:
        raise InvalidAnnotation(f"box: expected to lie in the image of {columns}x{rows} px (width x height), {got}")


def check_segmentation(segmentation: Any, size: tuple[int, int]) -> None:
    """Check that polygons or run lengths can be drawn on an image of (rows, columns).

    Edges that cross are no error; see ``find_self_intersections``.

    Raises:
        InvalidAnnotation: a polygon is empty, invalid or outside the image, or run lengths do not cover the image.
    """
    if isinstance(segmentation, Mapping):
        _check_rle(segmentation, size)
        return
    if not isinstance(segmentation, list) or not segmentation:
        got = "an empty list" if isinstance(segmentation, list) else f"a {type(segmentation).__name__}"
        raise InvalidAnnotation(f"segmentation: expected polygons or run lengths, got {got}")
    rows, columns = size
    for index, polygon in enumerate(segmentation):
        name = f"segmentation: polygon {index}"
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise InvalidAnnotation(f"{name}: expected a list of numbers, got {_abbreviate(polygon)}")
        if not polygon:
            raise InvalidAnnotation(f"{name}: expected at least 3 points, got 0 (empty)")
        if len(polygon) % 2:
            raise InvalidAnnotation(f"{name}: expected an x and a y for each point, got {len(polygon)} numbers")
        if len(polygon) < 6:
            raise InvalidAnnotation(f"{name}: expected at least 3 points, got {len(polygon) // 2}")
        xs, ys = polygon[::2], polygon[1::2]
        inside = min(xs) >= -TOLERANCE_PX and max(xs) <= columns + TOLERANCE_PX
        inside = inside and min(ys) >= -TOLERANCE_PX and max(ys) <= rows + TOLERANCE_PX
        # NaN compares false with everything, min and max may pass over it: the sum does not
        if not inside or not math.isfinite(math.fsum(polygon)):
            raise InvalidAnnotation(
                f"{name}: expected finite points in the image of {columns}x{rows} px (width x height), "
                f"got {_abbreviate(polygon)}"
            )


def find_self_intersections(polygons: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of polygons in which two edges properly cross; edges that only touch do not count.

    The test is exact. Its time grows with the pairs of edges whose x ranges overlap, not with all pairs.
    """
    crossed: set[int] = set()
    first, coordinates = 0, 0
    for index, polygon in enumerate(polygons):
        coordinates += len(polygon)
        if coordinates >= _BATCH or index == len(polygons) - 1:
            crossed.update(first + offset for offset in _find_in_batch(polygons[first : index + 1]))
            first, coordinates = index + 1, 0
    return sorted(crossed)


_BATCH = 1 << 20
"""Coordinates, and then pairs of edges, that are processed at once; bounds the memory."""


def _find_in_batch(polygons: Sequence[Sequence[float]]) -> set[int]:
    """Return the indices of self-intersecting polygons, all edges compared at once by a sweep over x."""
    lengths = np.array([len(polygon) // 2 for polygon in polygons])
    starts = np.fromiter(chain.from_iterable(polygons), float).reshape(-1, 2)
    owner = np.repeat(np.arange(len(polygons)), lengths)
    following = np.arange(1, len(starts) + 1)
    following[np.cumsum(lengths) - 1] -= lengths
    ends = starts[following]
    # shift polygons so that their x ranges do not overlap: edges of different polygons are then never paired
    shift = owner * (np.ptp(starts[:, 0]) + 1)
    order = np.argsort(np.minimum(starts[:, 0], ends[:, 0]) + shift)
    starts, ends, owner, shift = starts[order], ends[order], owner[order], shift[order]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    last = np.searchsorted(low[:, 0] + shift, high[:, 0] + shift, side="right")
    partners = np.maximum(last - np.arange(len(last)) - 1, 0)
    total = np.cumsum(partners)
    crossed: set[int] = set()
    begin = 0
    while begin < len(partners):
        done = total[begin] - partners[begin]
        end = max(begin + 1, int(np.searchsorted(total, done + _BATCH, side="right")))
        counts = partners[begin:end]
        i = np.repeat(np.arange(begin, end), counts)
        j = i + 1 + np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        near = (owner[i] == owner[j]) & (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        i, j = i[near], j[near]
        for one, other in ((starts, starts), (starts, ends), (ends, starts), (ends, ends)):
            apart = (one[i, 0] != other[j, 0]) | (one[i, 1] != other[j, 1])  # edges with a common end only touch
            i, j = i[apart], j[apart]
        a, b, c, d = starts[i], ends[i], starts[j], ends[j]
        cross = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
        crossed.update(owner[i[cross]].tolist())
        begin = end
    return crossed


def _side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the side of the line from ``a`` to ``b`` on which ``c`` lies: 1, -1, or 0 on it; all (P, 2), exact."""
    (x, y), (u, v) = (b - a).T, (c - a).T
    left, right = x * v, y * u
    side = np.sign(left - right)
    exact_zeros = ((x == 0) | (v == 0)) & ((y == 0) | (u == 0))
    doubtful = np.abs(left - right) <= 1e-15 * (np.abs(left) + np.abs(right)) + 1e-290
    # floats decide nearly all; where rounding could flip the sign, decide by fractions
    for index in np.flatnonzero(doubtful & ~exact_zeros):
        (ax, ay), (bx, by), (cx, cy) = ([Fraction(float(value)) for value in p[index]] for p in (a, b, c))
        exact = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        side[index] = (exact > 0) - (exact < 0)
    return side


def _check_rle(rle: Mapping[str, Any], size: tuple[int, int]) -> None:
    for key in ("size", "counts"):
        if key not in rle:
            raise InvalidAnnotation(f"segmentation: expected size and counts, got no {key}")
    if rle["size"] != list(size):
        raise InvalidAnnotation(f"segmentation: expected size {list(size)}, as the image, got {rle['size']!r}")
    counts = rle["counts"]
    if isinstance(counts, str):
        runs = _decode_counts(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        runs = counts
    else:
        raise InvalidAnnotation(f"segmentation: counts: expected whole numbers or text, got {_abbreviate(counts)}")
    if any(run < 0 for run in runs):
        raise InvalidAnnotation(f"segmentation: counts: expected at least 0 each, got {min(runs)}")
    if sum(runs) != size[0] * size[1]:
        raise InvalidAnnotation(
            f"segmentation: counts: expected a sum of {size[0] * size[1]} pixels for an image of "
            f"{size[1]}x{size[0]} px (width x height), got {sum(runs)}"
        )
    if not sum(runs[1::2]):
        raise InvalidAnnotation("segmentation: expected at least 1 pixel, got an empty mask")


def _decode_counts(text: str) -> list[int]:
    """Decode COCO's compressed counts: five bits per character, lowest first, as differences to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text.encode("utf-8"):
        bits = character - 48
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
    raise InvalidAnnotation(f"segmentation: counts: expected COCO's compressed run lengths, got {_abbreviate(text)}")


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
