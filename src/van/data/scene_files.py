"""Digit scenes as files, in the layouts of COCO and ADE20K, so that what reads those reads these.

::

    FOLDER/coco/train/000000.png ...                           pictures
    FOLDER/coco/annotations/instances_train.json               boxes and masks (run lengths, by columns)
    FOLDER/coco/annotations/panoptic_train.json, panoptic_train/000000.png
    FOLDER/ade/images/training/000000.png, annotations/training/000000.png
    FOLDER/ade/classes.txt
    FOLDER/classes/train/7/000000.png ...                      where every scene shows exactly one digit

``val`` (in ade ``validation``) holds the held-out scenes. An ade map counts from 1 (ground, then the digits) and
has 0 where nothing is said, which is nowhere here. Sources: cocodataset.org, "Data format"; the ADE20K scene
parsing benchmark.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.data.digits import LABELS
from van.data.scenes import MOST_DIGITS, Scene, digit_scenes
from van.errors import DataError, UsageError

PARTS = {"train": "training", "val": "validation"}
"""Our parts, and ade's words for them."""
GROUND = len(LABELS) + 1
"""Id of the one category that is no thing; the digits have 1 to 10."""


def write_digit_scenes(
    folder: Path,
    *,
    train: int = 500,
    validation: int = 100,
    size_px: int = 128,
    seed: int = 0,
    most_digits: int = MOST_DIGITS,
) -> dict[str, int]:
    """Write scenes in both layouts into a new ``folder``, all of them or none.

    With ``most_digits`` 1 the same pictures are there as class folders, too.

    Returns:
        How many things each part shows.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: the folder already holds something or cannot be written, or a number is too small.
    """
    if _is_occupied(folder):
        raise UsageError(f"{folder} already holds something; choose a new folder for the scenes")
    things = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
            whole = Path(partial) / folder.name
            for part, count in (("train", train), ("val", validation)):
                scenes = digit_scenes(part, count=count, size_px=size_px, seed=seed, most_digits=most_digits)
                things[part] = _write_part(whole, part, scenes, with_classes=most_digits == 1)
            (whole / "ade" / "classes.txt").write_text("\n".join(("ground", *LABELS)) + "\n", encoding="utf-8")
            if folder.is_dir():  # and empty; it may be where the caller stands, so it stays
                for child in whole.iterdir():
                    child.rename(folder / child.name)
            else:
                whole.rename(folder)
    except OSError as error:
        raise UsageError(f"the scenes cannot be written to {folder} ({error}); choose another folder") from error
    return things


def find_or_write_digit_scenes(folder: Path, *, train: int, validation: int) -> None:
    """See that scenes lie in ``folder``: those of an earlier run, as many as they are, or new ones.

    Several processes may call this at once.

    Raises:
        DataError: the folder holds something else.
        UsageError: see ``write_digit_scenes``.
    """
    if not _is_occupied(folder):
        try:
            write_digit_scenes(folder, train=train, validation=validation)
        except UsageError:
            if not _is_occupied(folder):  # else another process was faster
                raise
    if not (folder / "coco" / "annotations").is_dir() or not (folder / "ade" / "annotations").is_dir():
        raise DataError(f"{folder} holds no digit scenes; name a new folder, or one that van data digit-scenes wrote")


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (rows, columns) as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _write_part(whole: Path, part: str, scenes: Iterable[Scene], *, with_classes: bool) -> int:
    coco, ade, annotations = whole / "coco", whole / "ade", whole / "coco" / "annotations"
    pictures, ade_pictures = coco / part, ade / "images" / PARTS[part]
    panoptic_maps, semantic_maps = annotations / f"panoptic_{part}", ade / "annotations" / PARTS[part]
    for place in (pictures, ade_pictures, panoptic_maps, semantic_maps):
        place.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        name = f"{number:06d}.png"
        width, height = scene.picture.size
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for place in (pictures, ade_pictures):
            scene.picture.save(place / name)
        if with_classes:
            (thing,) = scene.things
            place = whole / "classes" / part / LABELS[thing.label]
            place.mkdir(parents=True, exist_ok=True)
            scene.picture.save(place / name)
        Image.fromarray(scene.semantic_map() + 1).save(semantic_maps / name)
        found = _annotations(scene, number + 1, first_id=len(instances) + 1)
        instances += found
        panoptic.append(_write_panoptic(scene, found, panoptic_maps / name, number + 1))
    digits = [{"id": place, "name": label, "supercategory": "digit"} for place, label in enumerate(LABELS, start=1)]
    _write_json(annotations / f"instances_{part}.json", images, instances, digits)
    ground = {"id": GROUND, "name": "ground", "supercategory": "ground", "isthing": 0}
    _write_json(
        annotations / f"panoptic_{part}.json", images, panoptic, [*({**d, "isthing": 1} for d in digits), ground]
    )
    return len(instances)


def _annotations(scene: Scene, image_id: int, *, first_id: int) -> list[dict[str, Any]]:
    found = []
    for number, thing in enumerate(scene.things):
        x1, y1, x2, y2 = thing.box
        found.append({
            "id": first_id + number,
            "image_id": image_id,
            "category_id": thing.label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(thing.mask.sum()),
            "segmentation": run_lengths(thing.mask),
            "iscrowd": 0,
        })  # fmt: skip
    return found


def _write_panoptic(scene: Scene, things: list[dict[str, Any]], path: Path, image_id: int) -> dict[str, Any]:
    """The map, whose colours are segment ids (red + 256 green + 65,536 blue), and the entry that explains it."""
    width, height = scene.picture.size
    ids = np.full((height, width), 1, np.uint32)  # 1 is the ground; 0 would say that nothing is known
    segments = []
    for number, (thing, annotation) in enumerate(zip(scene.things, things, strict=True), start=2):
        ids[thing.mask] = number
        segments.append({key: annotation[key] for key in ("category_id", "bbox", "area", "iscrowd")} | {"id": number})
    ground = ids == 1
    rows, columns = np.flatnonzero(ground.any(1)), np.flatnonzero(ground.any(0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    area = int(ground.sum())
    segments.insert(0, {"id": 1, "category_id": GROUND, "bbox": box, "area": area, "iscrowd": 0})
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)
    return {"image_id": image_id, "file_name": path.name, "segments_info": segments}


def _write_json(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
