"""Validation of one image file against everything that is annotated in it: boxes, masks, segments.

Shapes: sizes (rows, columns); boxes x1, y1, x2, y2 in pixels; semantic and panoptic masks (H, W).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from van.datasets.annotations import ImageRecord, InvalidAnnotation, Issue, check_box
from van.datasets.coco import read_panoptic_ids
from van.datasets.semantic_masks import find_unknown_values, read_mask_values
from van.datasets.views import CLASSES, DatasetView
from van.errors import DataError, ImageError
from van.images import read_image

_MAX_LISTED_VALUES = 8


class ViewedRecord(NamedTuple):
    """The record of an image in one view of the dataset."""

    view: DatasetView
    record: ImageRecord


class ImageReport(NamedTuple):
    """The result of validating an image.

    ``digest`` is the hash of its file, empty if it is not a readable image; then ``size`` is None. ``label_counts`` has
    the labels of its annotations, one counter per record.
    """

    digest: bytes
    size: tuple[int, int] | None
    label_counts: list[Counter[int]]
    issues: list[Issue]


def validate_image(path: Path, records: Sequence[ViewedRecord]) -> ImageReport:
    """Open an image and compare it with its records."""
    digest, size, reason = _open(path)
    issues = [Issue(str(path), "", reason)] if reason else []
    label_counts: list[Counter[int]] = []
    for view, record in records:
        if size is not None and record.size not in ((0, 0), size):
            issues.append(Issue(str(path), "", _size_mismatch(size, record.size, "annotations")))
        if view.target_type == "semantic":
            label_counts.append(_validate_semantic_mask(record, view.dataset.mask_values, size, issues))
        elif view.target_type == "panoptic":
            label_counts.append(_validate_panoptic_mask(record, size, issues))
        else:
            masks = view.target_type == "masks"
            label_counts.append(Counter(a.label for a in record.annotations if not masks or a.segmentation is not None))
            if view.target_type != CLASSES and size is not None:
                _validate_annotations(record, size, issues, masks=masks)
    return ImageReport(digest, size, label_counts, issues)


def _open(path: Path) -> tuple[bytes, tuple[int, int] | None, str]:
    """Return the hash of a file, the size of its image, and the reason if it cannot be read."""
    try:
        content = path.read_bytes()
        image = read_image(content, name=str(path))
    except ImageError as error:
        return b"", None, error.reason
    except OSError as error:
        return b"", None, f"cannot be read ({error.strerror})"
    return hashlib.sha256(content).digest(), (image.height, image.width), ""


def _validate_annotations(record: ImageRecord, size: tuple[int, int], issues: list[Issue], *, masks: bool) -> None:
    for annotation in record.annotations:
        try:
            if record.size != size:  # otherwise the reader has checked the box
                check_box(annotation.box, size)
            has_mask = masks and annotation.segmentation is not None and record.size in ((0, 0), size)
            if has_mask and not annotation.mask(size).any():
                raise InvalidAnnotation("segmentation: expected at least 1 pixel, got an empty mask")
        except (InvalidAnnotation, DataError) as error:
            location = f"annotation {annotation.id}"
            issues.append(Issue(str(record.path), location, str(error).removeprefix(f"{location}: ")))


def _validate_semantic_mask(
    record: ImageRecord, mask_values: tuple[int, ...], size: tuple[int, int] | None, issues: list[Issue]
) -> Counter[int]:
    """Return the labels in a semantic mask."""
    file = str(record.mask_path)
    assert record.mask_path is not None
    try:
        values = read_mask_values(record.mask_path)
    except ImageError as error:
        issues.append(Issue(file, "", error.reason))
        return Counter()
    if size is not None and values.shape != size:
        issues.append(Issue(file, "", _size_mismatch(values.shape, size, "image")))
    unknown = sorted(find_unknown_values(values, mask_values).items(), key=lambda pair: -pair[1])
    if unknown:
        listed = ", ".join(
            f"{value} ({fraction:.2%} of the pixels)" for value, fraction in unknown[:_MAX_LISTED_VALUES]
        )
        more = f" and {len(unknown) - _MAX_LISTED_VALUES} more" if len(unknown) > _MAX_LISTED_VALUES else ""
        issues.append(Issue(file, "", f"expected only values of classes, got {listed}{more}"))
    present = set(np.flatnonzero(np.bincount(values.reshape(-1))).tolist())
    return Counter(label for label, value in enumerate(mask_values) if value in present)


def _validate_panoptic_mask(record: ImageRecord, size: tuple[int, int] | None, issues: list[Issue]) -> Counter[int]:
    """Return the labels of a panoptic mask's segments."""
    labels = Counter(segment.label for segment in record.segments)
    file = str(record.mask_path)
    assert record.mask_path is not None
    try:
        ids = read_panoptic_ids(record.mask_path)
    except DataError as error:
        issues.append(Issue(file, "", str(error).removeprefix(f"{file}: ")))
        return labels
    if size is not None and ids.shape != size:
        issues.append(Issue(file, "", _size_mismatch(ids.shape, size, "image")))
    present, described = set(np.unique(ids).tolist()) - {0}, {segment.id for segment in record.segments}
    for segment_id in sorted(present - described):
        message = (
            f"expected an entry in segments_info, got none for {float((ids == segment_id).mean()):.2%} of the pixels"
        )
        issues.append(Issue(file, f"segment {segment_id}", message))
    for segment_id in sorted(described - present):
        issues.append(Issue(file, f"segment {segment_id}", "expected pixels with this id of segments_info, got none"))
    return labels


def _size_mismatch(size: tuple[int, ...], expected: tuple[int, ...], source: str) -> str:
    hint = "; check its EXIF rotation" if size == expected[::-1] else ""
    return (
        f"expected {expected[1]}x{expected[0]} px (width x height), as its {source}, got {size[1]}x{size[0]} px{hint}"
    )
