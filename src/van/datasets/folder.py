"""Reader of class folders (as torchvision's ImageFolder), with or without a validation split of their own.

Either ``ROOT/CLASS/*.jpg``, split here by seed, or ``ROOT/train/CLASS/*.jpg`` beside
``ROOT/val/CLASS/*.jpg`` (also ``valid``, ``validation`` or ``test``).
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from van.datasets.annotations import (
    VALIDATION_NAMES,
    AnnotatedDataset,
    Annotation,
    ImageRecord,
    Issues,
    join_names,
)
from van.datasets.image_dataset import Item
from van.datasets.registry import register_format
from van.errors import DataError, UsageError
from van.images import SUFFIXES, find_images

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
    val_folders = [root / name for name in VALIDATION_NAMES if (root / name).is_dir()]
    if has_class_folders(root / "train"):
        class_names = list_class_folders(root / "train")
        items = list_class_items(root / "train", class_names)
        if val_folders:
            return TrainValSplits(class_names, items, list_class_items(val_folders[0], class_names))
    else:
        class_names = list_class_folders(root)
        if set(class_names) <= {"train", *VALIDATION_NAMES}:
            raise DataError(
                f"{root}: expected ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg beside ROOT/val/CLASS/*.jpg, "
                f"got {', '.join(class_names)} without a train folder that has class folders"
            )
        items = list_class_items(root, class_names)
    train: list[Item] = []
    validation: list[Item] = []
    for target, name in enumerate(class_names):
        members = [item for item in items if item.target == target]
        if len(members) < 2:
            raise DataError(f"{root / name}: expected at least 2 images to split, got 1")
        # the seed includes the name: adding a class leaves the split of the others as it was
        shuffled = random.Random(f"{seed}:{name}").sample(members, len(members))
        num_val = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        validation += shuffled[:num_val]
        train += shuffled[num_val:]
    return TrainValSplits(class_names, train, validation)


def has_class_folders(folder: Path) -> bool:
    """Return whether ``folder`` is a split with class folders, not a class that is named ``train`` or ``test``."""
    return folder.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def find_validation_folder(root: Path) -> Path:
    """Return the folder to evaluate on: the validation split of ``root`` if it has one, else ``root`` itself.

    Raises:
        DataError: the folder does not exist, or it has a training split and no validation split.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of class folders, got no such folder")
    val_folders = [root / name for name in VALIDATION_NAMES if has_class_folders(root / name)]
    if not val_folders and has_class_folders(root / "train"):
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
    if not has_class_folders(folder):
        got = "no subfolders" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: expected a folder with one subfolder of images for each class, got {got}")
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def list_class_items(folder: Path, class_names: Sequence[str], targets: Sequence[int] | None = None) -> list[Item]:
    """List the images of every class folder with the index in ``class_names`` (or the entry of ``targets``).

    Raises:
        DataError: a class folder is unknown or has no images. A class may have no folder.
    """
    present = list_class_folders(folder)
    if unknown := sorted(set(present) - set(class_names)):
        raise DataError(
            f"{folder}: expected only folders of known classes ({join_names(class_names)}), got {join_names(unknown)}"
        )
    items: list[Item] = []
    empty: list[str] = []
    for index, label in enumerate(class_names):
        if label in present:
            paths = find_images(folder / label)
            empty += [] if paths else [label]
            target = index if targets is None else targets[index]
            items += [Item(path, target, path.relative_to(folder).as_posix()) for path in paths]
    if empty:
        raise DataError(
            f"{folder}: expected images ({', '.join(SUFFIXES)}) in each class folder, "
            f"got none in {join_names(sorted(empty))}; add some or remove the folder"
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
    if not set(names) <= set(class_names) and are_imagenet_synsets(names) and len(class_names) == 1000:
        from timm.data import ImageNetInfo

        order = {synset: index for index, synset in enumerate(ImageNetInfo().label_names())}
        if set(names) <= set(order):
            return list_class_items(folder, names, [order[name] for name in names])
    return list_class_items(folder, class_names)


def are_imagenet_synsets(names: Sequence[str]) -> bool:
    """Return whether all classes are named by WordNet ids, as ImageNet's folders are."""
    return all(_SYNSET.fullmatch(name) for name in names)


@register_format(
    "class_folders",
    title="class folders",
    tasks=("classify",),
    files="`CLASS/*.jpg`, or `{split}/CLASS/*.jpg`",
    recognize=lambda root, split: has_class_folders(root),
)
def read_class_folders(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read class folders as a dataset whose images have one annotation each, without a box.

    Folders that are not class folders are reported, and their images are read with the name of their folder as class.

    Raises:
        DataError: there are no images; or from ``issues``.
    """
    try:
        class_names, *splits = load_image_folder(root)
    except DataError as error:
        paths = find_images(root)
        if not paths:
            raise DataError(f"{root}: expected the folder of a dataset, got a folder without images") from error
        issues.add(root, f"no boxes, segmentations or masks; read as class folders: {error}".removesuffix("."))
        class_names = tuple(sorted({path.parent.name for path in paths}))
        splits = [[Item(path, class_names.index(path.parent.name), str(path)) for path in paths], []]
    images = (
        ImageRecord(
            path=item.source,
            name=item.name,
            id=image_id,
            annotations=(Annotation(label=item.target, box=(0.0, 0.0, 0.0, 0.0)),),
        )
        for image_id, item in enumerate(splits[split == "val"], start=1)
        if isinstance(item.source, Path)
    )
    return AnnotatedDataset(class_names=class_names, category_ids=tuple(range(len(class_names))), images=tuple(images))
