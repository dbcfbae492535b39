"""One picture, held against everything that is said of it: by boxes, outlines, maps and segments.

Shapes: sizes (rows, columns); boxes x1, y1, x2, y2 in pixels; maps (H, W).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from van.data.coco import read_panoptic_ids
from van.data.maps import read_values, unknown_values
from van.data.marks import MarkedPicture, Problem, Wrong, check_box
from van.data.offers import CLASSES, Offer
from van.errors import DataError, PictureError
from van.pictures import read_picture

_MOST_VALUES = 8


class Said(NamedTuple):
    """What an offer says of a picture."""

    offer: Offer
    picture: MarkedPicture


class Look(NamedTuple):
    """What a picture turned out to be.

    ``digest`` is the hash of its file, empty if that is no picture; then ``size`` is None. ``shown`` has the labels
    for each that is said of it.
    """

    digest: bytes
    size: tuple[int, int] | None
    shown: list[Counter[int]]
    problems: list[Problem]


def look(path: Path, all_said: Sequence[Said]) -> Look:
    """Open a picture and hold it against what is said of it."""
    digest, size, reason = _open(path)
    found = [Problem(str(path), "", reason)] if reason else []
    shown: list[Counter[int]] = []
    for offer, said in all_said:
        if size is not None and said.size not in ((0, 0), size):
            found.append(Problem(str(path), "", f"{_differs(size, said.size)} as its annotations say"))
        if offer.kind == "map":
            shown.append(_look_at_map(said, offer.marked.map_values, size, found))
        elif offer.kind == "panoptic":
            shown.append(_look_at_panoptic(said, size, found))
        else:
            outlines = offer.kind == "masks"
            shown.append(Counter(mark.label for mark in said.marks if not outlines or mark.outline is not None))
            if offer.kind != CLASSES and size is not None:
                _look_at_marks(said, size, found, outlines=outlines)
    return Look(digest, size, shown, found)


def _open(path: Path) -> tuple[bytes, tuple[int, int] | None, str]:
    """The hash of a file, the size of its picture, and the reason why there is none."""
    try:
        content = path.read_bytes()
        picture = read_picture(content, name=str(path))
    except PictureError as error:
        return b"", None, error.reason
    except OSError as error:
        return b"", None, f"cannot be read ({error.strerror})"
    return hashlib.sha256(content).digest(), (picture.height, picture.width), ""


def _look_at_marks(said: MarkedPicture, size: tuple[int, int], found: list[Problem], *, outlines: bool) -> None:
    for mark in said.marks:
        try:
            if said.size != size:  # else the reader has looked
                check_box(mark.box, size)
            if outlines and mark.outline is not None and said.size in ((0, 0), size) and not mark.mask(size).any():
                raise Wrong("its outline holds no pixel")
        except (Wrong, DataError) as wrong:
            what = str(wrong).removeprefix(f"annotation {mark.number}: ")
            found.append(Problem(str(said.path), f"annotation {mark.number}", what))


def _look_at_map(
    said: MarkedPicture, map_values: tuple[int, ...], size: tuple[int, int] | None, found: list[Problem]
) -> Counter[int]:
    """The labels that a semantic map shows."""
    file = str(said.map_path)
    assert said.map_path is not None
    try:
        values = read_values(said.map_path)
    except PictureError as error:
        found.append(Problem(file, "", error.reason))
        return Counter()
    if size is not None and values.shape != size:
        found.append(Problem(file, "", f"{_differs(values.shape, size)} as its picture"))
    strange = sorted(unknown_values(values, map_values).items(), key=lambda pair: -pair[1])
    if strange:
        shown = ", ".join(f"{value} ({share:.2%} of the pixels)" for value, share in strange[:_MOST_VALUES])
        more = f" and {len(strange) - _MOST_VALUES} more" if len(strange) > _MOST_VALUES else ""
        such = "that value" if len(strange) == 1 else "these values"
        found.append(Problem(file, "", f"holds {shown}{more}; no class has {such}"))
    there = set(np.flatnonzero(np.bincount(values.reshape(-1))).tolist())
    return Counter(label for label, value in enumerate(map_values) if value in there)


def _look_at_panoptic(said: MarkedPicture, size: tuple[int, int] | None, found: list[Problem]) -> Counter[int]:
    """The labels of a panoptic map's segments."""
    labels = Counter(segment.label for segment in said.segments)
    file = str(said.map_path)
    assert said.map_path is not None
    try:
        ids = read_panoptic_ids(said.map_path)
    except DataError as error:
        found.append(Problem(file, "", str(error).removeprefix(file).lstrip(": ")))
        return labels
    if size is not None and ids.shape != size:
        found.append(Problem(file, "", f"{_differs(ids.shape, size)} as its picture"))
    there, listed = set(np.unique(ids).tolist()) - {0}, {segment.id for segment in said.segments}
    for number in sorted(there - listed):
        share = float((ids == number).mean())
        what = f"{share:.2%} of the pixels have this id, and nothing describes it"
        found.append(Problem(file, f"segment {number}", what))
    for number in sorted(listed - there):
        found.append(Problem(file, f"segment {number}", "is described in segments_info, and no pixel has this id"))
    return labels


def _differs(size: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    turned = " (does its EXIF turn it?)" if size == wanted[::-1] else ""
    return f"is {size[1]} wide and {size[0]} high{turned} and not {wanted[1]} wide and {wanted[0]} high"
