"""A folder of class folders, with or without its own validation split.

Either ``ROOT/CLASS/*.jpg``, split here by seed, or ``ROOT/train/CLASS/*.jpg`` beside
``ROOT/val/CLASS/*.jpg`` (also ``valid``, ``validation`` or ``test``).
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from van.data.pictures import Item
from van.errors import DataError, UsageError
from van.pictures import SUFFIXES, find_pictures

VALIDATION_NAMES = ("val", "valid", "validation", "test")
_SYNSET = re.compile(r"n\d{8}")


class Split(NamedTuple):
    """Class names and the pictures of the two parts."""

    labels: tuple[str, ...]
    train: list[Item]
    validation: list[Item]


def read_split(root: Path, *, validation_share: float = 0.2, seed: int = 0) -> Split:
    """Find every class and picture below ``root``.

    Args:
        root: the folder, laid out in one of the two ways above.
        validation_share: of each class, where the folder has no split of its own; at least one picture.
        seed: of that split.

    Raises:
        DataError: the folder is missing, holds no classes, or a class has too few pictures.
        UsageError: the share is not between 0 and 1.
    """
    if not 0 < validation_share < 1:
        raise UsageError(f"--validation-share is {validation_share}; wanted more than 0 and less than 1")
    training_folder = root / "train"
    if _holds_folders(training_folder):
        labels = class_names(training_folder)
        train = class_items(training_folder, labels)
        own = [root / name for name in VALIDATION_NAMES if (root / name).is_dir()]
        if own:
            return Split(labels, train, class_items(own[0], labels))
    else:
        labels = class_names(root)
        if set(labels) <= {"train", *VALIDATION_NAMES}:
            raise DataError(
                f"{root} holds {', '.join(labels)}, but no train folder with a folder of pictures for each class; "
                "wanted ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg beside ROOT/val/CLASS/*.jpg"
            )
        train = class_items(root, labels)
    return _split(root, labels, train, validation_share, seed)


def evaluation_folder(root: Path) -> Path:
    """The folder whose classes an evaluation reads: ``root``'s own validation split, or ``root`` itself.

    Raises:
        DataError: there is no such folder, or it holds a part to learn from and none to measure on.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder of class folders")
    own = [root / name for name in VALIDATION_NAMES if _holds_folders(root / name)]
    if not own and _holds_folders(root / "train"):
        raise DataError(
            f"{root} has a train folder and none of {', '.join(VALIDATION_NAMES)}; "
            f"to measure on what was learnt from, give {root / 'train'}"
        )
    return own[0] if own else root


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the class folders in ``folder``, sorted.

    Raises:
        DataError: the folder is missing or has no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with one sub-folder of pictures for each class")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(f"{folder} has no sub-folders; wanted one folder of pictures for each class")
    return names


def class_items(folder: Path, labels: Sequence[str], targets: Sequence[int] | None = None) -> list[Item]:
    """Every picture of every class folder, with the class's place in ``labels`` (or its entry in ``targets``).

    Raises:
        DataError: a class folder is unknown or holds no pictures. A class of ``labels`` may have no folder.
    """
    unknown = sorted(set(class_names(folder)) - set(labels))
    if unknown:
        raise DataError(
            f"{folder} has classes that are not known here: {', '.join(unknown[:8])}; known: {', '.join(labels[:8])}"
            + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
        )
    items: list[Item] = []
    for index, label in enumerate(labels):
        found = find_pictures(folder / label) if (folder / label).is_dir() else []
        target = index if targets is None else targets[index]
        items += [Item(path, target, path.relative_to(folder).as_posix()) for path in found]
    empty = sorted(set(class_names(folder)) - {item.name.split("/")[0] for item in items})
    if empty:
        raise DataError(
            f"{folder}: no pictures in {', '.join(empty[:8])}; put some there ({', '.join(SUFFIXES)}) or remove it"
        )
    return items


def evaluation_items(root: Path, labels: Sequence[str]) -> list[Item]:
    """The pictures to evaluate a network with ``labels`` on, class folders matched by name.

    ImageNet's folders (n01440764, ...) are matched to a thousand ImageNet classes by their order.

    Raises:
        DataError: see ``class_items``.
    """
    folder = evaluation_folder(root)
    names = class_names(folder)
    if set(names) <= set(labels) or not are_synsets(names) or len(labels) != 1000:
        return class_items(folder, labels)
    from timm.data import ImageNetInfo

    order = {synset: index for index, synset in enumerate(ImageNetInfo().label_names())}
    if not set(names) <= set(order):
        return class_items(folder, labels)
    return class_items(folder, names, [order[name] for name in names])


def are_synsets(names: Sequence[str]) -> bool:
    """Whether classes are named as ImageNet's folders are, in whose order its networks answer."""
    return all(_SYNSET.fullmatch(name) for name in names)


def _split(root: Path, labels: tuple[str, ...], items: list[Item], share: float, seed: int) -> Split:
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.target, []).append(item)
    train: list[Item] = []
    validation: list[Item] = []
    for target, members in sorted(by_class.items()):
        if len(members) < 2:
            raise DataError(f"{root / labels[target]} has 1 picture; a split needs at least 2 for each class")
        shuffled = random.Random(f"{seed}:{labels[target]}").sample(members, len(members))
        held_out = min(max(1, round(share * len(members))), len(members) - 1)
        validation += shuffled[:held_out]
        train += shuffled[held_out:]
    return Split(labels, train, validation)


def _holds_folders(folder: Path) -> bool:
    """Whether ``folder`` is a part of a data set, with class folders, and not a class called ``train`` or ``test``."""
    return folder.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
