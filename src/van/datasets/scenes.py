"""Digit scenes: handwritten digits at random sizes, positions and overlaps on a textured background, made by seed.

The embedded dataset of detection and segmentation. Training scenes show training digits, validation scenes show
validation digits (``van.datasets.digits``). A later digit occludes earlier ones; the visible pixels of a digit are its
mask, and a digit that is mostly occluded is not annotated. As files they are in the layouts of COCO and ADE20K::

    FOLDER/coco/train/000000.png ...                           images
    FOLDER/coco/annotations/instances_train.json               boxes and masks (uncompressed run lengths)
    FOLDER/coco/annotations/panoptic_train.json, panoptic_train/000000.png
    FOLDER/ade/images/training/000000.png, annotations/training/000000.png
    FOLDER/ade/classes.txt
    FOLDER/classes/train/7/000000.png ...                      where every scene shows exactly one digit

``val`` (in ade ``validation``) has the validation scenes. The pixel values of an ade mask count from 1 (background,
then the digits); 0 would be an unlabeled pixel, and there is none.

Shapes: images (S, S, 3) and masks (S, S), rows from the top; boxes x1, y1, x2, y2 in pixels, the last
column and row included (so x2 - x1 is the width).
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.datasets.digits import LABELS, load_digits, new_folder, write_unless_present
from van.datasets.image_dataset import Item
from van.errors import DataError, UsageError

MAX_DIGITS = 6
"""The default number of digits in a scene, at most."""
BACKGROUND_ID = len(LABELS) + 1
"""Category id of the background, the only stuff class; the digits have 1 to 10."""
_MIN_VISIBLE_FRACTION = 0.35
"""A digit of which a smaller fraction of pixels is visible is not annotated."""
_MASK_THRESHOLD = 0.45
"""A pixel with more ink than this belongs to the digit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One digit of a scene: its class index and its visible pixels."""

    label: int
    mask: np.ndarray
    """(S, S) bool."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask."""
        return _enclose(self.mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and its objects, the nearest last; their masks do not overlap."""

    image: Image.Image
    objects: tuple[SceneObject, ...]

    def semantic_mask(self) -> np.ndarray:
        """Return (S, S) uint8: 0 for the background, else the class index plus one."""
        values = np.zeros(self.image.size[::-1], np.uint8)
        for each in self.objects:
            values[each.mask] = each.label + 1
        return values


def generate_digit_scenes(
    split: str, *, count: int, image_size: int = 128, seed: int = 0, max_digits: int = MAX_DIGITS
) -> Iterator[Scene]:
    """Yield ``count`` scenes of ``split``, train or val; scene i is the same whatever ``count`` is.

    Each has 1 to ``max_digits`` digits, some of which others may occlude; with 1 each shows exactly one.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: the split is unknown, or a number is too small.
    """
    if split not in ("train", "val"):
        raise UsageError(f"split: expected train or val, got {split!r}")
    for name, value, minimum in (("count", count, 1), ("image_size", image_size, 32), ("max_digits", max_digits, 1)):
        if value < minimum:
            raise UsageError(f"{name}: expected at least {minimum}, got {value}")
    splits = load_digits()
    digits = splits.train if split == "train" else splits.validation
    for index in range(count):
        random = np.random.default_rng([seed, split == "val", index])
        scene = _make_scene(digits, image_size, max_digits, random)
        while max_digits == 1 and not scene.objects:  # a digit 4 pixels wide may have no pixel above the threshold
            scene = _make_scene(digits, image_size, max_digits, random)
        yield scene


def _make_scene(digits: Sequence[Item], image_size: int, max_digits: int, random: np.random.Generator) -> Scene:
    # the background, (S, S, 3) in 0..1, is smooth noise between two colors, and fine grain
    colors = random.uniform(0.1, 0.9, (2, 3))
    cells = int(random.integers(3, 12))
    noise = Image.fromarray(random.uniform(0, 1, (cells, cells)).astype(np.float32))
    blend = np.asarray(noise.resize((image_size, image_size), Image.Resampling.BICUBIC))[..., None].clip(0, 1)
    grain = random.normal(0, 0.03, (image_size, image_size, 1))
    pixels = (colors[0] + blend * (colors[1] - colors[0]) + grain).clip(0, 1)
    objects: list[tuple[SceneObject, int]] = []
    for _ in range(random.integers(1, max_digits + 1)):
        digit = digits[int(random.integers(len(digits)))]
        ink = _place_digit(digit, image_size, random)
        mask = ink > _MASK_THRESHOLD
        if not mask.any():
            continue
        color = random.uniform(0, 1, 3)
        while abs(color.mean() - pixels[mask].mean()) <= 0.25:  # too little contrast in brightness to be visible
            color = random.uniform(0, 1, 3)
        pixels = pixels + ink[..., None] * (color - pixels)
        objects = [(dataclasses.replace(each, mask=each.mask & ~mask), full_area) for each, full_area in objects]
        objects.append((SceneObject(label=digit.target, mask=mask), int(mask.sum())))
    visible = tuple(each for each, full_area in objects if each.mask.sum() >= _MIN_VISIBLE_FRACTION * full_area)
    return Scene(image=Image.fromarray(np.rint(pixels * 255).astype(np.uint8)), objects=visible)


def _place_digit(digit: Item, image_size: int, random: np.random.Generator) -> np.ndarray:
    """Return (S, S) in 0..1: the ink of a digit, enlarged, slightly rotated, at a random position."""
    side = round(image_size * float(np.exp(random.uniform(np.log(0.14), np.log(0.5)))))
    assert isinstance(digit.source, Image.Image)
    gray = digit.source.convert("L").resize((side, side), Image.Resampling.BICUBIC)
    gray = gray.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR)
    left, top = (int(random.integers(0, image_size - side + 1)) for _ in range(2))
    ink = np.zeros((image_size, image_size))
    ink[top : top + side, left : left + side] = np.asarray(gray) / 255.0
    return ink


def write_digit_scenes(
    folder: Path,
    *,
    train: int = 500,
    validation: int = 100,
    image_size: int = 128,
    seed: int = 0,
    max_digits: int = MAX_DIGITS,
) -> dict[str, int]:
    """Write scenes in both layouts into a new ``folder``, all of them or none; with ``max_digits`` 1 in class folders.

    Returns:
        The number of objects of each split.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: the folder is not empty or cannot be written, or a number is too small.
    """
    num_objects = {}
    with new_folder(folder, "the scenes") as root:
        for split, count in (("train", train), ("val", validation)):
            scenes = generate_digit_scenes(split, count=count, image_size=image_size, seed=seed, max_digits=max_digits)
            num_objects[split] = _write_split(root, split, scenes, with_classes=max_digits == 1)
        (root / "ade" / "classes.txt").write_text("\n".join(("background", *LABELS)) + "\n", encoding="utf-8")
    return num_objects


def find_or_write_digit_scenes(folder: Path, *, train: int, validation: int) -> None:
    """Make sure that ``folder`` has scenes: keep those of an earlier run, however many, or write new ones.

    Several processes may call this concurrently.

    Raises:
        DataError: the folder has other content.
        UsageError: see ``write_digit_scenes``.
    """
    write_unless_present(folder, lambda new: write_digit_scenes(new, train=train, validation=validation))
    if not (folder / "coco" / "annotations").is_dir() or not (folder / "ade" / "annotations").is_dir():
        raise DataError(
            f'{folder}: expected the scenes of "van data digit-scenes", got other files; choose a new folder'
        )


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask (rows, columns) as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _write_split(root: Path, split: str, scenes: Iterable[Scene], *, with_classes: bool) -> int:
    """Write the scenes of one split in every layout; return the number of objects."""
    annotation_dir, ade_split = root / "coco" / "annotations", {"train": "training", "val": "validation"}[split]
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        name = f"{image_id - 1:06d}.png"
        width, height = scene.image.size
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        ids = np.full((height, width), 1, np.uint32)  # 1 is the background; 0 would be unlabeled
        segments = [_describe(1, BACKGROUND_ID, scene.semantic_mask() == 0)]
        for segment_id, each in enumerate(scene.objects, start=2):
            ids[each.mask] = segment_id
            segments.append(_describe(segment_id, each.label + 1, each.mask))
            annotation = {"id": len(instances) + 1, "image_id": image_id, "segmentation": encode_rle(each.mask)}
            instances.append({**segments[-1], **annotation})
        panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        files = {
            root / "coco" / split: scene.image,
            root / "ade" / "images" / ade_split: scene.image,
            annotation_dir / f"panoptic_{split}": Image.fromarray(colors),
            root / "ade" / "annotations" / ade_split: Image.fromarray(scene.semantic_mask() + 1),
        }
        if with_classes:
            (only,) = scene.objects
            files[root / "classes" / split / LABELS[only.label]] = scene.image
        for folder, image in files.items():
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    digits = [{"id": index, "name": label, "supercategory": "digit"} for index, label in enumerate(LABELS, start=1)]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "background", "isthing": 0}
    things = [*({**digit, "isthing": 1} for digit in digits), background]
    for kind, annotations, categories in (("instances", instances, digits), ("panoptic", panoptic, things)):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (annotation_dir / f"{kind}_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return len(instances)


def _describe(segment_id: int, category_id: int, mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's entry of a segment."""
    x1, y1, x2, y2 = _enclose(mask)
    box = [x1, y1, x2 - x1, y2 - y1]
    return {"id": segment_id, "category_id": category_id, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}


def _enclose(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
