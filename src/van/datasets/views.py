"""Detection of everything that a folder can be read as: each split, for each target type.

A dataset may have several target types at once, such as COCO's boxes, masks and panoptic masks. Class folders are
tried last, because every dataset of images in folders would match them.
"""

from pathlib import Path
from typing import NamedTuple

from van.datasets.annotations import AnnotatedDataset, Annotation, ImageRecord, Issues
from van.datasets.folder import TrainValSplits, load_image_folder
from van.datasets.formats import load_split
from van.datasets.image_dataset import Item
from van.errors import DataError, MissingAnnotations
from van.images import find_images

SPLITS = ("train", "val")
VIEW_TYPES = ("boxes", "masks", "panoptic", "semantic")
"""The target types, in the order in which reports show them."""
CLASSES = "classes"
"""The target type of class folders; each image has one annotation, whose box means nothing."""


class DatasetView(NamedTuple):
    """One split of a dataset, read for one target type: one of ``VIEW_TYPES``, or ``CLASSES``."""

    split: str
    target_type: str
    dataset: AnnotatedDataset


def detect_formats(root: Path, issues: Issues) -> list[DatasetView]:
    """Read ``root`` as everything that it can be read as.

    Raises:
        DataError: no layout matches, or the folder has no images.
    """
    views: dict[tuple[str, str], DatasetView] = {}
    missing: list[tuple[str, str]] = []
    for split in SPLITS:
        for target_type in ("boxes", "panoptic", "semantic"):
            try:
                dataset = load_split(root, split, target_type=target_type, issues=issues)
            except MissingAnnotations:
                missing.append((split, target_type))
                continue
            except DataError as error:
                issues.add(root, str(error).removeprefix(f"{root}: "), location=f"{split} {target_type}")
                continue
            views[split, target_type] = DatasetView(split, target_type, dataset)
            has_segmentations = any(
                annotation.segmentation is not None for image in dataset.images for annotation in image.annotations
            )
            if target_type == "boxes" and has_segmentations:
                views[split, "masks"] = DatasetView(split, "masks", dataset)
    for split, target_type in missing:
        other = SPLITS[1 - SPLITS.index(split)]
        if (other, target_type) in views:
            issues.add(root, f"expected {target_type}, as {other} has, got none", location=f"{split} {target_type}")
    if not views and not issues.collected:
        return _read_class_folders(root, issues)
    return [
        views[split, target_type] for split in SPLITS for target_type in VIEW_TYPES if (split, target_type) in views
    ]


def _read_class_folders(root: Path, issues: Issues) -> list[DatasetView]:
    try:
        splits = load_image_folder(root)
    except DataError as error:
        paths = find_images(root)
        if not paths:
            raise DataError(f"{root}: expected the folder of a dataset, got a folder without images") from error
        message = f"no boxes, segmentations or masks; read as class folders: {error}"
        issues.add(root, message.removesuffix("."))
        # the images can be opened and checked all the same
        class_names = tuple(sorted({path.parent.name for path in paths}))
        splits = TrainValSplits(
            class_names, [Item(path, class_names.index(path.parent.name), str(path)) for path in paths], []
        )
    views = []
    for split, items in zip(SPLITS, (splits.train, splits.validation), strict=True):
        images = (
            ImageRecord(path=item.source, name=item.name, id=image_id, annotations=(_image_level(item.target),))
            for image_id, item in enumerate(items, start=1)
            if isinstance(item.source, Path)
        )
        dataset = AnnotatedDataset(
            class_names=splits.class_names, category_ids=tuple(range(len(splits.class_names))), images=tuple(images)
        )
        views.append(DatasetView(split, CLASSES, dataset))
    return views


def _image_level(label: int) -> Annotation:
    """Return the annotation that stands for the class of a whole image."""
    return Annotation(label=label, box=(0.0, 0.0, 0.0, 0.0))
