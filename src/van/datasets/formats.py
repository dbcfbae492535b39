"""Detection of a dataset's layout, and reading of its splits.

::

    COCO         annotations/instances_train*.json, panoptic_train*.json beside train*/ or images/train*/
    Roboflow     train/_annotations.coco.json among its images
    YOLO         data.yaml, or a single other YAML file
    Pascal VOC   JPEGImages/, Annotations/, ImageSets/Main/
    masks        the layouts of ``van.datasets.semantic_masks``

Where several layouts match, the first in this order is read. A folder that has none of them is searched two levels
down, and must hold exactly one dataset. ``val`` may also be named ``valid``, ``validation`` or ``test``.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from van.datasets.annotations import TARGET_TYPES, AnnotatedDataset, Issues
from van.datasets.coco import read_class_names, read_coco, read_panoptic
from van.datasets.folder import VALIDATION_NAMES
from van.datasets.voc import read_voc
from van.datasets.yolo import find_data_yaml, read_yolo
from van.errors import DataError, MissingAnnotations, UsageError

_ROBOFLOW = "_annotations.coco.json"
_MAX_MASK_VALUE = 65_534
"""The greatest value of a class in a 16-bit mask; 65,535 is for unlabeled pixels."""
_EXPECTED_LAYOUTS = {
    "boxes": "annotations/instances_{split}*.json beside {split}*/ (COCO), {split}/"
    + _ROBOFLOW
    + " (Roboflow), data.yaml "
    "with names (YOLO), or JPEGImages/ with ImageSets/Main/{split}.txt (Pascal VOC)",
    "panoptic": "annotations/panoptic_{split}*.json beside panoptic_{split}*/ and {split}*/ (COCO)",
    "semantic": "images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ (Cityscapes), or images/ and masks/",
}
_EXPECTED_LAYOUTS["masks"] = _EXPECTED_LAYOUTS["boxes"]


class _CocoFiles(NamedTuple):
    """An annotation file, the folder of its images and, for a panoptic one, that of its masks."""

    annotation_file: Path
    image_dir: Path
    mask_dir: Path | None = None


def load_split(root: Path, split: str, *, target_type: str, issues: Issues) -> AnnotatedDataset:
    """Read one split of a dataset in any supported layout.

    Args:
        root: the dataset's folder, or one that contains it.
        split: train or val.
        target_type: one of ``TARGET_TYPES``.
        issues: receives every defect of the files; also a split without classes, images or annotations, and, when
            train is read, classes that differ between train and val.

    Raises:
        MissingAnnotations: no layout matches.
        DataError: more than one dataset matches, or from ``issues``.
        UsageError: the split or the target type is unknown.
    """
    for name, value, known in (("split", split, ("train", "val")), ("target_type", target_type, TARGET_TYPES)):
        if value not in known:
            raise UsageError(f"{name}: expected {' or '.join(known)}, got {value!r}")
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of a dataset, got no such folder")
    dataset_root = _find_root(root, split, target_type)
    issues_before = len(issues.collected)
    dataset = _select_reader(dataset_root, split, target_type)(issues)
    if len(issues.collected) > issues_before:  # the checks below would only report what follows from these
        return dataset
    if not dataset.class_names:
        issues.add(
            dataset_root, f"{split}: expected at least 1 class in the categories or names of its files, got none"
        )
    elif not dataset.images:
        issues.add(dataset_root, f"{split}: expected at least 1 image, got none")
    elif target_type in ("boxes", "masks"):
        _check_has_annotations(dataset_root, dataset, split, target_type, issues)
    return dataset


def remap_labels(dataset: AnnotatedDataset, class_names: Sequence[str]) -> AnnotatedDataset:
    """Map the dataset's class indices to those of a model; classes are matched by name, the model may have more.

    Classes that the dataset lacks get the next free ``category_ids``, the greatest free ``mask_values`` (16 bits,
    65,535 excluded), and False in ``things``.

    Raises:
        DataError: the dataset has classes that the model does not have.
    """
    if dataset.class_names == tuple(class_names):
        return dataset
    unknown = [label for label in dataset.class_names if label not in set(class_names)]
    if unknown:
        raise DataError(
            f"dataset classes: expected only classes of the model ({_join(class_names)}), got also {_join(unknown)}"
        )
    old = {name: label for label, name in enumerate(dataset.class_names)}
    new = {old[name]: label for label, name in enumerate(class_names) if name in old}
    free_ids = itertools.count(max(dataset.category_ids, default=0) + 1)
    free_values = (value for value in itertools.count(_MAX_MASK_VALUE, -1) if value not in dataset.mask_values)
    images = (
        dataclasses.replace(
            image,
            annotations=tuple(
                dataclasses.replace(annotation, label=new[annotation.label]) for annotation in image.annotations
            ),
            segments=tuple(dataclasses.replace(segment, label=new[segment.label]) for segment in image.segments),
        )
        for image in dataset.images
    )
    return AnnotatedDataset(
        class_names=tuple(class_names),
        category_ids=tuple(dataset.category_ids[old[name]] if name in old else next(free_ids) for name in class_names),
        images=tuple(images),
        things=tuple(name in old and dataset.things[old[name]] for name in class_names) if dataset.things else (),
        mask_values=tuple(dataset.mask_values[old[name]] if name in old else next(free_values) for name in class_names)
        if dataset.mask_values
        else (),
    )


def _find_root(root: Path, split: str, target_type: str) -> Path:
    """Return ``root``, or the only folder in it, at most two levels down, that has a matching layout."""
    candidates = [root]
    for _ in range(3):
        matches = [folder for folder in candidates if _has_layout(folder, split, target_type)]
        if len(matches) > 1:
            raise DataError(
                f"{root}: expected one dataset, got {_join([folder.name for folder in matches])}; "
                "give the folder of one of them"
            )
        if matches:
            return matches[0]
        candidates = sorted(
            child
            for folder in candidates
            for child in folder.iterdir()
            if child.is_dir() and not child.name.startswith(".")
        )
    names = _split_names(split)
    also = f"; {split} may also be named {', '.join(names[1:])}" if names[1:] else ""
    raise MissingAnnotations(
        f"{root}: no dataset with {target_type} for {split}, neither in it nor in its subfolders; "
        f"expected {_EXPECTED_LAYOUTS[target_type].format(split=split)}{also}"
    )


def _has_layout(dataset_root: Path, split: str, target_type: str) -> bool:
    if target_type == "semantic":
        from van.datasets.semantic_masks import find_masks_root

        return find_masks_root(dataset_root) is not None
    if _find_coco(dataset_root, split, target_type) is not None:
        return True
    return target_type != "panoptic" and (_is_yolo(dataset_root) or _is_voc(dataset_root))


def _select_reader(dataset_root: Path, split: str, target_type: str) -> Callable[[Issues], AnnotatedDataset]:
    """Return the reader of a folder whose layout matches."""
    if target_type == "semantic":
        from van.datasets.semantic_masks import read_semantic_masks

        return lambda issues: read_semantic_masks(dataset_root, split, issues)
    coco = _find_coco(dataset_root, split, target_type)
    if coco is not None:
        return lambda issues: _read_coco(coco, dataset_root, split, target_type, issues)
    return lambda issues: (read_yolo if _is_yolo(dataset_root) else read_voc)(dataset_root, split, issues)


def _is_yolo(dataset_root: Path) -> bool:
    """Return whether a YAML file there has class names; other datasets may hold YAML files for other purposes."""
    path = find_data_yaml(dataset_root)
    if path is None:
        return False
    try:
        return path.name == "data.yaml" or b"names" in path.read_bytes()
    except OSError:
        return True  # the reader reports why it cannot be read


def _is_voc(dataset_root: Path) -> bool:
    return (dataset_root / "JPEGImages").is_dir() and (dataset_root / "Annotations").is_dir()


def _find_coco(dataset_root: Path, split: str, target_type: str) -> _CocoFiles | None:
    """Return the files of a split in COCO's layout, None where there are none.

    Raises:
        DataError: several match, or the images or masks are missing.
    """
    kind = "panoptic" if target_type == "panoptic" else "instances"
    for name in _split_names(split):
        if kind == "instances" and (dataset_root / name / _ROBOFLOW).is_file():
            return _CocoFiles(dataset_root / name / _ROBOFLOW, dataset_root / name)
        annotation_files = sorted((dataset_root / "annotations").glob(f"{kind}_{name}*.json"))
        if not annotation_files:
            continue
        matches = [files for path in annotation_files if (files := _with_folders(dataset_root, path, kind)) is not None]
        if len(matches) > 1:
            raise DataError(
                f"{dataset_root}: expected one annotation file for {split}, "
                f"got {_join([files.annotation_file.name for files in matches])}"
            )
        if not matches:
            first = annotation_files[0]
            masks = f" and masks in annotations/{first.stem}/" if kind == "panoptic" else ""
            raise DataError(
                f"{dataset_root}: {first.name}: expected images in {first.stem.removeprefix(f'{kind}_')}/{masks}, "
                "got none"
            )
        return matches[0]
    return None


def _with_folders(dataset_root: Path, annotation_file: Path, kind: str) -> _CocoFiles | None:
    """Return an annotation file with the folders of its images and masks, None where they are missing."""
    stem = annotation_file.stem.removeprefix(f"{kind}_")
    image_dirs = (dataset_root / stem, dataset_root / "images" / stem)
    image_dir = next((folder for folder in image_dirs if folder.is_dir()), None)
    if image_dir is None or kind == "instances":
        return None if image_dir is None else _CocoFiles(annotation_file, image_dir)
    mask_dirs = (annotation_file.parent / annotation_file.stem, dataset_root / annotation_file.stem)
    mask_dir = next((folder for folder in mask_dirs if folder.is_dir()), None)
    return None if mask_dir is None else _CocoFiles(annotation_file, image_dir, mask_dir)


def _read_coco(files: _CocoFiles, dataset_root: Path, split: str, target_type: str, issues: Issues) -> AnnotatedDataset:
    if files.mask_dir is not None:
        dataset = read_panoptic(files.annotation_file, files.mask_dir, files.image_dir, issues)
    else:
        dataset = read_coco(files.annotation_file, files.image_dir, issues)
    val_files = None
    if split == "train":
        with contextlib.suppress(DataError):  # reported when val is read
            val_files = _find_coco(dataset_root, "val", target_type)
    val_names = () if val_files is None else read_class_names(val_files.annotation_file)
    if val_files is not None and val_names and dataset.class_names and val_names != dataset.class_names:
        only_train = [name for name in dataset.class_names if name not in val_names]
        only_val = [name for name in val_names if name not in dataset.class_names]
        differences = f"only in train: {_join(only_train)}; only in val: {_join(only_val)}"
        issues.add(
            files.annotation_file,
            f"expected the classes of {val_files.annotation_file.name}, "
            f"got {differences if only_train or only_val else 'another order'}",
        )
    return dataset


def _check_has_annotations(
    dataset_root: Path, dataset: AnnotatedDataset, split: str, target_type: str, issues: Issues
) -> None:
    annotations = [annotation for image in dataset.images for annotation in image.annotations]
    if not annotations:
        issues.add(dataset_root, f"{split}: expected annotations, got none in any of {len(dataset.images)} images")
    elif target_type == "masks" and not any(annotation.segmentation is not None for annotation in annotations):
        issues.add(
            dataset_root,
            f"{split}: expected segmentations to train masks on, got none in any of {len(annotations)} annotations",
        )


def _split_names(split: str) -> tuple[str, ...]:
    return VALIDATION_NAMES if split == "val" else (split,)


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "none"
