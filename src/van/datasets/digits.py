"""The embedded dataset: 1,797 handwritten digits of 8 x 8 pixels, which scikit-learn includes.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test split.
After a shuffle by a fixed seed, every fifth digit of a class is for validation: 1,433 training, 364 validation images.
"""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.datasets.folder import TrainValSplits, load_image_folder
from van.datasets.image_dataset import Item
from van.errors import DataError, MissingExtra, UsageError

LABELS = tuple("0123456789")
NUM_TRAIN, NUM_VAL = 1_433, 364
_SPLIT_SEED = 20220220


def load_digits() -> TrainValSplits:
    """Load all digits as 8 x 8 RGB images in memory, split into training and validation.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "the embedded digits") from error
    bunch: Any = datasets.load_digits()
    gray = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    items = [
        Item(Image.fromarray(pixels).convert("RGB"), int(target), f"digit-{index:04d}")
        for index, (pixels, target) in enumerate(zip(gray, bunch.target, strict=True))
    ]
    train: list[Item] = []
    validation: list[Item] = []
    for target in range(10):
        members = [item for item in items if item.target == target]
        random.Random(_SPLIT_SEED + target).shuffle(members)
        validation += members[::5]
        train += [member for index, member in enumerate(members) if index % 5]
    return TrainValSplits(LABELS, train, validation)


def write_digits(folder: Path) -> TrainValSplits:
    """Write every digit as a PNG into ``folder/train/CLASS`` and ``folder/val/CLASS``, all of them or none.

    Returns:
        The result of ``load_image_folder``, in its order, so that a resumed run reads the images in the same order.

    Raises:
        UsageError: the folder is not empty, or cannot be written.
    """
    with new_folder(folder, "the digits") as partial:
        splits = load_digits()
        for split, items in (("train", splits.train), ("val", splits.validation)):
            for item in items:
                path = partial / split / LABELS[item.target] / f"{item.name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert isinstance(item.source, Image.Image)
                item.source.save(path)
    return load_image_folder(folder)


def find_or_write_digits(folder: Path) -> TrainValSplits:
    """Return the digits in ``folder``, which an earlier run may have written, or write them there.

    Several processes may call this concurrently: each gets the same images in the same order.

    Raises:
        DataError: the folder has other content.
        UsageError: see ``write_digits``.
    """
    write_unless_present(folder, write_digits)
    splits = load_image_folder(folder)
    content = (splits.class_names, len(splits.train), len(splits.validation))
    if content != (LABELS, NUM_TRAIN, NUM_VAL):
        raise DataError(
            f"{folder}: expected the digits (10 classes, {NUM_TRAIN} training and {NUM_VAL} validation images), "
            f"got {len(splits.class_names)} classes, {len(splits.train)} and {len(splits.validation)} images; "
            "choose a new folder"
        )
    return splits


@contextlib.contextmanager
def new_folder(folder: Path, content: str) -> Iterator[Path]:
    """Yield a temporary folder whose files become those of ``folder`` at the end, all of them or none.

    Args:
        folder: new or empty.
        content: what is written, for messages.

    Raises:
        UsageError: the folder is not empty or cannot be written.
    """
    if _is_occupied(folder):
        raise UsageError(f"{folder}: expected a new or empty folder for {content}, got one with files; choose another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
            whole = Path(partial) / folder.name
            whole.mkdir()
            yield whole
            if folder.is_dir():  # it may be the working directory, so it is filled rather than replaced
                for child in whole.iterdir():
                    child.rename(folder / child.name)
            else:
                whole.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder}: {content} cannot be written ({error}); choose another folder") from error


def write_unless_present(folder: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with the folder if it has no files; another process may do the same concurrently."""
    if not _is_occupied(folder):
        try:
            write(folder)
        except UsageError:
            if not _is_occupied(folder):  # otherwise another process wrote it first
                raise


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
