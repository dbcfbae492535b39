"""Validation of a whole dataset before training: ``van data check``.

The dataset is read for every target type that it has; then every image is opened and compared with its annotations.
Shapes: sizes (rows, columns).
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from van.datasets.annotations import CHECK_HINT, AnnotatedDataset, Issue, Issues
from van.datasets.validation import ImageReport, ViewedRecord, validate_image
from van.datasets.views import SPLITS, DatasetView, detect_formats
from van.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewStatistics:
    """Counts of one view of a dataset.

    Args:
        split, target_type: of the view.
        images: number of images listed.
        annotations: number of boxes, masks or segments; for semantic masks, of classes in each image, summed.
        unannotated: number of images without any.
        per_class: number of annotations of each class, including 0.
        smallest, largest: sizes of the readable images with the fewest and the most pixels.
    """

    split: str
    target_type: str
    images: int
    annotations: int
    unannotated: int
    per_class: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; sizes as width and height."""
        sizes = {
            name: None if size is None else {"width": size[1], "height": size[0]}
            for name, size in (("smallest", self.smallest), ("largest", self.largest))
        }
        return dataclasses.asdict(self) | sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The views of the dataset in ``root``, their statistics, and every issue."""

    root: Path
    views: tuple[DatasetView, ...]
    statistics: tuple[ViewStatistics, ...]
    issues: tuple[Issue, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "data": str(self.root),
            "valid": not self.issues,
            "splits": [statistics.to_dict() for statistics in self.statistics],
            "issues": [issue._asdict() for issue in self.issues],
        }


class _ImageTask(NamedTuple):
    """An image file of a split with its records, and the index of the view of each."""

    split: str
    path: Path
    view_indices: list[int]
    records: list[ViewedRecord]


def check_dataset(root: Path, *, on_image: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every annotation file in ``root`` and open every image.

    Args:
        root: the dataset, in any layout that can be trained on.
        on_image: called with the number of images done and the number of all.

    Raises:
        DataError: the folder does not exist, or has nothing that could be a dataset.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of a dataset, got no such folder")
    issues = Issues(collect=True)
    views = detect_formats(root, issues)
    # one task per file: an image that several views share is opened once
    tasks: dict[tuple[str, Path], _ImageTask] = {}
    for index, view in enumerate(views):
        for record in view.dataset.images:
            task = tasks.setdefault((view.split, record.path), _ImageTask(view.split, record.path, [], []))
            task.view_indices.append(index)
            task.records.append(ViewedRecord(view, record))
    results = _validate_images(list(tasks.values()), on_image)
    for task, report in results:
        issues.collected += [*report.issues, *_find_duplicate_records(task)]
    issues.collected += _find_leaked_images(results)
    return CheckReport(
        root=root,
        views=tuple(views),
        statistics=tuple(_summarize(index, view, results) for index, view in enumerate(views)),
        issues=tuple(dict.fromkeys(issues.collected)),  # views of the same file report most issues twice
    )


def _validate_images(
    tasks: Sequence[_ImageTask], on_image: Callable[[int, int], None] | None
) -> list[tuple[_ImageTask, ImageReport]]:
    results: list[tuple[_ImageTask, ImageReport]] = []
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        reports = pool.map(lambda task: validate_image(task.path, task.records), tasks)
        for task, report in zip(tasks, reports, strict=True):
            results.append((task, report))
            if on_image is not None:
                on_image(len(results), len(tasks))
    finally:  # after Ctrl-C, too, do not open the remaining images
        pool.shutdown(cancel_futures=True)
    return results


def quick_check(dataset: AnnotatedDataset, *, target_type: str, num_images: int = 8) -> None:
    """Check what takes a moment, before training: that files exist and that the first images are valid.

    Args:
        dataset: the split to check.
        target_type: one of ``TARGET_TYPES``.
        num_images: how many images to open and compare with their annotations.

    Raises:
        DataError: a file is missing, one of the first images is damaged or does not fit, or there are no annotations.
    """
    if not dataset.images:
        raise DataError(f"dataset: expected at least 1 image, got none; {CHECK_HINT}")
    files = [file for image in dataset.images for file in (image.path, image.mask_path) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        others = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: file is missing{others}; {CHECK_HINT}")
    has_annotations = any(
        image.segments
        if target_type == "panoptic"
        else any(target_type != "masks" or annotation.segmentation for annotation in image.annotations)
        for image in dataset.images
    )
    for image in dataset.images[:num_images]:
        report = validate_image(image.path, [ViewedRecord(DatasetView("", target_type, dataset), image)])
        if report.issues:
            raise DataError(f"{report.issues[0]}; {CHECK_HINT}")
        has_annotations |= target_type == "semantic" and bool(report.label_counts[0])
    if not has_annotations:
        checked = f"the first {min(num_images, len(dataset.images))} masks"
        where = checked if target_type == "semantic" else f"any of {len(dataset.images)} images"
        raise DataError(
            f"dataset: expected annotations, got none in {where}; "
            'draw them with "van data check DIR --preview FILE.png"'
        )


def _find_duplicate_records(task: _ImageTask) -> list[Issue]:
    """Report an image file that one view lists more than once."""
    ids: dict[int, list[int]] = {}
    for index, viewed in zip(task.view_indices, task.records, strict=True):
        ids.setdefault(index, []).append(viewed.record.id)
    return [
        Issue(
            str(task.path), f"images {', '.join(map(str, same))}", f"expected to be listed once, got {len(same)} times"
        )
        for same in ids.values()
        if len(same) > 1
    ]


def _find_leaked_images(results: Sequence[tuple[_ImageTask, ImageReport]]) -> list[Issue]:
    """Report validation images whose files are also training images: metrics on them would be too good."""
    train, val = SPLITS
    train_paths = {
        report.digest: task.path for task, report in reversed(results) if task.split == train and report.digest
    }
    return [
        Issue(str(task.path), "", f"same file as the training image {train_paths[report.digest]}; remove one of them")
        for task, report in results
        if task.split == val and report.digest in train_paths
    ]


def _summarize(view_index: int, view: DatasetView, results: Sequence[tuple[_ImageTask, ImageReport]]) -> ViewStatistics:
    total: Counter[int] = Counter()
    unannotated = 0
    sizes: list[tuple[int, int]] = []
    for task, report in results:
        for index, label_counts in zip(task.view_indices, report.label_counts, strict=True):
            if index == view_index:
                total.update(label_counts)
                unannotated += not label_counts
                sizes += [] if report.size is None else [report.size]
    sizes.sort(key=lambda size: size[0] * size[1])
    return ViewStatistics(
        split=view.split,
        target_type=view.target_type,
        images=len(view.dataset.images),
        annotations=total.total(),
        unannotated=unannotated,
        per_class={name: total[label] for label, name in enumerate(view.dataset.class_names)},
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
    )
