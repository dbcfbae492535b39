"""Masks with one class value per pixel: reading, pairing with images, and the format of plain images and masks.

::

    images/train/a.jpg    masks/train/a.png    classes from 0
    images/a.jpg          masks/a.png          a random 20 % are validation

Class names come from ``classes.txt``, one per line; without it, a class is named by its value. The greatest value of 8
and of 16 bits, 255 and 65,535, is the ignore index of mask files; but masks with no other values than 0 and 255 have
two classes. ADE20K and Cityscapes have files of their own. Shapes: masks (H, W).
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from van.datasets.annotations import (
    IGNORE_INDEX,
    SPLITS,
    VALIDATION_NAMES,
    AnnotatedDataset,
    ImageRecord,
    Issues,
    file_stamp,
)
from van.datasets.registry import register_format
from van.errors import DataError, ImageError
from van.images import FORMATS, MAX_PIXELS, find_images, read_image

_LOSSLESS_FORMATS = ("PNG", "TIFF", "BMP")
"""Formats that keep values exactly: JPEG changes them, and Pillow rescales a PGM when it reads it."""
_DTYPES = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.int32}
_VAL_FRACTION = 0.2
_MAX_CLASSES = 1 << 15


class Pair(NamedTuple):
    """An image, its mask, and its name in messages."""

    image: Path
    mask: Path
    name: str


Suffixes = Callable[[str], tuple[str, str]]


class MaskValues(NamedTuple):
    """The values of a mask: its (rows, columns), the value of unlabeled pixels, and the number of pixels by value."""

    size: tuple[int, int]
    ignore_value: int
    counts: Mapping[int, int]


@register_format(
    "image_masks",
    title="images and masks",
    tasks=("segment",),
    files="`images/` and `masks/`, or both with `{split}` inside; `classes.txt` names the classes",
    recognize=lambda root, split: (root / "images").is_dir() and (root / "masks").is_dir(),
)
def read_image_masks(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images that have a mask; images and masks without the other are reported.

    Where no file names the classes, every mask of both splits is read to find their values.
    """
    pairs = functools.partial(list_pairs, root / "images", root / "masks")
    names = read_class_names(root)
    values: list[int] = list(range(len(names)))
    if len(names) in (0, 2):
        present = find_values(pairs, within={0, 255} if names else None)
        values = [0, 255] if present == {0, 255} else values or sorted(present)
    names = names or [f"class {value}" for value in values]
    return to_dataset(pairs(split, issues), dict(zip(names, values, strict=True)))


def to_dataset(
    pairs: Iterable[Pair], classes: Mapping[str, int], *, unlabeled_values: Iterable[int] = ()
) -> AnnotatedDataset:
    """Return the dataset of these images, with the classes' names and their values in the masks."""
    images = (
        ImageRecord(path=pair.image, name=pair.name, id=image_id, mask_path=pair.mask)
        for image_id, pair in enumerate(pairs, start=1)
    )
    values = tuple(classes.values())
    return AnnotatedDataset(
        class_names=tuple(classes),
        category_ids=values,
        images=tuple(images),
        mask_values=values,
        unlabeled_values=tuple(unlabeled_values),
    )


def list_pairs(
    images: Path, masks: Path, split: str, issues: Issues, *, suffixes: Suffixes = lambda folder: ("", "")
) -> list[Pair]:
    """Return the images and masks of a split whose paths are equal apart from their suffixes.

    A dataset without a folder for validation is split here, by a fixed seed. ``suffixes`` gives, for the name of the
    split's folder, what the names of images and of masks end with; empty for any file suffix.

    Raises:
        DataError: a folder or the images are missing.
    """
    names = {"train": ("train", "training"), "val": VALIDATION_NAMES}
    folders = {each: next((name for name in names[each] if (images / name).is_dir()), None) for each in SPLITS}
    has_split = folders["val"] is not None
    folder = folders[split] if has_split else folders["train"] or ""
    if folder is None:
        raise DataError(f"{images}: expected a folder {split} beside {folders['val']}, got none")
    images, masks, (image_suffix, mask_suffix) = images / folder, masks / folder, suffixes(folder)

    def stem(path: Path, parent: Path, suffix: str) -> str:
        name = path.relative_to(parent)
        return name.as_posix().removesuffix(suffix) if suffix else name.with_suffix("").as_posix()

    mask_of = {stem(path, masks, mask_suffix): path for path in find_images(masks) if path.name.endswith(mask_suffix)}
    image_paths = [path for path in find_images(images) if path.name.endswith(image_suffix)]
    if not image_paths:
        raise DataError(f"{images}: expected images here and their masks in {masks}, got no images")
    pairs: list[Pair] = []
    stems: set[str] = set()
    for path in image_paths:
        own = stem(path, images, image_suffix)
        if own in stems:
            issues.add(path, f"expected a unique name for each mask, got a second image named {own}; rename one")
        elif own not in mask_of:
            issues.add(path, f"expected the mask {masks / own}{mask_suffix or '.png'}, got none")
        else:
            pairs.append(Pair(path, mask_of[own], path.relative_to(images).as_posix()))
        stems.add(own)
    for own in sorted(set(mask_of) - stems):
        issues.add(mask_of[own], f"expected the image {images / own}{image_suffix or ' (with any suffix)'}, got none")
    if has_split:
        return pairs
    num_val = max(1, round(_VAL_FRACTION * len(pairs))) if pairs else 0
    val_indices = random.Random(0).sample(range(len(pairs)), num_val)
    return [pair for index, pair in enumerate(pairs) if (index in val_indices) == (split == "val")]


def read_class_names(root: Path) -> list[str]:
    """Return the names in ``classes.txt`` or in ADE20K's ``objectInfo150.txt``; nothing where there is neither.

    Raises:
        DataError: a name is missing or occurs twice, or the file is no text.
    """
    path = next((root / name for name in ("classes.txt", "objectInfo150.txt") if (root / name).is_file()), None)
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.name == "objectInfo150.txt":  # a heading, then index, ratio, train, val, stuff, and synonyms
        lines = [line.split(None, 5)[-1].split(",")[0].split(";")[0] for line in lines[1:]]
    names = [line.strip() for line in lines]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if not all(names) or duplicates or not 0 < len(names) <= _MAX_CLASSES:
        got = f"{duplicates[0]!r} more than once" if all(names) and duplicates else "no names or an empty line"
        raise DataError(f"{path}: expected one class name per line, got {got}")
    return names


def find_values(pairs: Callable[[str, Issues], list[Pair]], *, within: set[int] | None = None) -> set[int]:
    """Return the values in any mask of both splits, without those of unlabeled pixels unless all are 0 and 255.

    Args:
        pairs: lists the pairs of a split.
        within: stop at the first mask that has another value.
    """
    present: set[int] = set()
    ignore_values: set[int] = set()
    for split in SPLITS:
        with contextlib.suppress(DataError):  # reported when the split is read
            for pair in pairs(split, Issues(collect=True)):
                with contextlib.suppress(ImageError):  # reported when the mask is used
                    mask = count_mask_values(pair.mask)
                    present |= set(mask.counts)
                    ignore_values.add(mask.ignore_value)
                if within is not None and not present <= within:
                    return present
    return present if present == {0, 255} else present - ignore_values


def load_semantic_mask(path: Path, mask_values: tuple[int, ...]) -> np.ndarray:
    """Return (H, W) int16: the class index of each pixel, ``IGNORE_INDEX`` for values outside ``mask_values``.

    Raises:
        DataError: the file cannot be read as a mask.
    """
    try:
        return np.take(_label_table(mask_values), read_mask_values(path))
    except ImageError as error:
        raise DataError(str(error)) from error


@functools.lru_cache(maxsize=8)
def _label_table(mask_values: tuple[int, ...]) -> np.ndarray:
    """Return (65536,) int16: the class index of each value; a class with a negative value has no pixels."""
    table = np.full(1 << 16, IGNORE_INDEX, np.int16)
    for label, value in enumerate(mask_values):
        if value >= 0:
            table[value] = label
    return table


def count_mask_values(path: Path) -> MaskValues:
    """Return the values in a mask file, which is decoded once as long as it does not change.

    Raises:
        ImageError: as for ``read_mask_values``.
    """
    return _count_mask_values(path, file_stamp(path))


@functools.lru_cache(maxsize=1 << 16)
def _count_mask_values(path: Path, stamp: object) -> MaskValues:
    values = read_mask_values(path)
    counts = np.bincount(values.reshape(-1))
    by_value = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    return MaskValues(values.shape, int(np.iinfo(values.dtype).max), by_value)


def read_mask_values(path: Path) -> np.ndarray:
    """Return (H, W) uint8 or uint16: the values in a mask file; the indices of one with a palette.

    Raises:
        ImageError: the file is missing, damaged, too large, in colors, or of a format that changes values.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            problem = ""
            if file.width * file.height > MAX_PIXELS:
                problem = f"expected at most {MAX_PIXELS:,} pixels, got {file.width}x{file.height}"
            elif file.format not in _LOSSLESS_FORMATS:
                formats = ", ".join(_LOSSLESS_FORMATS)
                problem = f"expected a mask as {formats}, got {file.format}, which changes values; save it as PNG"
            elif file.mode not in _DTYPES:
                problem = (
                    f"expected a mask with one value per pixel, got colors (mode {file.mode}); "
                    "save it in 8-bit or 16-bit gray or with a palette, with a number for each class"
                )
            if problem:
                raise ImageError(str(path), problem)
            values = np.asarray(file)
            if file.mode != "I":
                return values.astype(_DTYPES[file.mode], copy=False)
            least, greatest = int(values.min()), int(values.max())
            if least < 0 or greatest > np.iinfo(np.uint16).max:
                raise ImageError(str(path), f"expected values from 0 to 65,535, got {least} to {greatest}")
            return values.astype(np.uint16)
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        read_image(path)  # raises with a specific reason for most
        raise ImageError(str(path), f"is damaged or truncated ({error or type(error).__name__})") from error
