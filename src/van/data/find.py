"""The door to marked data sets: finds the layout of a folder and has it read.

::

    COCO         annotations/instances_train*.json, panoptic_train*.json beside train*/ or images/train*/
    Roboflow     train/_annotations.coco.json among its pictures
    YOLO         data.yaml, or a single other YAML file
    Pascal VOC   JPEGImages/, Annotations/, ImageSets/Main/
    maps         as ``van.data.maps`` says

Of several that fit the first in this order is read. A folder that is none of them, but holds one alone that is
(or one that holds it), is entered. What is called ``val`` here may also be called ``valid``, ``validation`` or
``test``.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from van.data.coco import class_names, read_coco, read_panoptic
from van.data.folder import VALIDATION_NAMES
from van.data.marks import WANTS, Marked, Problems
from van.data.voc import read_voc
from van.data.yolo import find_description, read_yolo
from van.errors import DataError, NoSuchMarks, UsageError

_ROBOFLOW = "_annotations.coco.json"
_LAST_VALUE = 65_534
_WANTED = {
    "boxes": "annotations/instances_{part}*.json beside {part}*/ (COCO), {part}/"
    + _ROBOFLOW
    + " (Roboflow), data.yaml "
    "with names (YOLO), or JPEGImages/ with ImageSets/Main/{part}.txt (Pascal VOC)",
    "panoptic": "annotations/panoptic_{part}*.json beside panoptic_{part}*/ and {part}*/ (COCO)",
    "map": "images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ (Cityscapes), or images/ and masks/",
}
_WANTED["masks"] = _WANTED["boxes"]


class _Coco(NamedTuple):
    """A file of annotations, the folder of its pictures and, of panoptic ones, that of its maps."""

    annotations: Path
    pictures: Path
    maps: Path | None = None


def read_part(root: Path, part: str, *, want: str, problems: Problems) -> Marked:
    """Read one part of a marked data set, whatever its layout.

    Args:
        root: the data set's folder, or one around it.
        part: train or val.
        want: boxes, masks, map or panoptic.
        problems: told of all that is wrong in the files; also of a part with no class, no picture or nothing marked
            in any of them, and of classes in which train and val differ (when train is read).

    Raises:
        NoSuchMarks: no layout fits.
        DataError: more than one place does, or from ``problems``.
        UsageError: there is no such part or nothing such to want.
    """
    for name, value, known in (("part", part, ("train", "val")), ("want", want, WANTS)):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; wanted {' or '.join(known)}")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a data set")
    home = _home(root, part, want)
    before = len(problems.found)
    found = _reader(home, part, want)(problems)
    if len(problems.found) > before:  # of which the rest would follow
        return found
    if not found.labels:
        problems.add(home, f"has no classes for {part}; wanted at least one, see the categories or names of its files")
    elif not found.pictures:
        problems.add(home, f"has no pictures for {part}; wanted at least one")
    elif want in ("boxes", "masks"):
        _want_marks(home, found, part, want, problems)
    return found


def check_labels(found: Marked, labels: Sequence[str]) -> Marked:
    """The same set with a network's labels: classes are matched by name, and the network may know more.

    Of classes that the set lacks ``category_ids`` go on from its greatest, ``map_values`` come down from the upper end
    of 16 bits (whose very last says that nothing is known), and ``things`` are False.

    Raises:
        DataError: the set has classes that the network does not know.
    """
    if found.labels == tuple(labels):
        return found
    unknown = [label for label in found.labels if label not in set(labels)]
    if unknown:
        raise DataError(
            f"the data set has classes that the network does not know: {_listed(unknown)}; it knows {_listed(labels)}"
        )
    old = {name: label for label, name in enumerate(found.labels)}
    new = {old[name]: label for label, name in enumerate(labels) if name in old}
    spare_ids = itertools.count(max(found.category_ids, default=0) + 1)
    spare_values = (value for value in itertools.count(_LAST_VALUE, -1) if value not in found.map_values)
    pictures = (
        dataclasses.replace(
            picture,
            marks=tuple(dataclasses.replace(mark, label=new[mark.label]) for mark in picture.marks),
            segments=tuple(dataclasses.replace(each, label=new[each.label]) for each in picture.segments),
        )
        for picture in found.pictures
    )
    return Marked(
        labels=tuple(labels),
        category_ids=tuple(found.category_ids[old[name]] if name in old else next(spare_ids) for name in labels),
        pictures=tuple(pictures),
        things=tuple(name in old and found.things[old[name]] for name in labels) if found.things else (),
        map_values=tuple(found.map_values[old[name]] if name in old else next(spare_values) for name in labels)
        if found.map_values
        else (),
    )


def _home(root: Path, part: str, want: str) -> Path:
    """``root``, or the only folder in it, or in a folder of it, that is laid out as wanted."""
    places = [root]
    for _ in range(3):
        fitting = [place for place in places if _fits(place, part, want)]
        if len(fitting) > 1:
            raise DataError(
                f"{root} holds more than one data set: {_listed([p.name for p in fitting])}; give one of them"
            )
        if fitting:
            return fitting[0]
        places = sorted(
            child for place in places for child in place.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
    names = _names(part)
    also = f"; for {part} also {', '.join(names[1:])}" if names[1:] else ""
    raise NoSuchMarks(
        f"{root} and the folders in it hold no data set with {want} for {part}; "
        f"wanted {_WANTED[want].format(part=part)}{also}"
    )


def _fits(home: Path, part: str, want: str) -> bool:
    if want == "map":
        from van.data.maps import maps_home

        return maps_home(home) is not None
    if _coco(home, part, want) is not None:
        return True
    return want != "panoptic" and (_is_yolo(home) or _is_voc(home))


def _reader(home: Path, part: str, want: str) -> Callable[[Problems], Marked]:
    """What reads a folder that fits."""
    if want == "map":
        from van.data.maps import read_maps

        return lambda problems: read_maps(home, part, problems)
    coco = _coco(home, part, want)
    if coco is not None:
        return lambda problems: _read_coco(coco, home, part, want, problems)
    return lambda problems: (read_yolo if _is_yolo(home) else read_voc)(home, part, problems)


def _is_yolo(home: Path) -> bool:
    """Whether a YAML file there speaks of classes: other sets may hold other YAML files."""
    path = find_description(home)
    if path is None:
        return False
    try:
        return path.name == "data.yaml" or b"names" in path.read_bytes()
    except OSError:
        return True  # the reader says why it cannot be read


def _is_voc(home: Path) -> bool:
    return (home / "JPEGImages").is_dir() and (home / "Annotations").is_dir()


def _coco(home: Path, part: str, want: str) -> _Coco | None:
    """The files of a part in COCO's layout, None where there are none.

    Raises:
        DataError: there are several, or no pictures beside them.
    """
    kind = "panoptic" if want == "panoptic" else "instances"
    for name in _names(part):
        if kind == "instances" and (home / name / _ROBOFLOW).is_file():
            return _Coco(home / name / _ROBOFLOW, home / name)
        found = sorted((home / "annotations").glob(f"{kind}_{name}*.json"))
        if not found:
            continue
        fitting = [files for path in found if (files := _with_folders(home, path, kind)) is not None]
        if len(fitting) > 1:
            raise DataError(
                f"{home} holds {_listed([files.annotations.name for files in fitting])}; wanted one for {part}"
            )
        if not fitting:
            folder = found[0].stem.removeprefix(f"{kind}_")
            maps = f" and its maps in annotations/{found[0].stem}/" if kind == "panoptic" else ""
            raise DataError(f"{home} holds {found[0].name} and no pictures for it; wanted them in {folder}/{maps}")
        return fitting[0]
    return None


def _with_folders(home: Path, annotations: Path, kind: str) -> _Coco | None:
    stem = annotations.stem.removeprefix(f"{kind}_")
    pictures = next((place for place in (home / stem, home / "images" / stem) if place.is_dir()), None)
    if pictures is None or kind == "instances":
        return None if pictures is None else _Coco(annotations, pictures)
    places = (annotations.parent / annotations.stem, home / annotations.stem)
    maps = next((place for place in places if place.is_dir()), None)
    return None if maps is None else _Coco(annotations, pictures, maps)


def _read_coco(files: _Coco, home: Path, part: str, want: str, problems: Problems) -> Marked:
    if files.maps is not None:
        found = read_panoptic(files.annotations, files.maps, files.pictures, problems)
    else:
        found = read_coco(files.annotations, files.pictures, problems)
    other = None
    if part == "train":
        with contextlib.suppress(DataError):  # who reads val is told
            other = _coco(home, "val", want)
    names = () if other is None else class_names(other.annotations)
    if other is not None and names and found.labels and names != found.labels:
        lacking = [name for name in found.labels if name not in names]
        more = [name for name in names if name not in found.labels]
        how = f"here alone {_listed(lacking)}; there alone {_listed(more)}" if lacking or more else "in another order"
        problems.add(
            files.annotations, f"its classes differ from those of {other.annotations.name}: {how}; wanted the same"
        )
    return found


def _want_marks(home: Path, found: Marked, part: str, want: str, problems: Problems) -> None:
    marks = [mark for picture in found.pictures for mark in picture.marks]
    if not marks:
        problems.add(home, f"nothing is marked in any of the {len(found.pictures)} pictures of {part}; wanted boxes")
    elif want == "masks" and not any(mark.outline is not None for mark in marks):
        problems.add(
            home, f"none of the {len(marks)} marks of {part} has an outline; to learn masks, outlines are needed"
        )


def _names(part: str) -> tuple[str, ...]:
    return VALIDATION_NAMES if part == "val" else (part,)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "none"
