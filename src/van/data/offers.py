"""What a folder can be read as: each part, for each kind of marks that it holds.

A set may offer several kinds at once, as COCO's boxes, masks and panoptic maps; class folders are asked for last.
"""

from pathlib import Path
from typing import NamedTuple

from van.data.find import read_part
from van.data.folder import Split, read_split
from van.data.marks import Mark, Marked, MarkedPicture, Problems
from van.data.pictures import Item
from van.errors import DataError, NoSuchMarks
from van.pictures import find_pictures

PARTS = ("train", "val")
KINDS = ("boxes", "masks", "panoptic", "map")
CLASSES = "classes"
"""The kind of a folder of class folders; each of its pictures has one mark, without a place."""


class Offer(NamedTuple):
    """One part of a set, read for one kind of marks: one of ``KINDS``, or ``CLASSES``."""

    part: str
    kind: str
    marked: Marked


def find_offers(root: Path, problems: Problems) -> list[Offer]:
    """Everything that ``root`` can be read as.

    Raises:
        DataError: that is nothing.
    """
    offers: dict[tuple[str, str], Offer] = {}
    lacking: list[tuple[str, str]] = []
    for part in PARTS:
        for kind in ("boxes", "panoptic", "map"):
            try:
                marked = read_part(root, part, want=kind, problems=problems)
            except NoSuchMarks:
                lacking.append((part, kind))
                continue
            except DataError as error:
                problems.add(root, str(error).removeprefix(f"{root}: "), place=f"{part} {kind}")
                continue
            offers[part, kind] = Offer(part, kind, marked)
            if kind == "boxes" and any(mark.outline is not None for each in marked.pictures for mark in each.marks):
                offers[part, "masks"] = Offer(part, "masks", marked)
    for part, kind in lacking:
        other = PARTS[1 - PARTS.index(part)]
        if (other, kind) in offers:
            problems.add(root, f"has {kind} for {other} and none for {part}", place=f"{part} {kind}")
    if not offers and not problems.found:
        return _class_folders(root, problems)
    return [offers[part, kind] for part in PARTS for kind in KINDS if (part, kind) in offers]


def _class_folders(root: Path, problems: Problems) -> list[Offer]:
    try:
        split = read_split(root)
    except DataError as error:
        found = find_pictures(root)
        if not found:
            raise DataError(f"{root} holds no pictures; give the folder of a data set") from error
        what = f"no boxes, masks or maps are there, so it was read as folders of classes: {error}"
        problems.add(root, what.removesuffix("."))
        labels = tuple(sorted({path.parent.name for path in found}))
        split = Split(labels, [Item(path, labels.index(path.parent.name), str(path)) for path in found], [])
    offers = []
    for part, items in zip(PARTS, (split.train, split.validation), strict=True):
        pictures = (
            MarkedPicture(path=item.source, name=item.name, number=number, marks=(_of_whole(item.target),))
            for number, item in enumerate(items, start=1)
            if isinstance(item.source, Path)
        )
        ids = tuple(range(len(split.labels)))
        offers.append(Offer(part, CLASSES, Marked(labels=split.labels, category_ids=ids, pictures=tuple(pictures))))
    return offers


def _of_whole(label: int) -> Mark:
    """What stands for the class of a whole picture."""
    return Mark(label=label, box=(0.0, 0.0, 0.0, 0.0))
