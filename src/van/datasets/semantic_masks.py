"""Reader of semantic segmentation datasets: beside each image a mask file with one value per pixel.

::

    ADE20K       images/training/a.jpg                    annotations/training/a.png    0 unlabeled, classes from 1
    Cityscapes   leftImg8bit/train/CITY/a_leftImg8bit.png gtFine/train/CITY/a_gtFine_labelTrainIds.png or _labelIds.png
    plain        images/train/a.jpg                       masks/train/a.png             classes from 0
    plain        images/a.jpg                             masks/a.png                   a random 20 % are validation

Class names come from ``classes.txt``, one per line, or from ADE20K's ``objectInfo150.txt``; without either, a class is
named by its value. The greatest value of 8 and of 16 bits, 255 and 65,535, is the ignore index of mask files; but masks
with no other values than 0 and 255 have two classes.
Shapes: masks (H, W). Sources: Zhou et al. 2017, ADE20K; Cordts et al. 2016, Cityscapes, arXiv:1604.01685.
"""

import functools
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from van.datasets.annotations import IGNORE_INDEX, AnnotatedDataset, ImageRecord, Issues
from van.datasets.folder import VALIDATION_NAMES
from van.errors import DataError, ImageError, UsageError
from van.images import FORMATS, MAX_PIXELS, find_images, read_image

CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The 19 evaluated classes, in the order of their train ids, with the id of each among the 34 of ``_labelIds.png``."""
_NUM_CITYSCAPES_IDS = 34

_LOSSLESS_FORMATS = ("PNG", "TIFF", "BMP")
"""Formats that keep values exactly: JPEG changes them, and Pillow rescales a PGM when it reads it."""
_DTYPES = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.int32}
_SPLIT_NAMES = {"train": ("train", "training"), "val": VALIDATION_NAMES}
_VAL_FRACTION = 0.2
_MAX_CLASSES = 1 << 15
_Pair = tuple[Path, Path, str]
"""An image, its mask, and its name in messages."""


def read_semantic_masks(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images and masks of ``split``.

    Where no file names the classes, every mask of both splits is read to find their values.

    Args:
        root: the dataset, or a folder written by ``van data digit-scenes``.
        split: train or val.
        issues: receives images without a mask and masks without an image.

    Raises:
        DataError: the layout does not match, or the list of classes is invalid.
        UsageError: the split is unknown.
    """
    if split not in _SPLIT_NAMES:
        raise UsageError(f"split: expected {' or '.join(_SPLIT_NAMES)}, got {split!r}")
    dataset_root = find_masks_root(root)
    if dataset_root is None:
        raise DataError(
            f"{root}: expected images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ (Cityscapes), "
            "or images/ and masks/, got none of them"
        )
    pairs = _list_pairs(dataset_root, split, issues)
    if _is_cityscapes(dataset_root):
        has_train_ids = any(mask_path.stem.endswith("TrainIds") for _, mask_path, _ in pairs)
        train_ids = {name: train_id for train_id, name in enumerate(CITYSCAPES)}
        return _to_dataset(pairs, train_ids if has_train_ids else CITYSCAPES)
    return _to_dataset(pairs, _read_classes(dataset_root))


def find_masks_root(root: Path) -> Path | None:
    """Return ``root``, or the folder within it that has images and masks; None where there is none."""
    for folder in (root, root / "ade", root / "ADEChallengeData2016"):
        has_masks = (folder / "masks").is_dir() or any(
            (folder / "annotations" / name).is_dir() for name in ("training", "validation")
        )
        if (has_masks and (folder / "images").is_dir()) or _is_cityscapes(folder):
            return folder
    return None


def load_semantic_mask(path: Path, mask_values: tuple[int, ...]) -> np.ndarray:
    """Return (H, W) int16: the class index of each pixel, ``IGNORE_INDEX`` for values outside ``mask_values``.

    Raises:
        DataError: the file cannot be read as a mask.
    """
    try:
        return np.take(_label_table(mask_values), read_mask_values(path))
    except ImageError as error:
        raise DataError(str(error)) from error


def read_mask_values(path: Path) -> np.ndarray:
    """Return (H, W) uint8 or uint16: the values in a mask file; the indices of one with a palette.

    Raises:
        ImageError: the file is missing, damaged, too large, in colors, or of a format that changes values.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ImageError(str(path), f"expected at most {MAX_PIXELS:,} pixels, got {file.width}x{file.height}")
            _check_format(file, path)
            values = np.asarray(file)
            return _to_uint16(values, path) if file.mode == "I" else values.astype(_DTYPES[file.mode], copy=False)
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        read_image(path)  # raises with a specific reason for most
        raise ImageError(str(path), f"is damaged or truncated ({error or type(error).__name__})") from error


def find_unknown_values(values: np.ndarray, mask_values: tuple[int, ...]) -> dict[int, float]:
    """Return the values that neither belong to a class nor are unlabeled, with their fractions of the pixels."""
    known = {*mask_values, np.iinfo(values.dtype).max}
    if mask_values == tuple(CITYSCAPES.values()):
        known |= set(range(_NUM_CITYSCAPES_IDS))
    elif 0 not in mask_values:
        known.add(0)
    counts = np.bincount(values.reshape(-1))
    present = (int(value) for value in np.flatnonzero(counts))
    return {value: float(counts[value]) / values.size for value in present if value not in known}


@functools.lru_cache(maxsize=8)
def _label_table(mask_values: tuple[int, ...]) -> np.ndarray:
    """Return (65536,) int16: the class index of each value; a class with a negative value has no pixels."""
    table = np.full(1 << 16, IGNORE_INDEX, np.int16)
    for label, value in enumerate(mask_values):
        if value >= 0:
            table[value] = label
    return table


def _check_format(file: Image.Image, path: Path) -> None:
    if file.format not in _LOSSLESS_FORMATS:
        raise ImageError(
            str(path),
            f"expected a mask as {', '.join(_LOSSLESS_FORMATS)}, got {file.format}, which does not preserve values; "
            "save it as PNG",
        )
    if file.mode not in _DTYPES:
        raise ImageError(
            str(path),
            f"expected a mask with one value per pixel, got colors (mode {file.mode}); "
            "save it in 8-bit or 16-bit gray or with a palette, with a number for each class",
        )


def _to_uint16(values: np.ndarray, path: Path) -> np.ndarray:
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest > np.iinfo(np.uint16).max:
        raise ImageError(str(path), f"expected values from 0 to 65,535, got {least} to {greatest}")
    return values.astype(np.uint16)


def _is_cityscapes(dataset_root: Path) -> bool:
    return (dataset_root / "leftImg8bit").is_dir() and (dataset_root / "gtFine").is_dir()


def _to_dataset(pairs: Iterable[_Pair], classes: Mapping[str, int]) -> AnnotatedDataset:
    images = [
        ImageRecord(path=path, name=name, id=image_id, mask_path=mask_path)
        for image_id, (path, mask_path, name) in enumerate(pairs, start=1)
    ]
    values = tuple(classes.values())
    return AnnotatedDataset(class_names=tuple(classes), category_ids=values, images=tuple(images), mask_values=values)


def _list_pairs(dataset_root: Path, split: str, issues: Issues) -> list[_Pair]:
    """Return each image of a split with its mask; a dataset without splits is split here."""
    if _is_cityscapes(dataset_root):
        images, masks = dataset_root / "leftImg8bit", dataset_root / "gtFine"
    else:
        images = dataset_root / "images"
        masks = dataset_root / ("masks" if (dataset_root / "masks").is_dir() else "annotations")
    folders = {
        name: next((each for each in names if (images / each).is_dir()), None) for name, names in _SPLIT_NAMES.items()
    }
    if folders["val"] is not None:
        folder = folders[split]
        if folder is None:
            raise DataError(f"{images}: expected a folder {split} beside {folders['val']}, got none")
        return _match_pairs(images / folder, masks / folder, _suffixes(dataset_root, folder), issues)
    whole = folders["train"] or ""
    pairs = _match_pairs(images / whole, masks / whole, _suffixes(dataset_root, whole), issues)
    num_val = max(1, round(_VAL_FRACTION * len(pairs))) if pairs else 0
    val_indices = random.Random(0).sample(range(len(pairs)), num_val)
    return [pair for index, pair in enumerate(pairs) if (index in val_indices) == (split == "val")]


def _match_pairs(images: Path, masks: Path, suffixes: tuple[str, str], issues: Issues) -> list[_Pair]:
    """Return the images and masks whose paths are equal apart from their suffixes."""
    image_suffix, mask_suffix = suffixes
    mask_of = {_stem(path, masks, mask_suffix): path for path in find_images(masks) if path.name.endswith(mask_suffix)}
    image_paths = [path for path in find_images(images) if path.name.endswith(image_suffix)]
    if not image_paths:
        raise DataError(f"{images}: expected images here and their masks in {masks}, got no images")
    pairs: list[_Pair] = []
    stems: set[str] = set()
    for path in image_paths:
        stem = _stem(path, images, image_suffix)
        if stem in stems:
            issues.add(path, f"expected a unique name for each mask, got a second image named {stem}; rename one")
        elif stem not in mask_of:
            issues.add(path, f"expected the mask {masks / stem}{mask_suffix or '.png'}, got none")
        else:
            pairs.append((path, mask_of[stem], path.relative_to(images).as_posix()))
        stems.add(stem)
    for stem in sorted(set(mask_of) - stems):
        issues.add(mask_of[stem], f"expected the image {images / stem}{image_suffix or ' (with any suffix)'}, got none")
    return pairs


def _suffixes(dataset_root: Path, folder: str) -> tuple[str, str]:
    """Return what the names of images and of masks end with; empty for any file suffix."""
    if not _is_cityscapes(dataset_root):
        return "", ""
    has_train_ids = any((dataset_root / "gtFine" / folder).rglob("*_labelTrainIds.png"))
    return "_leftImg8bit.png", f"_gtFine_label{'TrainIds' if has_train_ids else 'Ids'}.png"


def _stem(path: Path, folder: Path, suffix: str) -> str:
    name = path.relative_to(folder)
    return name.as_posix().removesuffix(suffix) if suffix else name.with_suffix("").as_posix()


def _read_classes(dataset_root: Path) -> dict[str, int]:
    """Return the name of each class with its value in the masks."""
    first_value = 0 if (dataset_root / "masks").is_dir() else 1
    names = _read_class_names(dataset_root)
    ignored = Issues(collect=True)  # reported when their split is read
    masks = (
        mask_path for split in _SPLIT_NAMES for _, mask_path, _ in _list_pairs_if_any(dataset_root, split, ignored)
    )
    if not names:
        values = _present_values(masks)
        if first_value:  # ADE20K numbers its classes without gaps
            return {f"class {value}": value for value in range(1, max(values, default=0) + 1)}
        return {f"class {value}": value for value in sorted(values)}
    if first_value == 0 and len(names) == 2 and _is_binary(masks):
        return dict(zip(names, (0, 255), strict=True))
    return {name: value for value, name in enumerate(names, start=first_value)}


def _list_pairs_if_any(dataset_root: Path, split: str, issues: Issues) -> list[_Pair]:
    try:
        return _list_pairs(dataset_root, split, issues)
    except DataError:
        return []


def _read_class_names(dataset_root: Path) -> list[str]:
    for path in (dataset_root / "classes.txt", dataset_root / "objectInfo150.txt"):
        if not path.is_file():
            continue
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
    return []


def _present_values(masks: Iterable[Path]) -> set[int]:
    """Return the values in any of the masks, without those of unlabeled pixels."""
    present: set[int] = set()
    ignore_values: set[int] = set()
    for path in masks:
        try:
            values = read_mask_values(path)
        except ImageError:  # reported when the mask is used
            continue
        present |= {int(value) for value in np.flatnonzero(np.bincount(values.reshape(-1)))}
        ignore_values.add(int(np.iinfo(values.dtype).max))
    return present if present == {0, 255} else present - ignore_values


def _is_binary(masks: Iterable[Path]) -> bool:
    """Return whether 255, elsewhere the value of unlabeled pixels, is the second class."""
    present: set[int] = set()
    for path in masks:
        try:
            present |= {int(value) for value in np.flatnonzero(np.bincount(read_mask_values(path).reshape(-1)))}
        except ImageError:
            continue
        if not present <= {0, 255}:
            return False
    return present == {0, 255}
