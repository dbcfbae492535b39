"""Reader of YOLO datasets: a text file with one line per object for each image, as Ultralytics' tools write them.

::

    ROOT/data.yaml             names (a list, or 0: a, 1: b), train, val; optionally path and nc
    ROOT/images/train/a.jpg    labels/train/a.txt: CLASS x y width height, or CLASS x1 y1 x2 y2 x3 y3 ...

``train`` and ``val`` are folders, lists of folders, or text files that list images. x and y (of a box, its center)
are fractions of the image's width and height. An image without a text file has no annotations.
Shapes: boxes x1, y1, x2, y2 in pixels; sizes (rows, columns) of the image after EXIF rotation, as it is read.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import ExifTags, Image

from van.datasets.annotations import (
    VALIDATION_NAMES,
    AnnotatedDataset,
    Annotation,
    Box,
    ImageRecord,
    InvalidAnnotation,
    Issues,
    check_box,
    check_segmentation,
    report_self_intersections,
)
from van.datasets.registry import register_format
from van.errors import DataError
from van.images import FORMATS, find_images

_TRANSPOSED = (5, 6, 7, 8)
"""The EXIF orientations that swap rows and columns."""


def is_yolo(root: Path, split: str) -> bool:
    """Return whether a YAML file there has class names; other datasets may hold YAML files for other purposes."""
    path = find_data_yaml(root)
    try:
        return path is not None and (path.name == "data.yaml" or b"names" in path.read_bytes())
    except OSError:
        return True  # the reader reports why it cannot be read


def find_data_yaml(root: Path) -> Path | None:
    """Return the YAML file that describes ``root``, None where there is none or several could."""
    if (root / "data.yaml").is_file():
        return root / "data.yaml"
    candidates = [path for pattern in ("*.yaml", "*.yml") for path in root.glob(pattern) if path.is_file()]
    return candidates[0] if len(candidates) == 1 else None


@register_format(
    "yolo",
    title="YOLO",
    tasks=("detect", "instances"),
    files="`data.yaml` with names, `images/{split}` and `labels/{split}`; boxes or polygons",
    recognize=is_yolo,
)
def read_yolo(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images of ``split``, sorted by path; image and annotation ids count from 1, category ids from 0."""
    data_yaml = find_data_yaml(root)
    if data_yaml is None:
        raise DataError(f"{root}: expected data.yaml or a single other YAML file, with names, train and val, got none")
    content, class_names = _read_yaml(data_yaml)
    images: list[ImageRecord] = []
    segmentations: list[tuple[Path, str, list[list[float]]]] = []
    num_images = num_label_files = 0
    annotation_ids = itertools.count(1)
    label_path = Path()
    for num_images, (folder, path) in enumerate(_list_images(data_yaml, content, split), start=1):
        label_path = _label_path(path)
        try:
            size = _read_size(path)
        except Exception as error:  # decoders raise nearly anything on hostile files
            issues.add(path, f"cannot be read as an image ({error})")
            continue
        num_label_files += label_path.is_file()
        annotations = []
        for location, label, box, polygon in _read_lines(label_path, size, class_names, issues):
            area = (box[2] - box[0]) * (box[3] - box[1])
            if polygon:
                segmentations.append((label_path, location, [polygon]))
                points = list(zip(polygon[::2], polygon[1::2], strict=True))  # the area is by the shoelace formula
                area = (
                    abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True))) / 2
                )
            segmentation = [polygon] if polygon else None
            annotations.append(
                Annotation(label=label, box=box, segmentation=segmentation, area=area, id=next(annotation_ids))
            )
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        images.append(ImageRecord(path=path, name=name, id=num_images, size=size, annotations=tuple(annotations)))
    if num_images and not num_label_files:
        got = f"got none for any of {num_images} images"
        issues.add(data_yaml, f"{split}: expected text files in {label_path.parent}, {got}")
    report_self_intersections(segmentations, issues)
    return AnnotatedDataset(class_names=class_names, category_ids=tuple(range(len(class_names))), images=tuple(images))


def _read_yaml(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the content of ``data.yaml`` and the class names in it."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the keys names, train and val, got no keys")
    if "kpt_shape" in content:
        raise DataError(f"{path}: expected boxes or polygons, got kpt_shape: poses are not supported")
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            indices = ", ".join(map(str, list(names)[:8]))
            raise DataError(f"{path}: names: expected all indices from 0 to {len(names) - 1}, got {indices}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        got = "nothing" if names is None else repr(names)
        raise DataError(f"{path}: names: expected a list of class names in the order of their indices, got {got}")
    for index, name in enumerate(names):
        if type(name) not in (str, int) or name == "":
            # YAML reads an unquoted no, on or 1.5 as another type
            raise DataError(f"{path}: names: {index}: expected text, got {name!r}; put the name in quotes")
    class_names = tuple(map(str, names))
    if duplicates := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise DataError(f"{path}: names: expected a unique name for each class, got {duplicates[0]!r} more than once")
    if content.get("nc", len(class_names)) != len(class_names):
        raise DataError(f"{path}: nc: expected {len(class_names)}, as there are names, got {content['nc']!r}")
    return content, class_names


def _list_images(data_yaml: Path, content: dict[str, Any], split: str) -> Iterator[tuple[Path, Path]]:
    """Yield the folder that the name of each image of a split is relative to, and its path."""
    keys = VALIDATION_NAMES if split == "val" else (split,)
    key = next((name for name in keys if content.get(name)), None)
    if key is None:
        raise DataError(f"{data_yaml}: expected a folder of images under {' or '.join(keys)}, got none")
    base = data_yaml.parent
    if isinstance(content.get("path"), str) and (base / content["path"]).is_dir():
        base = base / content["path"]  # otherwise the dataset was moved, and lies beside its YAML file
    for value in content[key] if isinstance(content[key], list) else [content[key]]:
        if not isinstance(value, str) or "\0" in value:
            raise DataError(f"{data_yaml}: {key}: expected a folder of images, got {value!r}")
        # Roboflow's paths are relative to a folder one level deeper than the file
        candidates = (base / value, base / value.removeprefix("../"))
        existing = next((path for path in candidates if path.exists()), None)
        if existing is None:
            raise DataError(f"{data_yaml}: {key}: expected a folder of images, got {base / value}, which is missing")
        if existing.is_dir():
            yield from ((existing, path) for path in find_images(existing))
            continue
        try:  # a text file that lists images, relative to its own folder
            lines = existing.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{existing}: cannot be read as a list of images ({error})") from error
        yield from ((existing.parent, existing.parent / line.strip()) for line in sorted(set(lines)) if line.strip())


def _label_path(image: Path) -> Path:
    """Return the text file of an image: ``labels`` in place of the last ``images`` of the path, else beside it."""
    folders = list(image.parent.parts)
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, image.stem + ".txt")


def _read_size(path: Path) -> tuple[int, int]:
    """Return (rows, columns) after EXIF rotation, as ``van.images`` applies it, without decoding the pixels."""
    with Image.open(path, formats=FORMATS) as file:
        columns, rows = file.size
        try:
            transposed = file.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
        except Exception:  # damaged metadata do not make the image unusable
            transposed = False
    return (columns, rows) if transposed else (rows, columns)


def _read_lines(
    path: Path, size: tuple[int, int], class_names: tuple[str, ...], issues: Issues
) -> Iterator[tuple[str, int, Box, list[float]]]:
    """Yield the location, class index, box and polygon in pixels of each line; the polygon of a box is empty."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        issues.add(path, f"cannot be read as text ({error})")
        return
    for line_number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"line {line_number}", *_parse_line(line.split(), size, class_names)
            except InvalidAnnotation as error:
                issues.add(path, error, location=f"line {line_number}")


def _parse_line(fields: list[str], size: tuple[int, int], class_names: tuple[str, ...]) -> tuple[int, Box, list[float]]:
    rows, columns = size
    try:
        label, *fractions = (float(field) for field in fields)
    except ValueError as error:
        raise InvalidAnnotation(f"expected numbers, got something else ({error})") from error
    if not label.is_integer() or not 0 <= label < len(class_names):
        raise InvalidAnnotation(f"class: expected a whole number from 0 to {len(class_names) - 1}, got {fields[0]}")
    if len(fractions) < 4 or len(fractions) % 2:
        raise InvalidAnnotation(
            f"expected CLASS x y width height, or CLASS and an x and y for each point, got {len(fields)} numbers"
        )
    for fraction in fractions:
        if not -1 <= fraction <= 2:  # so far out they are pixels, or NaN
            raise InvalidAnnotation(f"expected fractions of the image's width and height, 0 to 1, got {fraction:g}")
    points = [fraction * (rows if index % 2 else columns) for index, fraction in enumerate(fractions)]
    if len(points) == 4:
        x, y, width, height = points
        box, polygon = (x - width / 2, y - height / 2, x + width / 2, y + height / 2), []
    else:
        check_segmentation([points], size)
        box, polygon = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])), points
    check_box(box, size)
    return int(label), box, polygon
