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
from typing import Any, NamedTuple

import yaml
from PIL import ExifTags, Image

from van.datasets.annotations import (
    AnnotatedDataset,
    Annotation,
    ImageRecord,
    InvalidAnnotation,
    Issues,
    check_box,
    check_segmentation,
    find_self_intersections,
)
from van.datasets.folder import VALIDATION_NAMES
from van.errors import DataError
from van.images import FORMATS, find_images

_TRANSPOSED = (5, 6, 7, 8)
"""The EXIF orientations that swap rows and columns."""


class _Line(NamedTuple):
    path: Path
    line_number: int
    label: int
    box: tuple[float, float, float, float]
    polygon: list[float]


class _Image(NamedTuple):
    path: Path
    name: str
    id: int
    size: tuple[int, int]
    lines: list[_Line]


def read_yolo(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images of ``split``, sorted by path; image and annotation ids count from 1, category ids from 0.

    Args:
        root: the folder with ``data.yaml``, or with a single other YAML file.
        split: train or val.
        issues: receives issues with file and line.

    Raises:
        DataError: there is no such file or split, or from ``issues``.
    """
    data_yaml = find_data_yaml(root)
    if data_yaml is None:
        raise DataError(f"{root}: expected data.yaml or a single other YAML file, with names, train and val, got none")
    content = _read_yaml(data_yaml)
    class_names = _read_class_names(data_yaml, content)
    listed = list(_list_images(data_yaml, content, split))
    images: list[_Image] = []
    num_label_files = 0
    for image_id, (folder, path) in enumerate(listed, start=1):
        try:
            size = _read_size(path)
        except Exception as error:  # decoders raise nearly anything on hostile files
            issues.add(path, f"cannot be read as an image ({error})")
            continue
        num_label_files += _label_path(path).is_file()
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        images.append(_Image(path, name, image_id, size, _read_lines(_label_path(path), size, class_names, issues)))
    if listed and not num_label_files:
        folder = _label_path(listed[0][1]).parent
        issues.add(data_yaml, f"{split}: expected text files in {folder}, got none for any of {len(listed)} images")
    _report_self_intersections([line for image in images for line in image.lines], issues)
    annotation_ids = itertools.count(1)
    records = (
        ImageRecord(
            path=image.path,
            name=image.name,
            id=image.id,
            size=image.size,
            annotations=tuple(_to_annotation(line, next(annotation_ids)) for line in image.lines),
        )
        for image in images
    )
    return AnnotatedDataset(class_names=class_names, category_ids=tuple(range(len(class_names))), images=tuple(records))


def find_data_yaml(root: Path) -> Path | None:
    """Return the YAML file that describes ``root``, None where there is none or several could."""
    if (root / "data.yaml").is_file():
        return root / "data.yaml"
    candidates = [path for pattern in ("*.yaml", "*.yml") for path in root.glob(pattern) if path.is_file()]
    return candidates[0] if len(candidates) == 1 else None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the keys names, train and val, got no keys")
    if "kpt_shape" in content:
        raise DataError(f"{path}: expected boxes or polygons, got kpt_shape: poses are not supported")
    return content


def _read_class_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    if "names" not in content:
        raise DataError(f"{path}: names: expected the class names in the order of their indices, got nothing")
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            indices = ", ".join(map(str, list(names)[:8]))
            raise DataError(f"{path}: names: expected all indices from 0 to {len(names) - 1}, got {indices}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names: expected a list of class names, got {names!r}")
    for index, name in enumerate(names):
        if type(name) not in (str, int) or name == "":
            # YAML reads an unquoted no, on or 1.5 as another type
            raise DataError(f"{path}: names: {index}: expected text, got {name!r}; put the name in quotes")
    class_names = tuple(map(str, names))
    duplicates = sorted({name for name in class_names if class_names.count(name) > 1})
    if duplicates:
        raise DataError(f"{path}: names: expected a unique name for each class, got {duplicates[0]!r} more than once")
    if content.get("nc", len(class_names)) != len(class_names):
        raise DataError(f"{path}: nc: expected {len(class_names)}, as there are names, got {content['nc']!r}")
    return class_names


def _list_images(data_yaml: Path, content: dict[str, Any], split: str) -> Iterator[tuple[Path, Path]]:
    """Yield each image of a split with the folder that its name is relative to."""
    key = next((name for name in _split_keys(split) if content.get(name)), None)
    if key is None:
        raise DataError(f"{data_yaml}: expected a folder of images under {' or '.join(_split_keys(split))}, got none")
    values = content[key] if isinstance(content[key], list) else [content[key]]
    base = data_yaml.parent
    if isinstance(content.get("path"), str) and (base / content["path"]).is_dir():
        base = base / content["path"]  # otherwise the dataset was moved, and lies beside its YAML file
    for value in values:
        if not isinstance(value, str) or "\0" in value:
            raise DataError(f"{data_yaml}: {key}: expected a folder of images, got {value!r}")
        # Roboflow's paths are relative to a folder one level deeper than the file
        candidates = (base / value, base / value.removeprefix("../"))
        existing = next((path for path in candidates if path.exists()), None)
        if existing is None:
            raise DataError(
                f"{data_yaml}: {key}: expected a folder of images, got {base / value}, which does not exist"
            )
        if existing.is_dir():
            yield from ((existing, path) for path in find_images(existing))
        else:
            yield from _read_image_list(existing)


def _read_image_list(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the images that a text file lists, relative to its own folder."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of images ({error})") from error
    yield from ((path.parent, path.parent / line.strip()) for line in sorted(set(lines)) if line.strip())


def _split_keys(split: str) -> tuple[str, ...]:
    return VALIDATION_NAMES if split == "val" else (split,)


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


def _read_lines(path: Path, size: tuple[int, int], class_names: tuple[str, ...], issues: Issues) -> list[_Line]:
    if not path.is_file():
        return []
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        issues.add(path, f"cannot be read as text ({error})")
        return []
    lines: list[_Line] = []
    for line_number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            lines.append(_Line(path, line_number, *_parse_line(text.split(), size, class_names)))
        except InvalidAnnotation as error:
            issues.add(path, str(error), location=f"line {line_number}")
    return lines


def _parse_line(
    fields: list[str], size: tuple[int, int], class_names: tuple[str, ...]
) -> tuple[int, tuple[float, float, float, float], list[float]]:
    """Return the class index, the box, and the polygon x, y, x, y, ... in pixels, empty for a line with a box."""
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
    if not all(-1 <= fraction <= 2 for fraction in fractions):  # so far out they are pixels, or NaN
        invalid = next(fraction for fraction in fractions if not -1 <= fraction <= 2)
        raise InvalidAnnotation(f"expected fractions of the image's width and height, 0 to 1, got {invalid:g}")
    points = [fraction * (rows if index % 2 else columns) for index, fraction in enumerate(fractions)]
    if len(points) == 4:
        x, y, width, height = points
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        check_segmentation([points], size)
        box = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
    check_box(box, size)
    return int(label), box, points if len(points) > 4 else []


def _report_self_intersections(lines: list[_Line], issues: Issues) -> None:
    """Report polygons whose edges cross as warnings: they can be drawn all the same."""
    with_polygons = [line for line in lines if line.polygon]
    message = "segmentation: expected edges that do not cross, got a self-intersection"
    for index in find_self_intersections([line.polygon for line in with_polygons]):
        line = with_polygons[index]
        issues.add(line.path, message, location=f"line {line.line_number}", is_warning=True)


def _to_annotation(line: _Line, annotation_id: int) -> Annotation:
    x1, y1, x2, y2 = line.box
    area = (x2 - x1) * (y2 - y1)
    if line.polygon:  # the shoelace formula
        points = list(zip(line.polygon[::2], line.polygon[1::2], strict=True))
        area = abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True))) / 2
    return Annotation(
        label=line.label,
        box=line.box,
        segmentation=[line.polygon] if line.polygon else None,
        area=area,
        id=annotation_id,
    )
