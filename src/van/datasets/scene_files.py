"""Digit scenes as files in the layouts of COCO and ADE20K, so that every reader of those reads them.

::

    FOLDER/coco/train/000000.png ...                           images
    FOLDER/coco/annotations/instances_train.json               boxes and masks (uncompressed run lengths)
    FOLDER/coco/annotations/panoptic_train.json, panoptic_train/000000.png
    FOLDER/ade/images/training/000000.png, annotations/training/000000.png
    FOLDER/ade/classes.txt
    FOLDER/classes/train/7/000000.png ...                      where every scene shows exactly one digit

``val`` (in ade ``validation``) has the validation scenes. The pixel values of an ade mask count from 1 (background,
then the digits); 0 would be an unlabeled pixel, and there is none. Sources: cocodataset.org, "Data format"; the ADE20K
scene parsing benchmark.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.datasets.digits import LABELS
from van.datasets.scenes import MAX_DIGITS, Scene, generate_digit_scenes
from van.errors import DataError, UsageError

ADE_SPLITS = {"train": "training", "val": "validation"}
"""The names of the splits in ADE20K's layout."""
BACKGROUND = "background"
"""The class of all pixels that belong to no digit."""
BACKGROUND_ID = len(LABELS) + 1
"""Category id of the background, the only stuff class; the digits have 1 to 10."""


def write_digit_scenes(
    folder: Path,
    *,
    train: int = 500,
    validation: int = 100,
    image_size: int = 128,
    seed: int = 0,
    max_digits: int = MAX_DIGITS,
) -> dict[str, int]:
    """Write scenes in both layouts into a new ``folder``, all of them or none.

    With ``max_digits`` 1 the same images are also written as class folders.

    Returns:
        The number of objects of each split.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: the folder is not empty or cannot be written, or a number is too small.
    """
    if _is_occupied(folder):
        raise UsageError(f"{folder}: expected a new or empty folder for the scenes, got one with files; choose another")
    num_objects = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
            root = Path(partial) / folder.name
            for split, count in (("train", train), ("val", validation)):
                scenes = generate_digit_scenes(
                    split, count=count, image_size=image_size, seed=seed, max_digits=max_digits
                )
                num_objects[split] = _write_split(root, split, scenes, with_classes=max_digits == 1)
            (root / "ade" / "classes.txt").write_text("\n".join((BACKGROUND, *LABELS)) + "\n", encoding="utf-8")
            if folder.is_dir():  # it may be the working directory, so it is filled rather than replaced
                for child in root.iterdir():
                    child.rename(folder / child.name)
            else:
                root.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder}: scenes cannot be written ({error}); choose another folder") from error
    return num_objects


def find_or_write_digit_scenes(folder: Path, *, train: int, validation: int) -> None:
    """Make sure that ``folder`` has scenes: keep those of an earlier run, however many, or write new ones.

    Several processes may call this concurrently.

    Raises:
        DataError: the folder has other content.
        UsageError: see ``write_digit_scenes``.
    """
    if not _is_occupied(folder):
        try:
            write_digit_scenes(folder, train=train, validation=validation)
        except UsageError:
            if not _is_occupied(folder):  # otherwise another process wrote it first
                raise
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


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _write_split(root: Path, split: str, scenes: Iterable[Scene], *, with_classes: bool) -> int:
    """Write the scenes of one split in every layout; return the number of objects."""
    coco, ade, annotation_dir = root / "coco", root / "ade", root / "coco" / "annotations"
    coco_images, ade_images = coco / split, ade / "images" / ADE_SPLITS[split]
    panoptic_masks, semantic_masks = annotation_dir / f"panoptic_{split}", ade / "annotations" / ADE_SPLITS[split]
    for folder in (coco_images, ade_images, panoptic_masks, semantic_masks):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        image_id = index + 1
        name = f"{index:06d}.png"
        width, height = scene.image.size
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for folder in (coco_images, ade_images):
            scene.image.save(folder / name)
        if with_classes:
            (only,) = scene.objects
            folder = root / "classes" / split / LABELS[only.label]
            folder.mkdir(parents=True, exist_ok=True)
            scene.image.save(folder / name)
        Image.fromarray(scene.semantic_mask() + 1).save(semantic_masks / name)
        annotations = _to_annotations(scene, image_id, first_id=len(instances) + 1)
        instances += annotations
        panoptic.append(_write_panoptic(scene, annotations, panoptic_masks / name, image_id))
    digits = [{"id": index, "name": label, "supercategory": "digit"} for index, label in enumerate(LABELS, start=1)]
    _write_json(annotation_dir / f"instances_{split}.json", images, instances, digits)
    background = {"id": BACKGROUND_ID, "name": BACKGROUND, "supercategory": BACKGROUND, "isthing": 0}
    categories = [*({**digit, "isthing": 1} for digit in digits), background]
    _write_json(annotation_dir / f"panoptic_{split}.json", images, panoptic, categories)
    return len(instances)


def _to_annotations(scene: Scene, image_id: int, *, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    for annotation_id, each in enumerate(scene.objects, start=first_id):
        x1, y1, x2, y2 = each.box
        annotations.append({
            "id": annotation_id,
            "image_id": image_id,
            "category_id": each.label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(each.mask.sum()),
            "segmentation": encode_rle(each.mask),
            "iscrowd": 0,
        })  # fmt: skip
    return annotations


def _write_panoptic(scene: Scene, annotations: list[dict[str, Any]], path: Path, image_id: int) -> dict[str, Any]:
    """Write the mask, whose colors are segment ids (red + 256 green + 65,536 blue); return its annotation."""
    width, height = scene.image.size
    ids = np.full((height, width), 1, np.uint32)  # 1 is the background; 0 would be unlabeled
    segments = []
    for segment_id, (each, annotation) in enumerate(zip(scene.objects, annotations, strict=True), start=2):
        ids[each.mask] = segment_id
        segments.append(
            {key: annotation[key] for key in ("category_id", "bbox", "area", "iscrowd")} | {"id": segment_id}
        )
    background = ids == 1
    rows, columns = np.flatnonzero(background.any(1)), np.flatnonzero(background.any(0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    area = int(background.sum())
    segments.insert(0, {"id": 1, "category_id": BACKGROUND_ID, "bbox": box, "area": area, "iscrowd": 0})
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)
    return {"image_id": image_id, "file_name": path.name, "segments_info": segments}


def _write_json(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
