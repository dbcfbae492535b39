"""The embedded set: 1,797 real handwritten digits, 8 x 8 pixels, that scikit-learn carries.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test part.
Every fifth digit of a class is held out, after a shuffle by a fixed seed: 1,433 to learn, 364 to test.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.data.folder import Split, read_split
from van.data.pictures import Item
from van.errors import DataError, MissingExtra, UsageError

LABELS = tuple("0123456789")
TRAINING_DIGITS, VALIDATION_DIGITS = 1_433, 364
_SPLIT_SEED = 20220220


def load_digits() -> Split:
    """All digits as 8 x 8 RGB pictures in memory, split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "the embedded digits") from error
    bunch: Any = datasets.load_digits()
    grey = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    items = [
        Item(Image.fromarray(pixels).convert("RGB"), int(target), f"digit-{number:04d}")
        for number, (pixels, target) in enumerate(zip(grey, bunch.target, strict=True))
    ]
    train: list[Item] = []
    validation: list[Item] = []
    for target in range(10):
        members = [item for item in items if item.target == target]
        random.Random(_SPLIT_SEED + target).shuffle(members)
        validation += members[::5]
        train += [member for place, member in enumerate(members) if place % 5]
    return Split(LABELS, train, validation)


def write_digits(folder: Path) -> Split:
    """Write every digit as a PNG into ``folder/train/CLASS`` and ``folder/val/CLASS``, all of them or none.

    Returns:
        What ``read_split`` finds there, in its order, so that a resumed run reads what the first one read.

    Raises:
        UsageError: the folder already holds something, or cannot be written.
    """
    if _is_occupied(folder):
        raise UsageError(f"{folder} already holds something; choose a new folder for the digits")
    split = load_digits()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
            whole = Path(partial) / folder.name
            for part, items in (("train", split.train), ("val", split.validation)):
                _write_items(whole / part, items)
            if folder.is_dir():  # and empty; it may be where the caller stands, so it stays
                for part in ("train", "val"):
                    (whole / part).rename(folder / part)
            else:
                whole.rename(folder)
    except OSError as error:
        raise UsageError(f"the digits cannot be written to {folder} ({error}); choose another folder") from error
    return read_split(folder)


def find_or_write_digits(folder: Path) -> Split:
    """The digits that lie in ``folder`` since an earlier run, or that are written there now.

    Several processes may call this at once: each gets the same pictures in the same order.

    Raises:
        DataError: the folder holds something else.
        UsageError: see ``write_digits``.
    """
    if not _is_occupied(folder):
        try:
            return write_digits(folder)
        except UsageError:
            if not _is_occupied(folder):  # else another process was faster
                raise
    split = read_split(folder)
    found = (split.labels, len(split.train), len(split.validation))
    if found != (LABELS, TRAINING_DIGITS, VALIDATION_DIGITS):
        raise DataError(
            f"{folder} does not hold the digits: {len(split.labels)} classes, {len(split.train)} pictures to learn, "
            f"{len(split.validation)} to test; wanted 10, {TRAINING_DIGITS}, {VALIDATION_DIGITS}, or a new folder"
        )
    return split


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _write_items(part: Path, items: Sequence[Item]) -> None:
    for item in items:
        path = part / LABELS[item.target] / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(item.source, Image.Image)
        item.source.save(path)
