"""YOLO's folders: a text file of lines for each picture, as Ultralytics' tools write them.

::

    ROOT/data.yaml             names (a list, or 0: a, 1: b), train, val; path and nc where it has them
    ROOT/images/train/a.jpg    labels/train/a.txt: CLASS x y width height, or CLASS x1 y1 x2 y2 x3 y3 ...

``train`` and ``val`` are folders, lists of folders, or text files that list pictures. x and y, in a box those of its
middle, are shares of the picture's sides. A picture without a text file shows nothing.
Shapes: boxes x1, y1, x2, y2 in pixels; sizes (rows, columns) of the picture turned upright, as it is read.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import ExifTags, Image

from van.data.folder import VALIDATION_NAMES
from van.data.marks import Mark, Marked, MarkedPicture, Problems, Wrong, check_box, check_outline, crossing
from van.errors import DataError
from van.pictures import FORMATS, find_pictures

_SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that change rows for columns."""


class _Line(NamedTuple):
    path: Path
    number: int
    label: int
    box: tuple[float, float, float, float]
    points: list[float]


def read_yolo(root: Path, part: str, problems: Problems) -> Marked:
    """The pictures of ``part``, sorted by path; pictures and marks are numbered from 1, category ids from 0.

    Args:
        root: the folder with ``data.yaml``, or with a single other YAML file.
        part: train or val.
        problems: told of the file and the line.

    Raises:
        DataError: there is no such file or part, or from ``problems``.
    """
    description = find_description(root)
    if description is None:
        raise DataError(f"{root} has no data.yaml and no other single YAML file; wanted one, with names, train and val")
    content = _content(description)
    labels = _labels(description, content)
    listed = list(_listed(description, content, part))
    found: list[tuple[Path, str, int, tuple[int, int], list[_Line]]] = []
    described = 0
    for number, (folder, path) in enumerate(listed, start=1):
        try:
            size = _upright_size(path)
        except Exception as error:  # decoders raise nearly anything on hostile files
            problems.add(path, f"is no picture that can be read ({error})")
            continue
        described += _labels_path(path).is_file()
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        found.append((path, name, number, size, _lines(_labels_path(path), size, labels, problems)))
    if listed and not described:
        where = _labels_path(listed[0][1]).parent
        problems.add(
            description, f"none of the {len(listed)} pictures of {part} has a file of lines; wanted them in {where}"
        )
    _note_crossed([line for *_, lines in found for line in lines], problems)
    numbers = itertools.count(1)
    pictures = (
        MarkedPicture(
            path=path,
            name=name,
            number=number,
            size=size,
            marks=tuple(_mark(line, next(numbers)) for line in lines),
        )
        for path, name, number, size, lines in found
    )
    return Marked(labels=labels, category_ids=tuple(range(len(labels))), pictures=tuple(pictures))


def find_description(root: Path) -> Path | None:
    """The YAML file that describes ``root``, None where there is none or it is not clear which."""
    if (root / "data.yaml").is_file():
        return root / "data.yaml"
    found = [path for ending in ("*.yaml", "*.yml") for path in root.glob(ending) if path.is_file()]
    return found[0] if len(found) == 1 else None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys; wanted names, train and val")
    if "kpt_shape" in content:
        raise DataError(f"{path} has kpt_shape: its lines hold poses, which are not read; wanted boxes or outlines")
    return content


def _labels(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    if "names" not in content:
        raise DataError(f"{path}: names is missing; wanted the classes, in the order of their numbers")
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            numbers = ", ".join(map(str, list(names)[:8]))
            raise DataError(f"{path}: names has the numbers {numbers}; wanted all from 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names is {names!r}; wanted a list of classes")
    for number, name in enumerate(names):
        if type(name) not in (str, int) or name == "":
            raise DataError(
                f"{path}: name {number} is {name!r}; wanted text, in quotes where YAML has its own idea of it"
            )
    labels = tuple(map(str, names))
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise DataError(f"{path}: {twice[0]!r} is in names more than once; wanted another name for each class")
    if content.get("nc", len(labels)) != len(labels):
        raise DataError(f"{path}: nc is {content['nc']!r} and there are {len(labels)} names; wanted as many")
    return labels


def _listed(description: Path, content: dict[str, Any], part: str) -> Iterator[tuple[Path, Path]]:
    """Each picture of a part, behind the folder that its name starts from."""
    key = next((name for name in _keys(part) if content.get(name)), None)
    if key is None:
        raise DataError(f"{description} has none of {', '.join(_keys(part))}; wanted a folder of pictures")
    places = content[key] if isinstance(content[key], list) else [content[key]]
    base = description.parent
    if isinstance(content.get("path"), str) and (base / content["path"]).is_dir():
        base = base / content["path"]  # else the set was moved since, and lies beside its description
    for place in places:
        if not isinstance(place, str) or "\0" in place:
            raise DataError(f"{description}: {key} is {place!r}; wanted a folder of pictures")
        # Roboflow counts from a folder deeper than its file lies
        found = next((p for p in (base / place, base / place.removeprefix("../")) if p.exists()), None)
        if found is None:
            raise DataError(f"{description}: {key} leads to {base / place}; there is no such folder")
        if found.is_dir():
            yield from ((found, path) for path in find_pictures(found))
        else:
            yield from _from_list(found)


def _from_list(path: Path) -> Iterator[tuple[Path, Path]]:
    """The pictures that a text file lists, from its own folder on."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of pictures ({error})") from error
    yield from ((path.parent, path.parent / line.strip()) for line in sorted(set(lines)) if line.strip())


def _keys(part: str) -> tuple[str, ...]:
    return VALIDATION_NAMES if part == "val" else (part,)


def _labels_path(picture: Path) -> Path:
    """The text file: ``labels`` for the last ``images`` in the path, or beside the picture."""
    parts = list(picture.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, picture.stem + ".txt")


def _upright_size(path: Path) -> tuple[int, int]:
    """(rows, columns) as ``van.pictures`` turns it; nothing is decoded."""
    with Image.open(path, formats=FORMATS) as file:
        columns, rows = file.size
        try:
            sideways = file.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        except Exception:  # a picture is worth more than its metadata
            sideways = False
    return (columns, rows) if sideways else (rows, columns)


def _lines(path: Path, size: tuple[int, int], labels: tuple[str, ...], problems: Problems) -> list[_Line]:
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        problems.add(path, f"cannot be read as text ({error})")
        return []
    found: list[_Line] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_Line(path, number, *_label_and_points(line.split(), size, labels)))
        except Wrong as wrong:
            problems.add(path, str(wrong), place=f"line {number}")
    return found


def _label_and_points(
    words: list[str], size: tuple[int, int], labels: tuple[str, ...]
) -> tuple[int, tuple[float, float, float, float], list[float]]:
    """The class, the box, and the outline's x, y, x, y, ... in pixels, empty where the line holds a box alone."""
    rows, columns = size
    try:
        label, *shares = (float(word) for word in words)
    except ValueError as error:
        raise Wrong(f"holds what is no number ({error})") from error
    if not label.is_integer() or not 0 <= label < len(labels):
        raise Wrong(f"its class is {words[0]}; wanted a whole number from 0 to {len(labels) - 1}")
    if len(shares) < 4 or len(shares) % 2:
        raise Wrong(f"has {len(words)} numbers; wanted CLASS x y width height, or CLASS and an x and y for each point")
    if not all(-1 <= share <= 2 for share in shares):  # so far out they are in pixels, or no numbers
        strange = next(share for share in shares if not -1 <= share <= 2)
        raise Wrong(f"holds {strange:g}; wanted shares of the picture's sides, 0 to 1")
    points = [share * (rows if place % 2 else columns) for place, share in enumerate(shares)]
    if len(points) == 4:
        x, y, width, height = points
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        check_outline([points], size)
        box = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
    check_box(box, size)
    return int(label), box, points if len(points) > 4 else []


def _note_crossed(lines: list[_Line], problems: Problems) -> None:
    """Tell of outlines that cross themselves; they can be drawn all the same."""
    outlined = [line for line in lines if line.points]
    what = "its outline crosses itself; wanted edges that meet at their ends alone"
    for place in crossing([line.points for line in outlined]):
        path, number = outlined[place][:2]
        problems.add(path, what, place=f"line {number}", kept=True)


def _mark(line: _Line, number: int) -> Mark:
    x1, y1, x2, y2 = line.box
    area = (x2 - x1) * (y2 - y1)
    if line.points:  # what each edge encloses with the origin, twice, signs and all
        ends = list(zip(line.points[::2], line.points[1::2], strict=True))
        area = abs(sum(x * v - u * y for (x, y), (u, v) in zip(ends, ends[1:] + ends[:1], strict=True))) / 2
    return Mark(
        label=line.label, box=line.box, outline=[line.points] if line.points else None, area=area, number=number
    )
