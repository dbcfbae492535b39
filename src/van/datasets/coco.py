"""Reader of COCO's ``instances`` files (boxes, polygons, run lengths), in COCO's folders or in Roboflow's.

Everything that can be validated without opening an image is validated here. Class indices follow ascending category
ids. Shapes: boxes x1, y1, x2, y2, where the files have x, y, width, height; sizes (rows, columns).
Source: cocodataset.org, "Data format".
"""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from van.datasets import annotations as types
from van.datasets.annotations import AnnotatedDataset, Annotation, ImageRecord, InvalidAnnotation, Issues, abbreviate
from van.datasets.registry import register_format
from van.errors import DataError

_ROBOFLOW = "_annotations.coco.json"
_MAX_NUMBER = 1 << 53
"""Floats hold whole numbers exactly up to this; larger ones are neither pixels nor ids."""
# the comparisons are by type(), because True is an int
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a whole number of at least 0", lambda value: type(value) is int and 0 <= value < _MAX_NUMBER),
    "side": ("a whole number of at least 1 pixel", lambda value: type(value) is int and 0 < value < _MAX_NUMBER),
    "text": ("text", lambda value: type(value) is str and value != ""),
    "list": ("a list", lambda value: type(value) is list),
    "flag": ("0 or 1", lambda value: type(value) in (int, bool) and value in (0, 1)),
    "area": ("a finite number of at least 0 pixels", lambda value: _is_number(value) and value >= 0),
    "box": (
        "x, y, width, height as finite numbers",
        lambda value: type(value) is list and len(value) == 4 and all(map(_is_number, value)),
    ),
}
"""For each kind of value what is expected of it, for the error, and the test of it."""


class Categories(NamedTuple):
    """Names, is-thing flags and, by category id, indices of the classes, in the order of their indices."""

    class_names: tuple[str, ...]
    things: tuple[bool, ...]
    label_of: dict[int, int]


def find_coco_files(root: Path, split: str, kind: str) -> tuple[Path, Path, Path] | None:
    """Return annotation file, folder of images and folder of masks of a split; None where there are none.

    The ``kind`` of annotations is instances, which have no masks, or panoptic.

    Raises:
        DataError: several match, or the images or masks are missing.
    """
    for name in types.VALIDATION_NAMES if split == "val" else (split,):
        if kind == "instances" and (root / name / _ROBOFLOW).is_file():
            return root / name / _ROBOFLOW, root / name, root / name
        annotation_files = sorted((root / "annotations").glob(f"{kind}_{name}*.json"))
        if not annotation_files:
            continue
        matches = []
        for path in annotation_files:
            stem = path.stem.removeprefix(f"{kind}_")
            image_dirs = [each for each in (root / stem, root / "images" / stem) if each.is_dir()]
            mask_dirs = [each for each in (path.with_suffix(""), root / path.stem) if each.is_dir()]
            if image_dirs and (mask_dirs or kind == "instances"):
                matches.append((path, image_dirs[0], (mask_dirs or image_dirs)[0]))
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = types.join_names([path.name for path, *_ in matches])
            raise DataError(f"{root}: expected one annotation file for {split}, got {names}")
        stem = annotation_files[0].stem
        masks = f" and masks in annotations/{stem}/" if kind == "panoptic" else ""
        raise DataError(f"{root}: {stem}.json: expected images in {stem.removeprefix(f'{kind}_')}/{masks}, got none")
    return None


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch the cyclic garbage collector off: with millions of new objects it takes as long as reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@register_format(
    "coco",
    title="COCO",
    tasks=("detect", "instances"),
    files=f"`annotations/instances_{{split}}*.json` beside `{{split}}*/`, or from Roboflow `{{split}}/{_ROBOFLOW}`",
    recognize=lambda root, split: find_coco_files(root, split, "instances") is not None,
)
@without_garbage_collection()
def read_coco(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read boxes and segmentations; images are sorted by id and may have no annotations.

    Reported is what is missing, of the wrong type, duplicated, unknown, outside its image or self-crossing.
    """
    files = find_coco_files(root, split, "instances")
    assert files is not None  # otherwise the folder is not recognized
    path, image_dir, _ = files
    content = read_lists(path, issues)
    entries = index_by_id(path, content["annotations"], "annotation", issues)
    used = {entry["category_id"] for entry in entries.values() if type(entry.get("category_id")) is int}
    categories = read_categories(path, content["categories"], used, issues)
    images = read_images(path, content["images"], image_dir, issues)
    annotations: dict[int, list[Annotation]] = {image_id: [] for image_id in images}
    # a file of boxes alone may have [] everywhere; beside other segmentations an empty one was lost
    only_boxes = all(entry.get("segmentation") in (None, []) for entry in entries.values())
    for annotation_id, entry in entries.items():
        try:
            image_id = read_reference(entry, "image_id", images)
            annotation = _read_annotation(entry, annotation_id, images[image_id], categories, only_boxes=only_boxes)
            annotations[image_id].append(annotation)
        except InvalidAnnotation as error:
            issues.add(path, error, location=f"annotation {annotation_id}")
    kept = [each for of_image in annotations.values() for each in of_image]
    types.report_self_intersections([(path, f"annotation {each.id}", each.segmentation) for each in kept], issues)
    return AnnotatedDataset(
        class_names=categories.class_names,
        category_ids=tuple(categories.label_of),
        images=tuple(
            ImageRecord(
                path=each.path, name=each.name, id=image_id, size=each.size, annotations=tuple(annotations[image_id])
            )
            for image_id, each in sorted(images.items())
            if each is not None
        ),
    )


def _read_annotation(
    entry: dict[str, Any], annotation_id: int, image: ImageRecord | None, categories: Categories, *, only_boxes: bool
) -> Annotation:
    label = categories.label_of[read_reference(entry, "category_id", categories.label_of)]
    box = read_box(entry, image)
    segmentation = None if image is None or only_boxes else entry.get("segmentation")
    if segmentation is not None and image is not None:
        types.check_segmentation(segmentation, image.size)
    area = (box[2] - box[0]) * (box[3] - box[1]) if entry.get("area") is None else read_value(entry, "area", "area")
    crowd = "iscrowd" in entry and bool(read_value(entry, "iscrowd", "flag"))
    return Annotation(label=label, box=box, segmentation=segmentation, crowd=crowd, area=float(area), id=annotation_id)


def read_lists(path: Path, issues: Issues) -> dict[str, list[Any]]:
    """Return ``images``, ``annotations`` and ``categories`` of a file; an invalid list is reported and empty."""
    lists: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        issues.add(path, f"cannot be read as JSON ({error})")
        return lists
    if not isinstance(content, dict):
        issues.add(path, f"expected an object with {', '.join(lists)}, got {abbreviate(content)}")
        return lists
    for key in lists:
        try:
            lists[key] = read_value(content, key, "list")
        except InvalidAnnotation as error:
            issues.add(path, error)
    return lists


def index_by_id(path: Path, entries: list[Any], kind: str, issues: Issues) -> dict[int, dict[str, Any]]:
    """Return entries by id, in the order of the file; of duplicates the first."""
    by_id: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        try:
            entry_id = read_value(entry, "id", "id")
            if entry_id in by_id:
                raise InvalidAnnotation(f"id: expected a unique id for each {kind}, got {entry_id} a second time")
            by_id[entry_id] = entry
        except InvalidAnnotation as error:
            issues.add(path, error, location=locate(kind, entry, "id", index))
    return by_id


def read_categories(path: Path, entries: list[Any], used: set[int] | None, issues: Issues) -> Categories:
    """Read categories by ascending id; invalid ones are reported.

    Args:
        path: the file, for issues.
        entries: its categories.
        used: category ids of the annotations; None for a panoptic file, whose categories have ``isthing``.
        issues: receives invalid categories.
    """
    by_id = index_by_id(path, entries, "category", issues)
    unused = [] if used is None else [each for each in by_id if each not in used]
    for group in [by_id[each] for each in unused if by_id[each].get("supercategory") == "none"]:
        # Roboflow adds a category for the whole group: unused, and the supercategory of all others
        others = {category_id: entry for category_id, entry in by_id.items() if entry is not group}
        if others and all(entry.get("supercategory") == group.get("name") for entry in others.values()):
            by_id = others
            break
    categories: dict[str, tuple[int, bool]] = {}
    for category_id, entry in sorted(by_id.items()):
        try:
            name = read_value(entry, "name", "text")
            if name in categories:
                same = f"{abbreviate(name)}, as of category {categories[name][0]}"
                raise InvalidAnnotation(f"name: expected a unique name, got {same}")
            categories[name] = (category_id, used is not None or bool(read_value(entry, "isthing", "flag")))
        except InvalidAnnotation as error:
            issues.add(path, error, location=f"category {category_id}")
    things = () if used is not None else tuple(is_thing for _, is_thing in categories.values())
    label_of = {category_id: label for label, (category_id, _) in enumerate(categories.values())}
    return Categories(tuple(categories), things, label_of)


def read_images(path: Path, entries: list[Any], image_dir: Path, issues: Issues) -> dict[int, ImageRecord | None]:
    """Return images by id; None for those that are listed but invalid, so that their annotations are not unknown."""
    images: dict[int, ImageRecord | None] = {}
    for image_id, entry in index_by_id(path, entries, "image", issues).items():
        images[image_id] = None
        try:
            columns, rows = (read_value(entry, key, "side") for key in ("width", "height"))
            file = read_file_name(entry, image_dir)
            images[image_id] = ImageRecord(path=file, name=entry["file_name"], id=image_id, size=(rows, columns))
        except InvalidAnnotation as error:
            issues.add(path, error, location=f"image {image_id}")
    return images


def read_value(entry: Any, key: str, kind: str) -> Any:
    """Return the value of a key, which must be of a kind in ``_KINDS``.

    Raises:
        InvalidAnnotation: it is not, or the key is missing.
    """
    expected, is_valid = _KINDS[kind]
    if not isinstance(entry, dict):
        raise InvalidAnnotation(f"expected an object, got {abbreviate(entry)}")
    if key not in entry:
        raise InvalidAnnotation(f"{key}: expected {expected}, got nothing (the key is missing)")
    if not is_valid(entry[key]):
        raise InvalidAnnotation(f"{key}: expected {expected}, got {abbreviate(entry[key])}")
    return entry[key]


def read_reference(entry: Any, key: str, known: Any) -> int:
    """Return the id under ``key``, which must be one of the ``known`` images or categories."""
    value = read_value(entry, key, "id")
    if value not in known:
        raise InvalidAnnotation(f"{key}: expected the id of an entry of the file, got {value}")
    return value


def read_box(entry: dict[str, Any], image: ImageRecord | None) -> types.Box:
    """Return the entry's box x1, y1, x2, y2, which must lie in its image if that is valid."""
    x, y, width, height = read_value(entry, "bbox", "box")
    box = (x, y, x + width, y + height)
    types.check_box(box, (_MAX_NUMBER, _MAX_NUMBER) if image is None else image.size)
    return box


def read_file_name(entry: Any, folder: Path) -> Path:
    """Return the path of the entry's file, which must exist and may not leave the folder on any operating system."""
    name = read_value(entry, "file_name", "text")
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts or PurePosixPath(name).is_absolute():
        raise InvalidAnnotation(f"file_name: expected a path inside {folder} without .., got {abbreviate(name)}")
    with contextlib.suppress(OSError, ValueError):  # such as a name too long for the file system
        if (folder / name).is_file():
            return folder / name
    raise InvalidAnnotation(f"file_name: {folder / name} is missing")


def locate(kind: str, entry: Any, key: str, index: int) -> str:
    """Return ``annotation 17``, or ``annotation at index 3`` where the entry has no valid id."""
    own = entry.get(key) if isinstance(entry, dict) else None
    return f"{kind} {own}" if type(own) is int and 0 <= own < _MAX_NUMBER else f"{kind} at index {index}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MAX_NUMBER < value < _MAX_NUMBER
