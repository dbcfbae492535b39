"""COCO's annotation files: instances (boxes, polygons, run lengths) and panoptic maps.

All that can be seen without opening a picture is checked here. Labels count from 0 in the order of category ids.
Shapes: boxes x1, y1, x2, y2, where the files have x, y, width, height; sizes (rows, columns); ids (H, W).
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

from van.data.marks import Mark, Marked, MarkedPicture, Problems, Segment, Wrong, check_box, check_outline, crossing
from van.errors import DataError
from van.pictures import MAX_PIXELS

_MOST = 1 << 53
"""Numbers beyond this are neither pixels nor ids."""
_MOST_SEGMENTS = 1 << 24
"""So many colours there are."""


class _Classes(NamedTuple):
    """Names, ids and whether each is a thing, in the order of labels; ``of`` leads from an id to its label."""

    labels: tuple[str, ...]
    ids: tuple[int, ...]
    things: tuple[bool, ...]
    of: dict[int, int]


class _Picture(NamedTuple):
    path: Path
    name: str
    size: tuple[int, int]


@contextlib.contextmanager
def _no_collecting() -> Iterator[None]:
    """Millions of new objects and no garbage: looking for it takes as long as reading."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_no_collecting()
def read_coco(annotations: Path, pictures: Path, problems: Problems) -> Marked:
    """Boxes and outlines of an ``instances`` file; pictures, sorted by id, also those that hold nothing.

    Args:
        annotations: the JSON file.
        pictures: the folder that its file names start from.
        problems: told of what is missing, of the wrong type, used twice, unknown, outside its picture or crossed.

    Raises:
        DataError: from ``problems``.
    """
    content = _read_lists(annotations, problems)
    entries = _by_id(annotations, content["annotations"], "annotation", problems)
    classes = _classes(annotations, content["categories"], _used(entries.values()), problems)
    known = _pictures(annotations, content["images"], pictures, problems)
    found: dict[int, list[Mark]] = {number: [] for number in known}
    # a file of boxes alone may say [] for each; beside outlines that is one that was lost
    has_outlines = any(entry.get("segmentation") not in (None, []) for entry in entries.values())
    for number, entry in entries.items():
        try:
            home, mark = _mark(entry, number, classes, known)
            if has_outlines and entry.get("segmentation") == []:
                raise Wrong("its outline is empty; wanted polygons or run lengths")
            found[home].append(mark)
        except Wrong as wrong:
            problems.add(annotations, str(wrong), place=f"annotation {number}")
    _note_crossed(annotations, found, problems)
    marked = (
        MarkedPicture(
            path=picture.path, name=picture.name, number=number, size=picture.size, marks=tuple(found[number])
        )
        for number, picture in sorted(known.items())
        if picture is not None
    )
    return Marked(labels=classes.labels, category_ids=classes.ids, pictures=tuple(marked))


@_no_collecting()
def read_panoptic(annotations: Path, maps: Path, pictures: Path, problems: Problems) -> Marked:
    """Panoptic maps and what their colours mean; pictures sorted by id.

    Args:
        annotations: the JSON file.
        maps: the folder of its PNG maps, see ``read_panoptic_ids``.
        pictures: the folder that the file names of pictures start from.
        problems: as for ``read_coco``; also told of pictures without a map.

    Raises:
        DataError: from ``problems``.
    """
    content = _read_lists(annotations, problems)
    classes = _classes(annotations, content["categories"], None, problems)
    known = _pictures(annotations, content["images"], pictures, problems)
    found: dict[int, MarkedPicture] = {}
    described: set[int] = set()
    for place, entry in enumerate(content["annotations"]):
        try:
            home = _id(entry, "image_id")
            if home not in known:
                raise Wrong(f"image_id is {home}; the file has no such picture")
            if home in described:
                raise Wrong(f"image_id is {home}, as that of another annotation; wanted one for each picture")
            described.add(home)
            picture = known[home]
            if picture is None:
                continue
            map_path = _inside(maps, _take(entry, "file_name", str, "text"))
            if not _is_file(map_path):
                raise Wrong(f"its map {map_path} is missing")
            listed = _take(entry, "segments_info", list, "a list")
        except Wrong as wrong:
            problems.add(annotations, str(wrong), place=_place("annotation of picture", entry, "image_id", place))
            continue
        segments = tuple(_segments(annotations, listed, home, classes, picture.size, problems))
        path, name, size = picture
        found[home] = MarkedPicture(path=path, name=name, number=home, size=size, map_path=map_path, segments=segments)
    for number in sorted(set(known) - described):
        problems.add(annotations, "has no panoptic annotation; wanted one for each picture", place=f"picture {number}")
    marked = tuple(picture for _, picture in sorted(found.items()))
    return Marked(labels=classes.labels, category_ids=classes.ids, pictures=marked, things=classes.things)


def read_panoptic_ids(path: Path) -> np.ndarray:
    """(H, W) int32: the segment of each pixel, red + 256 green + 65,536 blue; 0 where nothing is known.

    Raises:
        DataError: the file is missing, damaged, too large, or not in colours.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{path} has {file.width}x{file.height} pixels; wanted at most {MAX_PIXELS:,}")
            if file.mode not in ("RGB", "RGBA", "P"):
                raise DataError(f"{path} is no panoptic map: its pixels are {file.mode}; wanted colours (RGB)")
            colours = np.asarray(file.convert("RGB") if file.mode == "P" else file)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        raise DataError(f"{path} cannot be read as a PNG map ({error or type(error).__name__})") from error
    ids = colours[..., 0].astype(np.int32)
    ids += colours[..., 1].astype(np.int32) << 8
    ids += colours[..., 2].astype(np.int32) << 16
    return ids


def class_names(annotations: Path) -> tuple[str, ...]:
    """The labels that either reader would give, empty where the file cannot be read; problems are passed over."""
    unheard = Problems(collect=True)
    content = _read_lists(annotations, unheard)
    entries = (entry for entry in content["annotations"] if isinstance(entry, dict))
    return _classes(annotations, content["categories"], _used(entries), unheard).labels


def _read_lists(path: Path, problems: Problems) -> dict[str, list[Any]]:
    """The three lists of a file, empty where they are not to be had."""
    lists: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        problems.add(path, f"cannot be read as JSON ({error})")
        return lists
    if not isinstance(content, dict):
        problems.add(path, f"holds {_shown(content)}; wanted an object with {', '.join(lists)}")
        return lists
    for key in lists:
        try:
            lists[key] = _take(content, key, list, "a list")
        except Wrong as wrong:
            problems.add(path, str(wrong))
    return lists


def _by_id(path: Path, entries: list[Any], what: str, problems: Problems) -> dict[int, dict[str, Any]]:
    """Entries by id, in the order of the file; of two with one id the first."""
    found: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        try:
            number = _id(entry, "id")
            if number in found:
                raise Wrong(f"its id {number} is used twice; wanted another for each {what}")
        except Wrong as wrong:
            problems.add(path, str(wrong), place=_place(what, entry, "id", place))
            continue
        found[number] = entry
    return found


def _classes(path: Path, entries: list[Any], used: set[int] | None, problems: Problems) -> _Classes:
    """Categories by ascending id; ``used`` ones, or None for those of a panoptic file, which say ``isthing``."""
    found: dict[int, tuple[str, bool]] = {}
    by_id = _by_id(path, entries, "category", problems)
    if used is not None:
        by_id = _without_group(by_id, used)
    names: dict[str, int] = {}
    for number, entry in sorted(by_id.items()):
        try:
            name = _take(entry, "name", str, "text")
            if not name:
                raise Wrong("name is empty")
            if name in names:
                raise Wrong(f"name is {_shown(name)}, as that of category {names[name]}; wanted another for each")
            is_thing = used is not None or _flag(entry, "isthing", required=True)
        except Wrong as wrong:
            problems.add(path, str(wrong), place=f"category {number}")
            continue
        names[name] = number
        found[number] = (name, is_thing)
    return _Classes(
        tuple(names),
        tuple(found),
        tuple(is_thing for _, is_thing in found.values()) if used is None else (),
        {number: label for label, number in enumerate(found)},
    )


def _without_group(by_id: dict[int, dict[str, Any]], used: set[int]) -> dict[int, dict[str, Any]]:
    """Categories without the one that Roboflow puts before them: it names the group, and nothing is marked with it."""
    for number, entry in by_id.items():
        others = {place: other for place, other in by_id.items() if place != number}
        is_group = others and all(other.get("supercategory") == entry.get("name") for other in others.values())
        if is_group and number not in used and entry.get("supercategory") == "none":
            return others
    return by_id


def _used(entries: Iterable[dict[str, Any]]) -> set[int]:
    return {entry["category_id"] for entry in entries if type(entry.get("category_id")) is int}


def _pictures(path: Path, entries: list[Any], folder: Path, problems: Problems) -> dict[int, _Picture | None]:
    """Pictures by id; None for those that are known and cannot be used."""
    found: dict[int, _Picture | None] = {}
    for number, entry in _by_id(path, entries, "picture", problems).items():
        found[number] = None
        try:
            name = _take(entry, "file_name", str, "text")
            columns, rows = (_take(entry, key, int, "a whole number") for key in ("width", "height"))
            for key, side in (("width", columns), ("height", rows)):
                if not 0 < side < _MOST:
                    raise Wrong(f"{key} is {_shown(side)}; wanted pixels, at least 1")
            place = _inside(folder, name)
            if not _is_file(place):
                raise Wrong(f"its file {place} is missing")
            found[number] = _Picture(place, name, (rows, columns))
        except Wrong as wrong:
            problems.add(path, str(wrong), place=f"picture {number}")
    return found


def _mark(
    entry: dict[str, Any], number: int, classes: _Classes, known: Mapping[int, _Picture | None]
) -> tuple[int, Mark]:
    """The picture's id and the mark; one in a picture that cannot be used is held against no size."""
    home, label = _id(entry, "image_id"), _label(entry, classes)
    if home not in known:
        raise Wrong(f"image_id is {home}; the file has no such picture")
    picture = known[home]
    size = (_MOST, _MOST) if picture is None else picture.size
    box = _box(entry, size)
    outline = None if picture is None or entry.get("segmentation") == [] else entry.get("segmentation")
    if outline is not None:
        check_outline(outline, size)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if entry.get("area") is not None:
        area = _number(entry["area"], "area")
        if area < 0:
            raise Wrong(f"area is {area}; wanted pixels, at least 0")
    crowd = _flag(entry, "iscrowd")
    return home, Mark(label=label, box=box, outline=outline, crowd=crowd, area=float(area), number=number)


def _segments(
    path: Path, entries: list[Any], home: int, classes: _Classes, size: tuple[int, int], problems: Problems
) -> Iterator[Segment]:
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        try:
            number = _id(entry, "id")
            if not 0 < number < _MOST_SEGMENTS:
                raise Wrong(f"id is {number}; wanted a colour, 1 to {_MOST_SEGMENTS - 1}")
            if number in seen:
                raise Wrong(f"its id {number} is used twice; wanted another for each segment of a picture")
            seen.add(number)
            label = _label(entry, classes)
            if entry.get("bbox") is not None:
                _box(entry, size)
            yield Segment(id=number, label=label, crowd=_flag(entry, "iscrowd"))
        except Wrong as wrong:
            where = f"annotation of picture {home}, {_place('segment', entry, 'id', place)}"
            problems.add(path, str(wrong), place=where)


def _note_crossed(path: Path, found: dict[int, list[Mark]], problems: Problems) -> None:
    """Tell of outlines whose edges cross; they can be drawn all the same."""
    owners: list[tuple[Mark, int]] = []
    polygons: list[list[float]] = []
    for marks in found.values():
        for mark in marks:
            if isinstance(mark.outline, list):
                owners += [(mark, place) for place in range(len(mark.outline))]
                polygons += mark.outline
    for place in crossing(polygons):
        mark, number = owners[place]
        what = f"polygon {number} of its outline crosses itself; wanted edges that meet at their ends alone"
        problems.add(path, what, place=f"annotation {mark.number}", kept=True)


def _take(entry: Any, key: str, kind: type, wanted: str) -> Any:
    if not isinstance(entry, dict):
        raise Wrong(f"is {_shown(entry)}; wanted an object")
    if key not in entry:
        raise Wrong(f"{key} is missing; wanted {wanted}")
    if type(entry[key]) is not kind:  # True is no number
        raise Wrong(f"{key} is {_shown(entry[key])}; wanted {wanted}")
    return entry[key]


def _id(entry: Any, key: str) -> int:
    number = _take(entry, key, int, "a whole number")
    if not 0 <= number < _MOST:
        raise Wrong(f"{key} is {_shown(number)}; wanted a whole number, at least 0")
    return number


def _label(entry: dict[str, Any], classes: _Classes) -> int:
    number = _id(entry, "category_id")
    if number not in classes.of:
        raise Wrong(f"category_id is {number}; the file has no such category")
    return classes.of[number]


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not -_MOST < value < _MOST:
        raise Wrong(f"{what} is {_shown(value)}; wanted a finite number")
    return value


def _flag(entry: dict[str, Any], key: str, *, required: bool = False) -> bool:
    if key not in entry and required:
        raise Wrong(f"{key} is missing; wanted 0 or 1")
    value = entry.get(key, 0)
    if type(value) not in (int, bool) or value not in (0, 1):
        raise Wrong(f"{key} is {_shown(value)}; wanted 0 or 1")
    return bool(value)


def _box(entry: dict[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    sides = _take(entry, "bbox", list, "x, y, width, height")
    if len(sides) != 4:
        raise Wrong(f"bbox has {len(sides)} numbers; wanted x, y, width, height")
    x, y, width, height = (_number(side, "a number of bbox") for side in sides)
    box = (x, y, x + width, y + height)
    check_box(box, size)
    return box


def _inside(folder: Path, name: str) -> Path:
    """The path of ``name`` below ``folder``."""
    windows = PureWindowsPath(name)
    if not name or windows.drive or windows.root or ".." in windows.parts or PurePosixPath(name).is_absolute():
        raise Wrong(f"file_name is {_shown(name)}, which leads outside {folder}; wanted a path below it, without ..")
    return folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long for the file system
        return False


def _place(what: str, entry: Any, key: str, number: int) -> str:
    """``annotation 17``, or ``annotation at 3`` where it has no id of its own."""
    own = entry.get(key) if isinstance(entry, dict) else None
    return f"{what} {own}" if type(own) is int and 0 <= own < _MOST else f"{what} at place {number}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
