"""Reading of a dataset in any registered format, which is recognized from its files.

A folder in no known format is searched two levels down, and must hold exactly one dataset.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from van.datasets import (  # noqa: F401  importing a format registers it
    ade20k,
    cityscapes,
    coco,
    coco_panoptic,
    folder,
    semantic_masks,
    voc,
    yolo,
)
from van.datasets.annotations import (
    CLASSES,
    NO_VALUE,
    SPLITS,
    TARGET_TYPES,
    VALIDATION_NAMES,
    AnnotatedDataset,
    Issues,
    join_names,
)
from van.datasets.registry import FORMATS, DatasetFormat
from van.errors import DataError, MissingAnnotations, UsageError

_ORDER = ("coco", "coco_panoptic", "yolo", "voc", "image_masks", "ade20k", "cityscapes", "class_folders")


def list_formats() -> list[DatasetFormat]:
    """Return all formats; where a folder matches several, the first one is read. Those not in ``_ORDER`` come last."""
    return sorted(FORMATS.values(), key=lambda each: (*_ORDER, each.name).index(each.name))


def load_split(
    root: Path,
    split: str,
    *,
    target_type: str,
    issues: Issues | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> AnnotatedDataset:
    """Read one split of a dataset in any registered format.

    Args:
        root: the dataset's folder, or one that contains it.
        split: train or val.
        target_type: one of ``TARGET_TYPES``, or ``CLASSES``.
        issues: receives every defect of the files; also a split without classes, images or annotations. If None,
            single invalid annotations are skipped, up to 5 % of them, and all else raises.
        log: called with a message about skipped annotations, if ``issues`` is None.

    Raises:
        MissingAnnotations: no format matches.
        DataError: more than one dataset matches, or from ``issues``.
        UsageError: the split or the target type is unknown.
    """
    for name, value, known in (("split", split, SPLITS), ("target_type", target_type, (*TARGET_TYPES, CLASSES))):
        if value not in known:
            raise UsageError(f"{name}: expected {' or '.join(known)}, got {value!r}")
    if issues is None:
        collected = Issues(collect=True)
        dataset = load_split(root, split, target_type=target_type, issues=collected)
        skipped = collected.raise_unless_minor(num_annotations=len(dataset.annotations))
        if skipped:
            log(
                f"{split}: skipped {len(skipped)} invalid annotations, such as {skipped[0]}; "
                f'run "van data check {root}" for all issues'
            )
        return dataset
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of a dataset, got no such folder")
    found, dataset_format = _find_format(root, split, target_type)
    issues_before = len(issues.collected)
    dataset = dataset_format.read(found, split, issues)
    if len(issues.collected) > issues_before:  # the checks below would only report what follows from these
        return dataset
    annotations = dataset.annotations
    problem = ""
    if not dataset.class_names:
        problem = "expected at least 1 class in the categories or names of its files, got none"
    elif not dataset.images:
        problem = "expected at least 1 image, got none"
    elif target_type in ("boxes", "masks") and not annotations:
        problem = f"expected annotations, got none in any of {len(dataset.images)} images"
    elif target_type == "masks" and not any(annotation.segmentation is not None for annotation in annotations):
        problem = f"expected segmentations to train masks on, got none in any of {len(annotations)} annotations"
    if problem:
        issues.add(found, f"{split}: {problem}")
    return dataset


def remap_labels(dataset: AnnotatedDataset, class_names: Sequence[str]) -> AnnotatedDataset:
    """Map the dataset's class indices to those of a model; classes are matched by name, the model may have more.

    Category ids and is-thing flags are left out, because those of the model count.

    Raises:
        DataError: the dataset has classes that the model does not have.
    """
    if dataset.class_names == tuple(class_names):
        return dataset
    unknown = [label for label in dataset.class_names if label not in set(class_names)]
    if unknown:
        raise DataError(
            f"dataset classes: expected only classes of the model ({join_names(class_names)}), "
            f"got also {join_names(unknown)}"
        )
    new = [class_names.index(name) for name in dataset.class_names]
    images = (
        dataclasses.replace(
            image,
            annotations=tuple(dataclasses.replace(each, label=new[each.label]) for each in image.annotations),
            segments=tuple(each._replace(label=new[each.label]) for each in image.segments),
        )
        for image in dataset.images
    )
    value_of = dict(zip(dataset.class_names, dataset.mask_values, strict=False))
    return dataclasses.replace(
        dataset,
        class_names=tuple(class_names),
        category_ids=(),
        images=tuple(images),
        things=(),
        mask_values=tuple(value_of.get(name, NO_VALUE) for name in class_names) if value_of else (),
    )


def format_table() -> str:
    """Return the Markdown table of all formats, as in the documentation."""
    rows = [
        f"| {', '.join(each.tasks)} | {each.title} | {each.files.format(split='{train,val}')} |"
        for each in list_formats()
    ]
    return "\n".join(["| task | format | files |", "|---|---|---|", *rows])


def _find_format(root: Path, split: str, target_type: str) -> tuple[Path, DatasetFormat]:
    """Return ``root``, or the only folder in it, at most two levels down, that has a matching format."""
    formats = [each for each in list_formats() if target_type in each.target_types]
    candidates = [root]
    for _ in range(3):
        matches: dict[Path, DatasetFormat] = {}
        for path, each in itertools.product(candidates, formats):
            if path not in matches and each.recognize(path, split):
                matches[path] = each
        if len(matches) > 1:
            raise DataError(
                f"{root}: expected one dataset, got {join_names([path.name for path in matches])}; "
                "give the folder of one of them"
            )
        if matches:
            return next(iter(matches.items()))
        children = (child for path in candidates for child in path.iterdir())
        candidates = sorted(child for child in children if child.is_dir() and not child.name.startswith("."))
    also = f"; {split} may also be named {', '.join(VALIDATION_NAMES[1:])}" if split == "val" else ""
    expected = " or ".join(f"{each.files.format(split=split)} ({each.title})" for each in formats)
    raise MissingAnnotations(
        f"{root}: no dataset with {target_type} for {split}, neither in it nor in its subfolders; "
        f"expected {expected}{also}"
    )
