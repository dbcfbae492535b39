"""Reader of COCO's ``panoptic`` files: a PNG for each image whose colors are segment ids, and the segments' classes.

Shapes: ids (H, W); sizes (rows, columns). Source: cocodataset.org, "Data format".
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.datasets import coco
from van.datasets.annotations import AnnotatedDataset, ImageRecord, InvalidAnnotation, Issues, SegmentAnnotation
from van.datasets.registry import register_format
from van.errors import DataError
from van.images import MAX_PIXELS

_MAX_SEGMENT_ID = (1 << 24) - 1
"""Segment ids are stored as 24-bit colors."""


@register_format(
    "coco_panoptic",
    title="COCO panoptic",
    tasks=("panoptic",),
    files="`annotations/panoptic_{split}*.json` beside the masks in `panoptic_{split}*/` and the images in `{split}*/`",
    recognize=lambda root, split: coco.find_coco_files(root, split, "panoptic") is not None,
)
@coco.without_garbage_collection()
def read_coco_panoptic(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the masks of a split and the segments that they encode; images are sorted by id.

    Reported is the same as by ``van.datasets.coco.read_coco``, and images without a mask.
    """
    files = coco.find_coco_files(root, split, "panoptic")
    assert files is not None  # otherwise the folder is not recognized
    path, image_dir, mask_dir = files
    content = coco.read_lists(path, issues)
    categories = coco.read_categories(path, content["categories"], None, issues)
    images = coco.read_images(path, content["images"], image_dir, issues)
    records: dict[int, ImageRecord | None] = {}
    for index, entry in enumerate(content["annotations"]):
        try:
            image_id = coco.read_reference(entry, "image_id", images)
            if image_id in records:
                raise InvalidAnnotation(f"image_id: expected one annotation per image, got {image_id} a second time")
            records[image_id] = None
            image = images[image_id]
            if image is None:
                continue
            mask_path = coco.read_file_name(entry, mask_dir)
            segments = _read_segments(path, coco.read_value(entry, "segments_info", "list"), image, categories, issues)
            records[image_id] = dataclasses.replace(image, mask_path=mask_path, segments=segments)
        except InvalidAnnotation as error:
            issues.add(path, error, location=coco.locate("annotation of image", entry, "image_id", index))
    for image_id in sorted(set(images) - set(records)):
        issues.add(path, "expected a panoptic annotation, got none", location=f"image {image_id}")
    return AnnotatedDataset(
        class_names=categories.class_names,
        category_ids=tuple(categories.label_of),
        images=tuple(record for _, record in sorted(records.items()) if record is not None),
        things=categories.things,
    )


def _read_segments(
    path: Path, entries: list[Any], image: ImageRecord, categories: coco.Categories, issues: Issues
) -> tuple[SegmentAnnotation, ...]:
    segments: dict[int, SegmentAnnotation | None] = {}
    for index, entry in enumerate(entries):
        try:
            segment_id = coco.read_value(entry, "id", "id")
            if not 0 < segment_id <= _MAX_SEGMENT_ID:
                raise InvalidAnnotation(f"id: expected a color from 1 to {_MAX_SEGMENT_ID}, got {segment_id}")
            if segment_id in segments:
                raise InvalidAnnotation(f"id: expected a unique id for each segment, got {segment_id} a second time")
            segments[segment_id] = None
            label = categories.label_of[coco.read_reference(entry, "category_id", categories.label_of)]
            if entry.get("bbox") is not None:
                coco.read_box(entry, image)
            crowd = "iscrowd" in entry and bool(coco.read_value(entry, "iscrowd", "flag"))
            segments[segment_id] = SegmentAnnotation(segment_id, label, crowd)
        except InvalidAnnotation as error:
            segment = coco.locate("segment", entry, "id", index)
            issues.add(path, error, location=f"annotation of image {image.id}, {segment}")
    return tuple(segment for segment in segments.values() if segment is not None)


def read_panoptic_ids(path: Path) -> np.ndarray:
    """Decode a panoptic PNG to (H, W) int32 segment ids, red + 256 green + 65,536 blue; 0 for unlabeled pixels.

    Raises:
        DataError: the file is missing, damaged, too large, or not in colors.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, got {file.width}x{file.height}")
            if file.mode not in ("RGB", "RGBA", "P"):
                raise DataError(f"{path}: expected a panoptic mask in colors (RGB), got mode {file.mode}")
            colors = np.asarray(file.convert("RGB") if file.mode == "P" else file)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        raise DataError(f"{path}: cannot be read as a PNG mask ({error or type(error).__name__})") from error
    return colors[..., :3].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
