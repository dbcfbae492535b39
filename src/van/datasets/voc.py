"""Reader of Pascal VOC: an XML file of boxes for each image.

::

    ROOT/JPEGImages/2008_000008.jpg    Annotations/2008_000008.xml    ImageSets/Main/train.txt, val.txt

Corners in the files count pixels from 1 and are part of the box; here a box runs from edge to edge: xmin - 1,
ymin - 1, xmax, ymax. A ``difficult`` object becomes a crowd: detecting it counts neither for nor against.
Class indices follow the sorted class names of both splits. Segmentations are not read.
Source: Everingham et al., "The PASCAL Visual Object Classification Challenge 2012 Development Kit".
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from van.datasets.annotations import (
    VALIDATION_NAMES,
    AnnotatedDataset,
    Annotation,
    ImageRecord,
    InvalidAnnotation,
    Issues,
    check_box,
    file_stamp,
)
from van.datasets.registry import register_format
from van.errors import DataError
from van.images import SUFFIXES

_Image = tuple[ImageRecord, tuple[tuple[str, Annotation], ...]]
"""An image without its annotations, and these with the names of their classes."""


@register_format(
    "voc",
    title="Pascal VOC",
    tasks=("detect",),
    files="`JPEGImages`, `Annotations` and `ImageSets/Main/{split}.txt`",
    recognize=lambda root, split: (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir(),
)
def read_voc(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images of ``split`` in the order of its list; image, annotation and category ids count from 1.

    Both splits are read, because the classes are those of both together; issues of the other one are not reported.
    ``trainval.txt`` is the training list where there is neither train.txt nor val.txt.
    """
    main = root / "ImageSets" / "Main"
    # beside val.txt, trainval.txt includes the validation images
    train_names = ("train",) if (main / "val.txt").is_file() else ("train", "trainval")
    images: dict[str, list[_Image]] = {"train": [], "val": []}
    for each, names in (("train", train_names), ("val", VALIDATION_NAMES)):
        split_list = next((main / f"{name}.txt" for name in names if (main / f"{name}.txt").is_file()), None)
        if split_list is not None:
            images[each] = list(_read_images(root, split_list, issues if each == split else Issues(collect=True)))
        elif each == split:
            expected = " or ".join(f"{name}.txt" for name in names)
            raise DataError(f"{main}: expected {expected} with the names of the images of {split}, got none")
    named = [name for of_split in images.values() for _, annotations in of_split for name, _ in annotations]
    class_names = tuple(sorted(set(named)))
    ids = itertools.count(1)
    records = []
    for image, annotations in images[split]:
        labeled = [dataclasses.replace(a, label=class_names.index(name), id=next(ids)) for name, a in annotations]
        records.append(dataclasses.replace(image, id=len(records) + 1, annotations=tuple(labeled)))
    category_ids = tuple(range(1, len(class_names) + 1))
    return AnnotatedDataset(class_names=class_names, category_ids=category_ids, images=tuple(records))


def _read_images(root: Path, split_list: Path, issues: Issues) -> Iterator[_Image]:
    """Yield the images of a list; what is invalid is reported and skipped."""
    try:
        lines = split_list.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{split_list}: cannot be read as a list of images ({error})") from error
    names: set[str] = set()
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line.split()[0]  # the lists of single classes have 1, 0 or -1 after the name
        folder = root / "JPEGImages"
        paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if "\0" not in name and path.is_file()), None)
        problem = ""
        if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name or "\0" in name:
            problem = f"expected the name of an image inside {folder}, got {name!r}"
        elif name in names:
            problem = f"expected each image once, got {name!r} a second time"
        names.add(name)
        if problem or path is None:
            missing = f"image {paths[0]} is missing, also with other suffixes"
            issues.add(split_list, problem or missing, location=f"line {line_number}")
            continue
        xml_path = root / "Annotations" / f"{name}.xml"
        try:
            size, annotations, invalid = _read_file(xml_path, file_stamp(xml_path))
        except InvalidAnnotation as error:
            issues.add(xml_path, error)
            continue
        for location, message in invalid:
            issues.add(xml_path, message, location=location)
        yield ImageRecord(path=path, name=path.relative_to(folder).as_posix(), id=0, size=size), annotations


@functools.lru_cache(maxsize=1 << 16)
def _read_file(
    path: Path, stamp: object
) -> tuple[tuple[int, int], tuple[tuple[str, Annotation], ...], tuple[tuple[str, str], ...]]:
    """Return size, annotations, and location and message of each invalid one; a file is parsed once for both splits."""
    tree = _parse_xml(path)
    columns, rows = (_number(tree, f"size/{key}") for key in ("width", "height"))
    if not (columns.is_integer() and rows.is_integer() and min(columns, rows) > 0):
        raise InvalidAnnotation(f"size: expected whole pixels, at least 1, got {columns:g}x{rows:g} (width x height)")
    size = (int(rows), int(columns))
    annotations: list[tuple[str, Annotation]] = []
    invalid: list[tuple[str, str]] = []
    for index, entry in enumerate(tree.findall("object"), start=1):
        try:
            name = (entry.findtext("name") or "").strip()
            if not name:
                raise InvalidAnnotation("name: expected the class, got nothing")
            x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (entry.findtext("difficult") or "0").strip()
            if difficult not in ("0", "1"):
                raise InvalidAnnotation(f"difficult: expected 0 or 1, got {difficult!r}")
            box = (x1 - 1, y1 - 1, x2, y2)
            check_box(box, size)
            area = (box[2] - box[0]) * (box[3] - box[1])
            annotations.append((name, Annotation(label=0, box=box, crowd=difficult == "1", area=area)))
        except InvalidAnnotation as error:
            invalid.append((f"object {index}", str(error)))
    return size, tuple(annotations), tuple(invalid)


def _parse_xml(path: Path) -> Element:
    """Parse an XML file without a DOCTYPE: its entities can expand without limit or open other files."""

    def reject_doctype(*_: object) -> None:
        raise InvalidAnnotation("expected XML without a DOCTYPE, whose entities can do harm; remove it")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, reject_doctype
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except FileNotFoundError as error:
        raise InvalidAnnotation("expected an XML file for each image, got no such file") from error
    except (OSError, ValueError, LookupError, expat.ExpatError, ParseError) as error:
        raise InvalidAnnotation(f"cannot be read as XML ({error})") from error


def _number(entry: Element, key: str) -> float:
    text = entry.findtext(key)
    if text is None:
        raise InvalidAnnotation(f"{key}: expected a number, got nothing (the element is missing)")
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidAnnotation(f"{key}: expected a number, got {text!r}") from error
    if not math.isfinite(value):
        raise InvalidAnnotation(f"{key}: expected a finite number, got {text!r}")
    return value
