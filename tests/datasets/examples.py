"""A small example of each dataset format: how it is written, and a defect of it, for the contract tests.

Every example has the classes cat and dog and, in order, images a, b, c, ... of 40 x 30 pixels. Images of odd index show
a dog on the left half, the others a cat.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (30, 40)
NAMES = ("cat", "dog")


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a format.

    Args:
        write: writes both splits with the given numbers of images into a folder.
        image: the first training image in that folder.
        damage: makes a single annotation of the first training image invalid.
        issue: file and location of the issue that this is.
        facts: what the issue's message has.
        whole_file: whether the defect concerns a file, so that it is never skipped.
    """

    write: Callable[[Path, int, int], None]
    image: str
    damage: Callable[[Path], object]
    issue: tuple[str, str]
    facts: str
    whole_file: bool = False


def save_image(path: Path, number: int) -> None:
    """Write an image whose file differs from that of every other number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (number, 90, 30)).save(path)


def save_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def halves(left: int, right: int) -> np.ndarray:
    """Return a mask with one value in the left half and another in the right half."""
    values = np.full(SIZE, right)
    values[:, : SIZE[1] // 2] = left
    return values


def splits(train: int, val: int) -> list[tuple[str, str, int, int]]:
    """Return split, name, index in the split, and number of each image."""
    rows = [("train", index) for index in range(train)] + [("val", index) for index in range(val)]
    return [(split, chr(ord("a") + index), index, number) for number, (split, index) in enumerate(rows)]


def write_coco(root: Path, train: int, val: int) -> None:
    for own in ("train", "val"):
        images, annotations = [], []
        for split, name, index, number in splits(train, val):
            if split == own:
                save_image(root / split / f"{name}.png", number)
                images.append({"id": index + 1, "file_name": f"{name}.png", "width": 40, "height": 30})
                polygon = [0, 0, 20, 0, 20, 30, 0, 30]
                annotations.append({
                    "id": 11 + index, "image_id": index + 1, "category_id": 3 + 4 * (index % 2),
                    "bbox": [0, 0, 20, 30], "segmentation": [polygon], "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        write_json(root / "annotations" / f"instances_{own}.json", images, annotations, categories)


def write_panoptic(root: Path, train: int, val: int) -> None:
    for own in ("train", "val"):
        images, annotations = [], []
        for split, name, index, number in splits(train, val):
            if split == own:
                save_image(root / split / f"{name}.png", number)
                zeros = np.zeros(SIZE)
                ids = np.stack([halves(1 + index % 2, 9), zeros, zeros], -1)
                save_mask(root / f"panoptic_{split}" / f"{name}.png", ids)
                images.append({"id": index + 1, "file_name": f"{name}.png", "width": 40, "height": 30})
                segments = [
                    {"id": 1 + index % 2, "category_id": 1 + index % 2, "iscrowd": 0},
                    {"id": 9, "category_id": 2 - index % 2, "iscrowd": 0},
                ]
                annotations.append({"image_id": index + 1, "file_name": f"{name}.png", "segments_info": segments})
        categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "dog", "isthing": 0}]
        write_json(root / "annotations" / f"panoptic_{own}.json", images, annotations, categories)


def write_json(path: Path, images: list, annotations: list, categories: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def write_yolo(root: Path, train: int, val: int) -> None:
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
    for split, name, index, number in splits(train, val):
        save_image(root / "images" / split / f"{name}.png", number)
        (root / "labels" / split / f"{name}.txt").write_text(f"{index % 2} 0 0 0.5 0 0.5 1 0 1\n")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\nval: images/val\n")


def write_voc(root: Path, train: int, val: int) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("")
    for split, name, index, number in splits(train, val):
        name = f"{split}-{name}"
        save_image(root / "JPEGImages" / f"{name}.png", number)
        with (root / "ImageSets" / "Main" / f"{split}.txt").open("a") as listed:
            listed.write(f"{name}\n")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
        size = "<size><width>40</width><height>30</height></size>"
        text = f"<annotation>{size}<object><name>{NAMES[index % 2]}</name>{box}</object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)


def write_masks(root: Path, train: int, val: int) -> None:
    write_semantic(root, train, val, "images/{split}/{name}.png", "masks/{split}/{name}.png", (0, 1))
    (root / "classes.txt").write_text("cat\ndog\n")


def write_ade20k(root: Path, train: int, val: int) -> None:
    folders = {"train": "training", "val": "validation"}
    write_semantic(root, train, val, "images/{split}/{name}.png", "annotations/{split}/{name}.png", (1, 2), folders)
    (root / "classes.txt").write_text("cat\ndog\n")


def write_cityscapes(root: Path, train: int, val: int) -> None:
    mask = "gtFine/{split}/x/{name}_gtFine_labelTrainIds.png"
    write_semantic(root, train, val, "leftImg8bit/{split}/x/{name}_leftImg8bit.png", mask, (0, 1))


def write_semantic(
    root: Path,
    train: int,
    val: int,
    image: str,
    mask: str,
    values: tuple[int, int],
    folders: Mapping[str, str] = {"train": "train", "val": "val"},
) -> None:
    for path in (image, mask):
        for split in folders.values():
            (root / path.format(split=split, name="a")).parent.mkdir(parents=True, exist_ok=True)
    for split, name, index, number in splits(train, val):
        save_image(root / image.format(split=folders[split], name=name), number)
        left, right = values[index % 2], values[1 - index % 2]
        save_mask(root / mask.format(split=folders[split], name=name), halves(left, right))


def write_folders(root: Path, train: int, val: int) -> None:
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
    for split, name, index, number in splits(train, val):
        save_image(root / split / NAMES[index % 2] / f"{name}.png", number)


def replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


EXAMPLES = {
    "coco": Example(
        write_coco, "train/a.png", replace("annotations/instances_train.json", "[0, 0, 20, 30]", "[0, 0, 55, 30]"),
        ("annotations/instances_train.json", "annotation 11"), r"box: .*40x30.*\(0, 0\) to \(55, 30\)",
    ),
    "coco_panoptic": Example(
        write_panoptic, "train/a.png",
        replace("annotations/panoptic_train.json", '"category_id": 1', '"category_id": 8'),
        ("annotations/panoptic_train.json", "annotation of image 1, segment 1"), "category_id: .*8", whole_file=True,
    ),
    "yolo": Example(
        write_yolo, "images/train/a.png", replace("labels/train/a.txt", " 0.5 0 ", " 1.5 0 "),
        ("labels/train/a.txt", "line 1"), "polygon 0: .*40x30",
    ),
    "voc": Example(
        write_voc, "JPEGImages/train-a.png", replace("Annotations/train-a.xml", "<xmax>20", "<xmax>x"),
        ("Annotations/train-a.xml", "object 1"), "xmax: .*'x'",
    ),
    "image_masks": Example(
        write_masks, "images/train/a.png", lambda root: (root / "masks/train/a.png").unlink(),
        ("images/train/a.png", ""), "masks/train/a.png", whole_file=True,
    ),
    "ade20k": Example(
        write_ade20k, "images/training/a.png", lambda root: (root / "annotations/training/a.png").unlink(),
        ("images/training/a.png", ""), "annotations/training/a.png", whole_file=True,
    ),
    "cityscapes": Example(
        write_cityscapes, "leftImg8bit/train/x/a_leftImg8bit.png",
        lambda root: (root / "gtFine/train/x/a_gtFine_labelTrainIds.png").unlink(),
        ("leftImg8bit/train/x/a_leftImg8bit.png", ""), "a_gtFine_labelTrainIds.png", whole_file=True,
    ),
    "class_folders": Example(
        write_folders, "train/cat/a.png", lambda root: (root / "train" / "bird").mkdir(),
        ("", ""), "none in bird", whole_file=True,
    ),
}  # fmt: skip
