"""Annotations that every dataset reader returns: boxes, polygons, run lengths and masks; and their validation.

Shapes: boxes x1, y1, x2, y2 in pixels of the image, so that x2 - x1 is the width; instance masks (H, W) bool;
semantic masks (H, W), one class index per pixel, ``IGNORE_INDEX`` for unlabeled pixels; sizes are (rows, columns).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from faster_coco_eval.core import mask as coco_mask

from van.errors import DataError

IGNORE_INDEX = -1
"""The class index of pixels that count neither in the loss nor in metrics."""
NO_VALUE = -1
"""The mask value of a class that has no pixels in a dataset."""
TOLERANCE_PX = 1.0
"""How far a box or polygon may reach beyond the image's edge: annotators and formats round differently."""
CHECK_HINT = 'run "van data check DIR" for all issues'
"""End of every error that reports the first of possibly many issues."""

SPLITS = ("train", "val")
VALIDATION_NAMES = ("val", "valid", "validation", "test")
"""Names of the validation split in files and folders, the preferred one first."""
TASK_TARGETS = {"detect": "boxes", "instances": "masks", "segment": "semantic", "panoptic": "panoptic"}
"""The target type that each task trains on."""
TARGET_TYPES = tuple(TASK_TARGETS.values())
"""Target types that a dataset can be read as: boxes, masks, semantic, panoptic."""
CLASSES = "classes"
"""The target type of class folders; each image has one annotation, whose box means nothing."""

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
    """Issues that a reader reports: raised at once, or with ``collect`` kept while the reader skips what is invalid."""

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.collected: list[Issue] = []

    def add(self, file: Path | str, message: object, *, location: str = "", is_warning: bool = False) -> None:
        """Report an issue, see ``Issue``; the reader then skips the annotation, unless it is a warning.

        Raises:
            DataError: issues are not collected, and this one is no warning.
        """
        issue = Issue(str(file), location, str(message), is_warning)
        if not self.collect and not is_warning:
            raise DataError(f"{issue}; {CHECK_HINT}")
        self.collected.append(issue)

    def raise_unless_minor(self, *, num_annotations: int) -> list[Issue]:
        """Return the issues of single skipped annotations, if these are the only errors and few.

        Raises:
            DataError: anything else is invalid, or more than 5 % of the annotations are, beside ``num_annotations``
                that were read.
        """
        errors = [issue for issue in self.collected if not issue.is_warning]
        skipped = [issue for issue in errors if issue.location.startswith(_SINGLE_ANNOTATION_PREFIXES)]
        if len(skipped) < len(errors) or len(skipped) > _MAX_SKIPPED_FRACTION * (num_annotations + len(skipped)):
            first = next((issue for issue in errors if issue not in skipped), errors[0])
            rest = f" (and {len(errors) - 1} more issues)" if len(errors) > 1 else ""
            raise DataError(f"{first}{rest}; {CHECK_HINT}")
        return skipped


Box = tuple[float, float, float, float]
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
    box: Box
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
            mask = coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle).astype(bool)
        except Exception as error:  # the library raises nearly anything on a damaged segmentation
            raise DataError(f"annotation {self.id}: segmentation cannot be decoded ({error})") from error
        if mask.shape != size:
            raise DataError(f"annotation {self.id}: expected a mask of shape {size}, as the image, got {mask.shape}")
        return mask


class SegmentAnnotation(NamedTuple):
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
        unlabeled_values: values of semantic masks that are not classes and are expected all the same.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    things: tuple[bool, ...] = ()
    mask_values: tuple[int, ...] = ()
    unlabeled_values: tuple[int, ...] = ()

    @property
    def annotations(self) -> list[Annotation]:
        """The annotated objects of all images."""
        return [annotation for image in self.images for annotation in image.annotations]


class DatasetView(NamedTuple):
    """One split of a dataset, read for one target type: one of ``TARGET_TYPES``, or ``CLASSES``."""

    split: str
    target_type: str
    dataset: AnnotatedDataset


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
            raise InvalidAnnotation(f"{name}: expected a list of numbers, got {abbreviate(polygon)}")
        if len(polygon) % 2:
            raise InvalidAnnotation(f"{name}: expected an x and a y for each point, got {len(polygon)} numbers")
        if len(polygon) < 6:
            raise InvalidAnnotation(f"{name}: expected at least 3 points, got {len(polygon) // 2 or '0 (empty)'}")
        xs, ys = polygon[::2], polygon[1::2]
        inside = min(*xs, *ys) >= -TOLERANCE_PX and max(xs) <= columns + TOLERANCE_PX
        # NaN compares false with everything, min and max may pass over it: the sum does not
        if not inside or max(ys) > rows + TOLERANCE_PX or not math.isfinite(math.fsum(polygon)):
            raise InvalidAnnotation(
                f"{name}: expected finite points in the image of {columns}x{rows} px (width x height), "
                f"got {abbreviate(polygon)}"
            )


def find_self_intersections(polygons: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of polygons in which two edges properly cross; edges that only touch do not count."""
    if not polygons:
        return []
    rings = [np.reshape((*polygon, *polygon[:2]), (-1, 2)) for polygon in polygons]
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    # a line that touches itself is not simple either, so the edges of the few that are not simple are compared
    suspects = np.flatnonzero(~shapely.is_simple(shapely.linestrings(np.concatenate(rings), indices=owner)))
    crossed = []
    for index in suspects.tolist():
        edges = shapely.linestrings(np.stack([rings[index][:-1], rings[index][1:]], axis=1))
        if shapely.STRtree(edges).query(edges, predicate="crosses").size:
            crossed.append(index)
    return crossed


def report_self_intersections(segmentations: Iterable[tuple[Path, str, Any]], issues: Issues) -> None:
    """Report polygons whose edges cross as warnings, from file, location and polygons (or run lengths) of annotations.

    They can be drawn all the same.
    """
    polygons = [
        (file, location, index, polygon)
        for file, location, segmentation in segmentations
        for index, polygon in enumerate(segmentation if isinstance(segmentation, list) else ())
    ]
    for crossed in find_self_intersections([polygon for *_, polygon in polygons]):
        file, location, index, _ = polygons[crossed]
        message = f"segmentation: polygon {index}: expected edges that do not cross, got a self-intersection"
        issues.add(file, message, location=location, is_warning=True)


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does, as a key of caches; None for a file that is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def abbreviate(value: Any) -> str:
    """Return the representation of a value for an error message, shortened to 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def join_names(names: Sequence[str]) -> str:
    """Return up to eight names for an error message, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


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
        raise InvalidAnnotation(f"segmentation: counts: expected whole numbers or text, got {abbreviate(counts)}")
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
    raise InvalidAnnotation(f"segmentation: counts: expected COCO's compressed run lengths, got {abbreviate(text)}")
