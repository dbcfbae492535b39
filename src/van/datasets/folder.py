"""Reader of class folders (as torchvision's ImageFolder), with or without a validation split of their own.

Either ``ROOT/CLASS/*.jpg``, split here by seed, or ``ROOT/train/CLASS/*.jpg`` beside
``ROOT/val/CLASS/*.jpg`` (also ``valid``, ``validation`` or ``test``).
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from van.datasets.image_dataset import Item
from van.errors import DataError, UsageError
from van.images import SUFFIXES, find_images

VALIDATION_NAMES = ("val", "valid", "validation", "test")
_SYNSET = re.compile(r"n\d{8}")


class TrainValSplits(NamedTuple):
    """Class names and the labeled images of both splits."""

    class_names: tuple[str, ...]
    train: list[Item]
    validation: list[Item]


def load_image_folder(root: Path, *, val_fraction: float = 0.2, seed: int = 0) -> TrainValSplits:
    """List the classes and images of class folders, and split them where the folder has no split.

    Args:
        root: the folder, in one of the two layouts above.
        val_fraction: fraction of each class used for validation where the folder has no split; at least one image.
        seed: of the random split.

    Raises:
        DataError: the folder is missing, has no classes, or a class has too few images.
        UsageError: the fraction is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction: expected more than 0 and less than 1, got {val_fraction}")
    train_folder = root / "train"
    if _has_class_folders(train_folder):
        class_names = list_class_folders(train_folder)
        train = list_class_items(train_folder, class_names)
        val_folders = [root / name for name in VALIDATION_NAMES if (root / name).is_dir()]
        if val_folders:
            return TrainValSplits(class_names, train, list_class_items(val_folders[0], class_names))
    else:
        class_names = list_class_folders(root)
        if set(class_names) <= {"train", *VALIDATION_NAMES}:
            raise DataError(
                f"{root}: expected ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg beside ROOT/val/CLASS/*.jpg, "
                f"got {', '.join(class_names)} without a train folder that has class folders"
            )
        train = list_class_items(root, class_names)
    return _split_by_class(root, class_names, train, val_fraction, seed)


def find_validation_folder(root: Path) -> Path:
    """Return the folder to evaluate on: the validation split of ``root`` if it has one, else ``root`` itself.

    Raises:
        DataError: the folder does not exist, or it has a training split and no validation split.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of class folders, got no such folder")
    val_folders = [root / name for name in VALIDATION_NAMES if _has_class_folders(root / name)]
    if not val_folders and _has_class_folders(root / "train"):
        raise DataError(
            f"{root}: expected one of {', '.join(VALIDATION_NAMES)} beside the train folder, got none; "
            f"to evaluate on the training images, give {root / 'train'}"
        )
    return val_folders[0] if val_folders else root


def list_class_folders(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in ``folder``.

    Raises:
        DataError: the folder is missing or has no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with one subfolder of images for each class, got no such folder")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(f"{folder}: expected one subfolder of images for each class, got no subfolders")
    return names


def list_class_items(folder: Path, class_names: Sequence[str], targets: Sequence[int] | None = None) -> list[Item]:
    """List the images of every class folder with the index in ``class_names`` (or the entry of ``targets``).

    Raises:
        DataError: a class folder is unknown or has no images. A class may have no folder.
    """
    unknown = sorted(set(list_class_folders(folder)) - set(class_names))
    if unknown:
        raise DataError(
            f"{folder}: expected only folders of known classes ({', '.join(class_names[:8])}"
            + (f" and {len(class_names) - 8} more" if len(class_names) > 8 else "")
            + f"), got {', '.join(unknown[:8])}"
        )
    items: list[Item] = []
    for index, label in enumerate(class_names):
        paths = find_images(folder / label) if (folder / label).is_dir() else []
        target = index if targets is None else targets[index]
        items += [Item(path, target, path.relative_to(folder).as_posix()) for path in paths]
    empty = sorted(set(list_class_folders(folder)) - {item.name.split("/")[0] for item in items})
    if empty:
        raise DataError(
            f"{folder}: expected images ({', '.join(SUFFIXES)}) in each class folder, "
            f"got none in {', '.join(empty[:8])}; add some or remove the folder"
        )
    return items


def load_validation_items(root: Path, class_names: Sequence[str]) -> list[Item]:
    """List the images to evaluate a model with ``class_names`` on; class folders are matched by name.

    ImageNet's folders (n01440764, ...) are matched to the classes of a model with 1,000 classes by their order.

    Raises:
        DataError: see ``list_class_items``.
    """
    folder = find_validation_folder(root)
    names = list_class_folders(folder)
    if set(names) <= set(class_names) or not are_imagenet_synsets(names) or len(class_names) != 1000:
        return list_class_items(folder, class_names)
    from timm.data import ImageNetInfo

    order = {synset: index for index, synset in enumerate(ImageNetInfo().label_names())}
    if not set(names) <= set(order):
        return list_class_items(folder, class_names)
    return list_class_items(folder, names, [order[name] for name in names])


def are_imagenet_synsets(names: Sequence[str]) -> bool:
    """Return whether all classes are named by WordNet ids, as ImageNet's folders are."""
    return all(_SYNSET.fullmatch(name) for name in names)


def _split_by_class(
    root: Path, class_names: tuple[str, ...], items: list[Item], val_fraction: float, seed: int
) -> TrainValSplits:
    """Split each class at random by the same fraction, with at least one image on either side."""
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.target, []).append(item)
    train: list[Item] = []
    validation: list[Item] = []
    for target, members in sorted(by_class.items()):
        if len(members) < 2:
            raise DataError(f"{root / class_names[target]}: expected at least 2 images to split, got 1")
        # the seed includes the name: adding a class leaves the split of the others as it was
        shuffled = random.Random(f"{seed}:{class_names[target]}").sample(members, len(members))
        num_val = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        validation += shuffled[:num_val]
        train += shuffled[num_val:]
    return TrainValSplits(class_names, train, validation)


def _has_class_folders(folder: Path) -> bool:
    """Return whether ``folder`` is a split with class folders, not a class that is named ``train`` or ``test``."""
    return folder.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
