"""Reader of Pascal VOC: an XML file of boxes for each image.

::

    ROOT/JPEGImages/2008_000008.jpg    Annotations/2008_000008.xml    ImageSets/Main/train.txt, val.txt

Corners in the files count pixels from 1 and are part of the box; here a box runs from edge to edge: xmin - 1,
ymin - 1, xmax, ymax. A ``difficult`` object becomes a crowd: detecting it counts neither for nor against.
Class indices follow the sorted class names of both splits. Segmentations are not read.
Source: Everingham et al., "The PASCAL Visual Object Classification Challenge 2012 Development Kit".
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from van.datasets.annotations import AnnotatedDataset, Annotation, ImageRecord, InvalidAnnotation, Issues, check_box
from van.datasets.folder import VALIDATION_NAMES
from van.errors import DataError
from van.images import SUFFIXES


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _AnnotatedImage(NamedTuple):
    path: Path
    size: tuple[int, int]
    objects: list[_Object]


def read_voc(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images of ``split`` in the order of its list; image, annotation and category ids count from 1.

    Both splits are read, because the classes are those of both together.

    Args:
        root: the folder that contains ``JPEGImages``.
        split: train or val; ``trainval.txt`` is the training list where there is neither train.txt nor val.txt.
        issues: receives issues with file and object; those of the other split when that one is read.

    Raises:
        DataError: there is no list for the split, or from ``issues``.
    """
    split_list = find_split_list(root, split)
    if split_list is None:
        expected = " or ".join(f"{name}.txt" for name in _list_names(root, split))
        raise DataError(
            f"{root / 'ImageSets' / 'Main'}: expected {expected} with the names of the images of {split}, got none"
        )
    images = list(_read_images(root, split_list, issues))
    other_list = find_split_list(root, "train" if split == "val" else "val")
    others = [] if other_list is None else _read_images(root, other_list, Issues(collect=True))
    class_names = tuple(sorted({each.name for image in (*images, *others) for each in image.objects}))
    label_of = {name: label for label, name in enumerate(class_names)}
    records: list[ImageRecord] = []
    num_annotations = 0
    for image_id, image in enumerate(images, start=1):
        annotations = [
            Annotation(
                label=label_of[each.name],
                box=each.box,
                crowd=each.difficult,
                area=(each.box[2] - each.box[0]) * (each.box[3] - each.box[1]),
                id=annotation_id,
            )
            for annotation_id, each in enumerate(image.objects, start=num_annotations + 1)
        ]
        num_annotations += len(annotations)
        name = image.path.relative_to(root / "JPEGImages").as_posix()
        records.append(
            ImageRecord(path=image.path, name=name, id=image_id, annotations=tuple(annotations), size=image.size)
        )
    return AnnotatedDataset(
        class_names=class_names, category_ids=tuple(range(1, len(class_names) + 1)), images=tuple(records)
    )


def find_split_list(root: Path, split: str) -> Path | None:
    """Return the text file that lists the images of a split, None where there is none."""
    lists = (root / "ImageSets" / "Main" / f"{name}.txt" for name in _list_names(root, split))
    return next((path for path in lists if path.is_file()), None)


def _list_names(root: Path, split: str) -> tuple[str, ...]:
    if split == "val":
        return VALIDATION_NAMES
    # beside val.txt, trainval.txt includes the validation images
    return ("train",) if (root / "ImageSets" / "Main" / "val.txt").is_file() else ("train", "trainval")


def _read_images(root: Path, split_list: Path, issues: Issues) -> Iterator[_AnnotatedImage]:
    """Yield the images of a list with the objects of their XML files; what is invalid is reported and skipped."""
    try:
        lines = split_list.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{split_list}: cannot be read as a list of images ({error})") from error
    names: set[str] = set()
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line.split()[0]  # the lists of single classes have 1, 0 or -1 after the name
        try:
            if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name or "\0" in name:
                raise InvalidAnnotation(f"expected the name of an image inside {root / 'JPEGImages'}, got {name!r}")
            if name in names:
                raise InvalidAnnotation(f"expected each image once, got {name!r} a second time")
            names.add(name)
            image_path = _find_image(root, name)
        except InvalidAnnotation as error:
            issues.add(split_list, str(error), location=f"line {line_number}")
            continue
        xml_path = root / "Annotations" / f"{name}.xml"
        try:
            tree = _parse_xml(xml_path)
            size = _read_size(tree)
        except InvalidAnnotation as error:
            issues.add(xml_path, str(error))
            continue
        yield _AnnotatedImage(image_path, size, list(_read_objects(xml_path, tree, size, issues)))


def _find_image(root: Path, name: str) -> Path:
    paths = [root / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES]
    existing = next((path for path in paths if path.is_file()), None)
    if existing is None:
        raise InvalidAnnotation(f"image {paths[0]} is missing, also with other suffixes")
    return existing


def _parse_xml(path: Path) -> Element:
    """Parse an XML file without a DOCTYPE: its entities can expand without limit or open other files."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _reject_doctype
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except FileNotFoundError as error:
        raise InvalidAnnotation("expected an XML file for each image, got no such file") from error
    except (OSError, ValueError, LookupError, expat.ExpatError, ParseError) as error:
        raise InvalidAnnotation(f"cannot be read as XML ({error})") from error


def _reject_doctype(*_: object) -> None:
    raise InvalidAnnotation("expected XML without a DOCTYPE, whose entities can do harm; remove it")


def _read_size(tree: Element) -> tuple[int, int]:
    columns, rows = (_number(tree, f"size/{key}") for key in ("width", "height"))
    if not (columns.is_integer() and rows.is_integer() and min(columns, rows) > 0):
        raise InvalidAnnotation(f"size: expected whole pixels, at least 1, got {columns:g}x{rows:g} (width x height)")
    return int(rows), int(columns)


def _read_objects(path: Path, tree: Element, size: tuple[int, int], issues: Issues) -> Iterator[_Object]:
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
        except InvalidAnnotation as error:
            issues.add(path, str(error), location=f"object {index}")
            continue
        yield _Object(name, box, difficult == "1")


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
