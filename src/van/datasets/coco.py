"""Readers of COCO annotation files: instances (boxes, polygons, run lengths) and panoptic masks.

Everything that can be validated without opening an image is validated here. Class indices follow ascending category
ids. Shapes: boxes x1, y1, x2, y2, where the files have x, y, width, height; sizes (rows, columns); ids (H, W).
Source: cocodataset.org, "Data format".
"""

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from van.datasets.annotations import (
    AnnotatedDataset,
    Annotation,
    ImageRecord,
    InvalidAnnotation,
    Issues,
    SegmentAnnotation,
    check_box,
    check_segmentation,
    find_self_intersections,
)
from van.errors import DataError
from van.images import MAX_PIXELS

_MAX_NUMBER = 1 << 53
"""Floats hold whole numbers exactly up to this; larger ones are neither pixels nor ids."""
_MAX_SEGMENT_ID = (1 << 24) - 1
"""Segment ids are stored as 24-bit colors."""


class _Categories(NamedTuple):
    """Names, ids and is-thing flags in the order of class indices; ``label_of`` maps a category id to its index."""

    class_names: tuple[str, ...]
    ids: tuple[int, ...]
    things: tuple[bool, ...]
    label_of: dict[int, int]


class _Image(NamedTuple):
    path: Path
    name: str
    size: tuple[int, int]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the cyclic garbage collector off: with millions of new objects it takes as long as reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_garbage_collection()
def read_coco(annotation_file: Path, image_dir: Path, issues: Issues) -> AnnotatedDataset:
    """Read boxes and segmentations of an ``instances`` file; images are sorted by id and may have no annotations.

    Args:
        annotation_file: the JSON file.
        image_dir: the folder that its file names are relative to.
        issues: receives what is missing, of the wrong type, duplicated, unknown, outside its image or self-crossing.

    Raises:
        DataError: from ``issues``.
    """
    content = _read_lists(annotation_file, issues)
    entries = _index_by_id(annotation_file, content["annotations"], "annotation", issues)
    categories = _read_categories(annotation_file, content["categories"], _used_categories(entries.values()), issues)
    images = _read_images(annotation_file, content["images"], image_dir, issues)
    annotations: dict[int, list[Annotation]] = {image_id: [] for image_id in images}
    # a file of boxes alone may have [] everywhere; beside other segmentations an empty one was lost
    has_segmentations = any(entry.get("segmentation") not in (None, []) for entry in entries.values())
    for annotation_id, entry in entries.items():
        try:
            image_id, annotation = _read_annotation(entry, annotation_id, categories, images)
            if has_segmentations and entry.get("segmentation") == []:
                raise InvalidAnnotation("segmentation: expected polygons or run lengths, got an empty list")
            annotations[image_id].append(annotation)
        except InvalidAnnotation as error:
            issues.add(annotation_file, str(error), location=f"annotation {annotation_id}")
    _report_self_intersections(annotation_file, annotations, issues)
    records = (
        ImageRecord(
            path=image.path, name=image.name, id=image_id, size=image.size, annotations=tuple(annotations[image_id])
        )
        for image_id, image in sorted(images.items())
        if image is not None
    )
    return AnnotatedDataset(class_names=categories.class_names, category_ids=categories.ids, images=tuple(records))


@_without_garbage_collection()
def read_panoptic(annotation_file: Path, mask_dir: Path, image_dir: Path, issues: Issues) -> AnnotatedDataset:
    """Read a ``panoptic`` file: the masks and the segments that they encode; images are sorted by id.

    Args:
        annotation_file: the JSON file.
        mask_dir: the folder of its PNG masks, see ``read_panoptic_ids``.
        image_dir: the folder that the file names of images are relative to.
        issues: as for ``read_coco``; also receives images without a mask.

    Raises:
        DataError: from ``issues``.
    """
    content = _read_lists(annotation_file, issues)
    categories = _read_categories(annotation_file, content["categories"], None, issues)
    images = _read_images(annotation_file, content["images"], image_dir, issues)
    records: dict[int, ImageRecord] = {}
    annotated: set[int] = set()
    for index, entry in enumerate(content["annotations"]):
        try:
            image_id = _id(entry, "image_id")
            if image_id not in images:
                raise InvalidAnnotation(f"image_id: expected the id of an image of the file, got {image_id}")
            if image_id in annotated:
                raise InvalidAnnotation(f"image_id: expected one annotation per image, got {image_id} a second time")
            annotated.add(image_id)
            image = images[image_id]
            if image is None:
                continue
            mask_path = _join_inside(mask_dir, _get(entry, "file_name", str, "text"))
            if not _is_file(mask_path):
                raise InvalidAnnotation(f"file_name: mask {mask_path} is missing")
            segment_entries = _get(entry, "segments_info", list, "a list")
        except InvalidAnnotation as error:
            location = _location("annotation of image", entry, "image_id", index)
            issues.add(annotation_file, str(error), location=location)
            continue
        segments = tuple(_read_segments(annotation_file, segment_entries, image_id, categories, image.size, issues))
        records[image_id] = ImageRecord(
            path=image.path, name=image.name, id=image_id, size=image.size, mask_path=mask_path, segments=segments
        )
    for image_id in sorted(set(images) - annotated):
        issues.add(annotation_file, "expected a panoptic annotation, got none", location=f"image {image_id}")
    return AnnotatedDataset(
        class_names=categories.class_names,
        category_ids=categories.ids,
        images=tuple(record for _, record in sorted(records.items())),
        things=categories.things,
    )


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
    ids = colors[..., 0].astype(np.int32)
    ids += colors[..., 1].astype(np.int32) << 8
    ids += colors[..., 2].astype(np.int32) << 16
    return ids


def read_class_names(annotation_file: Path) -> tuple[str, ...]:
    """Return the class names of either kind of file, empty where it cannot be read; issues are ignored."""
    ignored = Issues(collect=True)
    content = _read_lists(annotation_file, ignored)
    entries = (entry for entry in content["annotations"] if isinstance(entry, dict))
    return _read_categories(annotation_file, content["categories"], _used_categories(entries), ignored).class_names


def _read_lists(path: Path, issues: Issues) -> dict[str, list[Any]]:
    """Return the file's three lists; an invalid one is reported and empty."""
    lists: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        issues.add(path, f"cannot be read as JSON ({error})")
        return lists
    if not isinstance(content, dict):
        issues.add(path, f"expected an object with {', '.join(lists)}, got {_abbreviate(content)}")
        return lists
    for key in lists:
        try:
            lists[key] = _get(content, key, list, "a list")
        except InvalidAnnotation as error:
            issues.add(path, str(error))
    return lists


def _index_by_id(path: Path, entries: list[Any], kind: str, issues: Issues) -> dict[int, dict[str, Any]]:
    """Return entries by id, in the order of the file; of duplicates the first."""
    by_id: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        try:
            entry_id = _id(entry, "id")
            if entry_id in by_id:
                raise InvalidAnnotation(f"id: expected a unique id for each {kind}, got {entry_id} a second time")
        except InvalidAnnotation as error:
            issues.add(path, str(error), location=_location(kind, entry, "id", index))
            continue
        by_id[entry_id] = entry
    return by_id


def _read_categories(path: Path, entries: list[Any], used: set[int] | None, issues: Issues) -> _Categories:
    """Read categories by ascending id.

    Args:
        used: category ids of the annotations; None for a panoptic file, whose categories have ``isthing``.
    """
    by_id = _index_by_id(path, entries, "category", issues)
    if used is not None:
        by_id = _drop_roboflow_group(by_id, used)
    categories: dict[int, tuple[str, bool]] = {}
    id_of: dict[str, int] = {}
    for category_id, entry in sorted(by_id.items()):
        try:
            name = _get(entry, "name", str, "text")
            if not name:
                raise InvalidAnnotation("name: expected text, got ''")
            if name in id_of:
                raise InvalidAnnotation(
                    f"name: expected a unique name, got {_abbreviate(name)}, as of category {id_of[name]}"
                )
            is_thing = used is not None or _flag(entry, "isthing", required=True)
        except InvalidAnnotation as error:
            issues.add(path, str(error), location=f"category {category_id}")
            continue
        id_of[name] = category_id
        categories[category_id] = (name, is_thing)
    return _Categories(
        tuple(id_of),
        tuple(categories),
        tuple(is_thing for _, is_thing in categories.values()) if used is None else (),
        {category_id: label for label, category_id in enumerate(categories)},
    )


def _drop_roboflow_group(by_id: dict[int, dict[str, Any]], used: set[int]) -> dict[int, dict[str, Any]]:
    """Drop the category that Roboflow adds for the whole group: unused, and the supercategory of all others."""
    for category_id, entry in by_id.items():
        others = {other_id: other for other_id, other in by_id.items() if other_id != category_id}
        is_group = others and all(other.get("supercategory") == entry.get("name") for other in others.values())
        if is_group and category_id not in used and entry.get("supercategory") == "none":
            return others
    return by_id


def _used_categories(entries: Iterable[dict[str, Any]]) -> set[int]:
    return {entry["category_id"] for entry in entries if type(entry.get("category_id")) is int}


def _read_images(path: Path, entries: list[Any], image_dir: Path, issues: Issues) -> dict[int, _Image | None]:
    """Return images by id; None for those that are listed but invalid, so that their annotations are not unknown."""
    images: dict[int, _Image | None] = {}
    for image_id, entry in _index_by_id(path, entries, "image", issues).items():
        images[image_id] = None
        try:
            name = _get(entry, "file_name", str, "text")
            columns, rows = (_get(entry, key, int, "a whole number") for key in ("width", "height"))
            for key, side in (("width", columns), ("height", rows)):
                if not 0 < side < _MAX_NUMBER:
                    raise InvalidAnnotation(f"{key}: expected at least 1 pixel, got {_abbreviate(side)}")
            file = _join_inside(image_dir, name)
            if not _is_file(file):
                raise InvalidAnnotation(f"file_name: image {file} is missing")
            images[image_id] = _Image(file, name, (rows, columns))
        except InvalidAnnotation as error:
            issues.add(path, str(error), location=f"image {image_id}")
    return images


def _read_annotation(
    entry: dict[str, Any], annotation_id: int, categories: _Categories, images: Mapping[int, _Image | None]
) -> tuple[int, Annotation]:
    """Return the image's id and the annotation; the size of an invalid image is not checked."""
    image_id, label = _id(entry, "image_id"), _label(entry, categories)
    if image_id not in images:
        raise InvalidAnnotation(f"image_id: expected the id of an image of the file, got {image_id}")
    image = images[image_id]
    size = (_MAX_NUMBER, _MAX_NUMBER) if image is None else image.size
    box = _box(entry, size)
    segmentation = None if image is None or entry.get("segmentation") == [] else entry.get("segmentation")
    if segmentation is not None:
        check_segmentation(segmentation, size)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if entry.get("area") is not None:
        area = _number(entry["area"], "area")
        if area < 0:
            raise InvalidAnnotation(f"area: expected at least 0 pixels, got {area}")
    crowd = _flag(entry, "iscrowd")
    return image_id, Annotation(
        label=label, box=box, segmentation=segmentation, crowd=crowd, area=float(area), id=annotation_id
    )


def _read_segments(
    path: Path, entries: list[Any], image_id: int, categories: _Categories, size: tuple[int, int], issues: Issues
) -> Iterator[SegmentAnnotation]:
    known: set[int] = set()
    for index, entry in enumerate(entries):
        try:
            segment_id = _id(entry, "id")
            if not 0 < segment_id <= _MAX_SEGMENT_ID:
                raise InvalidAnnotation(f"id: expected a color from 1 to {_MAX_SEGMENT_ID}, got {segment_id}")
            if segment_id in known:
                raise InvalidAnnotation(f"id: expected a unique id for each segment, got {segment_id} a second time")
            known.add(segment_id)
            label = _label(entry, categories)
            if entry.get("bbox") is not None:
                _box(entry, size)
            yield SegmentAnnotation(id=segment_id, label=label, crowd=_flag(entry, "iscrowd"))
        except InvalidAnnotation as error:
            location = f"annotation of image {image_id}, {_location('segment', entry, 'id', index)}"
            issues.add(path, str(error), location=location)


def _report_self_intersections(path: Path, annotations: dict[int, list[Annotation]], issues: Issues) -> None:
    """Report polygons whose edges cross as warnings: they can be drawn all the same."""
    owners: list[tuple[Annotation, int]] = []
    polygons: list[list[float]] = []
    for of_image in annotations.values():
        for annotation in of_image:
            if isinstance(annotation.segmentation, list):
                owners += [(annotation, index) for index in range(len(annotation.segmentation))]
                polygons += annotation.segmentation
    for index in find_self_intersections(polygons):
        annotation, polygon = owners[index]
        message = f"segmentation: polygon {polygon}: expected edges that do not cross, got a self-intersection"
        issues.add(path, message, location=f"annotation {annotation.id}", is_warning=True)


def _get(entry: Any, key: str, kind: type, expected: str) -> Any:
    if not isinstance(entry, dict):
        raise InvalidAnnotation(f"expected an object, got {_abbreviate(entry)}")
    if key not in entry:
        raise InvalidAnnotation(f"{key}: expected {expected}, got nothing (the key is missing)")
    if type(entry[key]) is not kind:  # not isinstance: True is an int
        raise InvalidAnnotation(f"{key}: expected {expected}, got {_abbreviate(entry[key])}")
    return entry[key]


def _id(entry: Any, key: str) -> int:
    value = _get(entry, key, int, "a whole number")
    if not 0 <= value < _MAX_NUMBER:
        raise InvalidAnnotation(f"{key}: expected a whole number of at least 0, got {_abbreviate(value)}")
    return value


def _label(entry: dict[str, Any], categories: _Categories) -> int:
    category_id = _id(entry, "category_id")
    if category_id not in categories.label_of:
        raise InvalidAnnotation(f"category_id: expected the id of a category of the file, got {category_id}")
    return categories.label_of[category_id]


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not -_MAX_NUMBER < value < _MAX_NUMBER:
        raise InvalidAnnotation(f"{name}: expected a finite number, got {_abbreviate(value)}")
    return value


def _flag(entry: dict[str, Any], key: str, *, required: bool = False) -> bool:
    if key not in entry and required:
        raise InvalidAnnotation(f"{key}: expected 0 or 1, got nothing (the key is missing)")
    value = entry.get(key, 0)
    if type(value) not in (int, bool) or value not in (0, 1):
        raise InvalidAnnotation(f"{key}: expected 0 or 1, got {_abbreviate(value)}")
    return bool(value)


def _box(entry: dict[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    sides = _get(entry, "bbox", list, "x, y, width, height")
    if len(sides) != 4:
        raise InvalidAnnotation(f"bbox: expected x, y, width, height, got {len(sides)} numbers")
    x, y, width, height = (_number(side, "bbox") for side in sides)
    box = (x, y, x + width, y + height)
    check_box(box, size)
    return box


def _join_inside(folder: Path, name: str) -> Path:
    """Return the path of ``name`` below ``folder``; refuse one that leaves it, on any operating system."""
    windows = PureWindowsPath(name)
    if not name or windows.drive or windows.root or ".." in windows.parts or PurePosixPath(name).is_absolute():
        raise InvalidAnnotation(f"file_name: expected a path inside {folder} without .., got {_abbreviate(name)}")
    return folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long for the file system
        return False


def _location(kind: str, entry: Any, key: str, index: int) -> str:
    """Return ``annotation 17``, or ``annotation at index 3`` where the entry has no valid id."""
    own = entry.get(key) if isinstance(entry, dict) else None
    return f"{kind} {own}" if type(own) is int and 0 <= own < _MAX_NUMBER else f"{kind} at index {index}"


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
