"""Pascal VOC's folders: an XML file of boxes for each picture.

::

    ROOT/JPEGImages/2008_000008.jpg    Annotations/2008_000008.xml    ImageSets/Main/train.txt, val.txt

Corners in the files count pixels from 1 and belong to the box; here a box runs from edge to edge, so that xmin - 1,
ymin - 1, xmax, ymax. What is ``difficult`` becomes a crowd: whether it is found counts neither for nor against.
Labels are the sorted class names of both parts. Outlines are not read.
Source: Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from van.data.folder import VALIDATION_NAMES
from van.data.marks import Mark, Marked, MarkedPicture, Problems, Wrong, check_box
from van.errors import DataError
from van.pictures import SUFFIXES


class _Thing(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Described(NamedTuple):
    path: Path
    size: tuple[int, int]
    things: list[_Thing]


def read_voc(root: Path, part: str, problems: Problems) -> Marked:
    """The pictures of ``part`` in the order of its list; pictures and marks are numbered from 1, category ids too.

    Both parts are read, since only together they tell the classes.

    Args:
        root: the folder that holds ``JPEGImages``.
        part: train or val; ``trainval.txt`` is what is learnt from where there is neither train.txt nor val.txt.
        problems: told of the file and the object; of the other part's when that one is read.

    Raises:
        DataError: there is no list for the part, or from ``problems``.
    """
    own = part_list(root, part)
    if own is None:
        wanted = ", ".join(f"{name}.txt" for name in _names(root, part))
        raise DataError(f"{root / 'ImageSets' / 'Main'} has none of {wanted}; wanted a list of the pictures of {part}")
    found = list(_described(root, own, problems))
    other = part_list(root, "train" if part == "val" else "val")
    others = [] if other is None else _described(root, other, Problems(collect=True))
    labels = tuple(sorted({thing.name for described in (*found, *others) for thing in described.things}))
    label_of = {name: label for label, name in enumerate(labels)}
    pictures: list[MarkedPicture] = []
    marked = 0
    for number, described in enumerate(found, start=1):
        marks = [
            Mark(
                label=label_of[thing.name],
                box=thing.box,
                crowd=thing.difficult,
                area=(thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]),
                number=marked + place,
            )
            for place, thing in enumerate(described.things, start=1)
        ]
        marked += len(marks)
        path, size = described.path, described.size
        name = path.relative_to(root / "JPEGImages").as_posix()
        pictures.append(MarkedPicture(path=path, name=name, number=number, marks=tuple(marks), size=size))
    return Marked(labels=labels, category_ids=tuple(range(1, len(labels) + 1)), pictures=tuple(pictures))


def part_list(root: Path, part: str) -> Path | None:
    """The text file that lists the pictures of a part, None where there is none."""
    lists = (root / "ImageSets" / "Main" / f"{name}.txt" for name in _names(root, part))
    return next((path for path in lists if path.is_file()), None)


def _names(root: Path, part: str) -> tuple[str, ...]:
    if part == "val":
        return VALIDATION_NAMES
    # beside val.txt it holds what is measured on
    return ("train",) if (root / "ImageSets" / "Main" / "val.txt").is_file() else ("train", "trainval")


def _described(root: Path, listed: Path, problems: Problems) -> Iterator[_Described]:
    """What the XML files of a list hold, without what is wrong."""
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{listed} cannot be read as a list of pictures ({error})") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line.split()[0]  # the lists of a class go on with 1, 0 or -1
        try:
            if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name or "\0" in name:
                raise Wrong(f"{name!r} leads outside {root / 'JPEGImages'}; wanted a name without a path")
            if name in seen:
                raise Wrong(f"{name!r} is there twice; wanted each picture once")
            seen.add(name)
            picture = _picture(root, name)
        except Wrong as wrong:
            problems.add(listed, str(wrong), place=f"line {number}")
            continue
        path = root / "Annotations" / f"{name}.xml"
        try:
            tree = _tree(path)
            size = _size(tree)
        except Wrong as wrong:
            problems.add(path, str(wrong))
            continue
        yield _Described(picture, size, list(_things(path, tree, size, problems)))


def _picture(root: Path, name: str) -> Path:
    places = [root / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise Wrong(f"its picture {places[0]} is missing, under any other ending, too")
    return found


def _tree(path: Path) -> Element:
    """The root of an XML file that declares nothing: declared entities can grow without end or open other files."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except FileNotFoundError as error:
        raise Wrong("is missing; wanted an XML file for each picture") from error
    except (OSError, ValueError, LookupError, expat.ExpatError, ParseError) as error:
        raise Wrong(f"cannot be read as XML ({error})") from error


def _refuse(*_: object) -> None:
    raise Wrong("has a DOCTYPE, which is not read, since its entities can do harm; remove it")


def _size(tree: Element) -> tuple[int, int]:
    columns, rows = (_number(tree, f"size/{key}") for key in ("width", "height"))
    if not (columns.is_integer() and rows.is_integer() and min(columns, rows) > 0):
        raise Wrong(f"its size is {columns:g} wide and {rows:g} high; wanted pixels, at least 1")
    return int(rows), int(columns)


def _things(path: Path, tree: Element, size: tuple[int, int], problems: Problems) -> Iterator[_Thing]:
    for number, entry in enumerate(tree.findall("object"), start=1):
        try:
            name = (entry.findtext("name") or "").strip()
            if not name:
                raise Wrong("name is missing; wanted the class")
            x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (entry.findtext("difficult") or "0").strip()
            if difficult not in ("0", "1"):
                raise Wrong(f"difficult is {difficult!r}; wanted 0 or 1")
            box = (x1 - 1, y1 - 1, x2, y2)
            check_box(box, size)
        except Wrong as wrong:
            problems.add(path, str(wrong), place=f"object {number}")
            continue
        yield _Thing(name, box, difficult == "1")


def _number(entry: Element, key: str) -> float:
    text = entry.findtext(key)
    if text is None:
        raise Wrong(f"{key} is missing; wanted a number")
    try:
        number = float(text)
    except ValueError as error:
        raise Wrong(f"{key} is {text!r}; wanted a number") from error
    if not math.isfinite(number):
        raise Wrong(f"{key} is {text!r}; wanted a finite number")
    return number
