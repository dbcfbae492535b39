"""Validation of a dataset: the whole of it by ``van data check``, the inexpensive part of it before training.

The dataset is read for every target type that it has; then every image is opened once and compared with everything
that is annotated in it. Shapes: sizes (rows, columns); semantic and panoptic masks (H, W).
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from van.datasets.annotations import (
    CHECK_HINT,
    CLASSES,
    SPLITS,
    AnnotatedDataset,
    DatasetView,
    ImageRecord,
    InvalidAnnotation,
    Issue,
    Issues,
    check_box,
    join_names,
)
from van.datasets.coco_panoptic import read_panoptic_ids
from van.datasets.formats import load_split
from van.datasets.semantic_masks import count_mask_values
from van.errors import DataError, ImageError, MissingAnnotations
from van.images import read_image

VIEW_TYPES = ("boxes", "masks", "panoptic", "semantic")
"""The target types, in the order in which reports show them."""
_MAX_LISTED_VALUES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewStatistics:
    """Counts of one view of a dataset.

    Args:
        split, target_type: of the view.
        images: number of images listed.
        annotations: number of boxes, masks or segments; for semantic masks, of classes in each image, summed.
        unannotated: number of images without any.
        per_class: number of annotations of each class, including 0.
        smallest, largest: (rows, columns) of the readable images with the fewest and the most pixels.
    """

    split: str
    target_type: str
    images: int
    annotations: int
    unannotated: int
    per_class: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The views of the dataset in ``root``, their statistics, and every issue; as text a table and the issues."""

    root: Path
    views: tuple[DatasetView, ...]
    statistics: tuple[ViewStatistics, ...]
    issues: tuple[Issue, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; sizes as width and height."""
        splits: list[dict[str, Any]] = [dataclasses.asdict(statistics) for statistics in self.statistics]
        for split in splits:
            for name in ("smallest", "largest"):
                split[name] = split[name] and {"width": split[name][1], "height": split[name][0]}
        issues = [issue._asdict() for issue in self.issues]
        return {"data": str(self.root), "valid": not issues, "splits": splits, "issues": issues}

    def draw_preview(self, path: Path) -> None:
        """Write up to 24 images with their annotations to a PNG file."""
        from van.checkpoint import atomic_path
        from van.datasets.preview import draw_preview

        with atomic_path(path) as temporary:
            draw_preview(self.views, temporary)

    def __str__(self) -> str:
        """Return a column for each view: counts and sizes, then counts per class; below it a line for each issue."""
        stats = self.statistics
        has_maps = any(each.target_type == "semantic" for each in stats)  # there the images of a class are counted
        units = ["images" if each.target_type == "semantic" else "annotations" for each in stats]
        counted = [
            f"{each.annotations:,}" if unit == "annotations" else "" for each, unit in zip(stats, units, strict=True)
        ]
        rows = [
            ("", [f"{each.split} {each.target_type}" for each in stats]),
            ("images", [f"{each.images:,}" for each in stats]),
            ("annotations", counted),
            ("unannotated images", [f"{each.unannotated:,}" for each in stats]),
            *(
                (f"{name} image", ["{1}x{0}".format(*size) if (size := getattr(each, name)) else "" for each in stats])
                for name in ("smallest", "largest")
            ),
            ("", []),
            ("class", units if has_maps else []),
            *(
                (label, [f"{each.per_class[label]:,}" if label in each.per_class else "" for each in stats])
                for label in dict.fromkeys(label for each in stats for label in each.per_class)
            ),
            ("", []),
        ]
        width = max((len(head) + 3 for head in rows[0][1]), default=0)
        lines = [f"{name[:23]:<24}" + "".join(f"{value:>{width}}" for value in values) for name, values in rows]
        lines += [str(issue).replace("\n", "\\n") for issue in self.issues]
        total = f"{len(self.issues):,} issues" if self.issues else "no issues"
        return "\n".join([*(line.rstrip() for line in lines), f"{self.root}: {total}"])


class ImageReport(NamedTuple):
    """The result of validating an image.

    ``digest`` is the hash of its file, empty if it is not a readable image; then ``size`` is None. ``label_counts`` has
    the labels of its annotations, one counter per view.
    """

    digest: bytes
    size: tuple[int, int] | None
    label_counts: list[Counter[int]]
    issues: list[Issue]


def check_dataset(path: str | Path, *, on_image: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every annotation file of a dataset and open every image.

    Args:
        path: the folder, in any format that can be trained on.
        on_image: called with the number of images done and the number of all.

    Raises:
        DataError: the folder does not exist, or has nothing that could be a dataset.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of a dataset, got no such folder")
    issues = Issues(collect=True)
    views = read_views(root, issues)
    # an image that several views of a split share is opened once
    records: dict[tuple[str, Path], list[tuple[int, ImageRecord]]] = {}
    for index, view in enumerate(views):
        for record in view.dataset.images:
            records.setdefault((view.split, record.path), []).append((index, record))
    reports: list[ImageReport] = []
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        for report in pool.map(lambda each: validate_image([(views[index], r) for index, r in each]), records.values()):
            reports.append(report)
            if on_image is not None:
                on_image(len(reports), len(records))
    finally:  # after Ctrl-C, too, do not open the remaining images
        pool.shutdown(cancel_futures=True)
    leaks: list[Issue] = []
    train_paths: dict[bytes, Path] = {}
    label_counts: list[list[Counter[int]]] = [[] for _ in views]
    sizes: list[list[tuple[int, int]]] = [[] for _ in views]
    for ((split, file), in_views), report in zip(records.items(), reports, strict=True):
        issues.collected += report.issues
        ids: dict[int, list[int]] = {}
        for (index, record), counts in zip(in_views, report.label_counts, strict=True):
            ids.setdefault(index, []).append(record.id)
            label_counts[index].append(counts)
            sizes[index] += [report.size] if report.size else []
        for same in ids.values():
            if len(same) > 1:
                location = f"images {', '.join(map(str, same))}"
                issues.add(file, f"expected to be listed once, got {len(same)} times", location=location)
        if split == "train" and report.digest:  # all of them come before those of val
            train_paths.setdefault(report.digest, file)
        elif report.digest in train_paths:
            # metrics on it would be too good
            train_path = train_paths[report.digest]
            leaks.append(Issue(str(file), "", f"same file as the training image {train_path}; remove one of them"))
    return CheckReport(
        root=root,
        views=tuple(views),
        statistics=tuple(map(_summarize, views, label_counts, sizes)),
        issues=tuple(dict.fromkeys([*issues.collected, *leaks])),  # views of the same file report most issues twice
    )


def _summarize(view: DatasetView, label_counts: list[Counter[int]], sizes: list[tuple[int, int]]) -> ViewStatistics:
    total: Counter[int] = Counter()
    for counts in label_counts:
        total.update(counts)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return ViewStatistics(
        split=view.split,
        target_type=view.target_type,
        images=len(view.dataset.images),
        annotations=total.total(),
        unannotated=sum(not counts for counts in label_counts),
        per_class={name: total[label] for label, name in enumerate(view.dataset.class_names)},
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
    )


def read_views(root: Path, issues: Issues) -> list[DatasetView]:
    """Read ``root`` as everything that it can be read as: each split, for each target type.

    A dataset may have several target types at once, such as COCO's boxes, masks and panoptic masks. Class folders are
    tried last, because every dataset of images in folders would match them.

    Raises:
        DataError: no format matches, or the folder has no images.
    """
    views: dict[tuple[str, str], DatasetView] = {}
    missing: list[tuple[str, str]] = []
    for target_type in ("boxes", "panoptic", "semantic"):
        for split in SPLITS:
            try:
                dataset = load_split(root, split, target_type=target_type, issues=issues)
            except MissingAnnotations:
                missing.append((split, target_type))
                continue
            except DataError as error:
                issues.add(root, str(error).removeprefix(f"{root}: "), location=f"{split} {target_type}")
                continue
            views[split, target_type] = DatasetView(split, target_type, dataset)
            if target_type == "boxes" and any(each.segmentation is not None for each in dataset.annotations):
                views[split, "masks"] = DatasetView(split, "masks", dataset)
        both = [views[split, target_type].dataset for split in SPLITS if (split, target_type) in views]
        if len(both) > 1 and all(dataset.class_names for dataset in both) and (got := compare_classes(*both)):
            issues.add(root, got, location=target_type)
    for split, target_type in missing:
        other = SPLITS[1 - SPLITS.index(split)]
        if (other, target_type) in views:
            issues.add(root, f"expected {target_type}, as {other} has, got none", location=f"{split} {target_type}")
    if not views and not issues.collected:
        try:
            return [
                DatasetView(split, CLASSES, load_split(root, split, target_type=CLASSES, issues=issues))
                for split in SPLITS
            ]
        except MissingAnnotations as error:
            raise DataError(f"{root}: expected the folder of a dataset, got a folder without images") from error
    return [
        views[split, target_type] for split in SPLITS for target_type in VIEW_TYPES if (split, target_type) in views
    ]


def compare_classes(train: AnnotatedDataset, val: AnnotatedDataset) -> str:
    """Return how the classes of two splits differ, empty if they are equal."""
    if train.class_names == val.class_names:
        return ""
    only_train = [name for name in train.class_names if name not in val.class_names]
    only_val = [name for name in val.class_names if name not in train.class_names]
    differences = f"only in train: {join_names(only_train)}; only in val: {join_names(only_val)}"
    got = differences if only_train or only_val else "another order"
    return f"expected the same classes in train and val, got {got}"


def load_splits(
    root: Path, *, target_type: str, log: Callable[[str], None] = lambda message: None
) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    """Read both splits for training, and check what takes a moment; each annotation file is parsed once.

    Args:
        root: the dataset, see ``van.datasets.formats.load_split``.
        target_type: one of ``TARGET_TYPES``.
        log: called with a message about skipped annotations.

    Raises:
        DataError: a file is invalid or missing, the classes of the splits differ, one of the first images does not fit
            its annotations, or there are no annotations.
    """
    train, val = (load_split(root, split, target_type=target_type, log=log) for split in SPLITS)
    if difference := compare_classes(train, val):
        raise DataError(f"{root}: {difference}; {CHECK_HINT}")
    for dataset in (train, val):
        quick_check(dataset, target_type=target_type)
    return train, val


def quick_check(dataset: AnnotatedDataset, *, target_type: str, num_images: int = 8) -> None:
    """Check that files exist, that the first images are valid, and that there are annotations.

    Raises:
        DataError: one of these is not so.
    """
    files = [file for image in dataset.images for file in (image.path, image.mask_path) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        others = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: file is missing{others}; {CHECK_HINT}")
    view = DatasetView("", target_type, dataset)
    reports = [validate_image([(view, image)]) for image in dataset.images[:num_images]]
    if first := next((issue for report in reports for issue in report.issues), None):
        raise DataError(f"{first}; {CHECK_HINT}")
    annotated = any(report.label_counts[0] for report in reports)
    if target_type != "semantic":  # what the others are annotated with is known without opening their masks
        annotated |= any(image.annotations or image.segments for image in dataset.images)
    if not annotated:
        where = (
            f"the first {len(reports)} masks" if target_type == "semantic" else f"any of {len(dataset.images)} images"
        )
        raise DataError(
            f"dataset: expected annotations, got none in {where}; "
            'draw them with "van data check DIR --preview FILE.png"'
        )


def validate_image(in_views: Sequence[tuple[DatasetView, ImageRecord]]) -> ImageReport:
    """Open an image and compare it with its records in several views."""
    path = in_views[0][1].path
    issues: list[Issue] = []
    digest, size = b"", None
    try:
        content = path.read_bytes()
        image = read_image(content, name=str(path))
        digest, size = hashlib.sha256(content).digest(), (image.height, image.width)
    except ImageError as error:
        issues.append(Issue(str(path), "", error.reason))
    except OSError as error:
        issues.append(Issue(str(path), "", f"cannot be read ({error.strerror})"))
    label_counts: list[Counter[int]] = []
    for view, record in in_views:
        if size is not None and record.size not in ((0, 0), size):
            issues.append(Issue(str(path), "", _size_mismatch(size, record.size, "annotations")))
        if view.target_type == "semantic":
            label_counts.append(_validate_semantic_mask(record, view.dataset, size, issues))
        elif view.target_type == "panoptic":
            label_counts.append(Counter(segment.label for segment in record.segments))
            _validate_panoptic_mask(record, size, issues)
        else:
            masks = view.target_type == "masks"
            label_counts.append(Counter(a.label for a in record.annotations if not masks or a.segmentation is not None))
            if view.target_type != CLASSES and size is not None:
                _validate_annotations(record, size, issues, masks=masks)
    return ImageReport(digest, size, label_counts, issues)


def _validate_annotations(record: ImageRecord, size: tuple[int, int], issues: list[Issue], *, masks: bool) -> None:
    for annotation in record.annotations:
        try:
            if record.size != size:  # otherwise the reader has checked the box
                check_box(annotation.box, size)
            has_mask = masks and annotation.segmentation is not None and record.size in ((0, 0), size)
            if has_mask and not annotation.mask(size).any():
                raise InvalidAnnotation("segmentation: expected at least 1 pixel, got an empty mask")
        except (InvalidAnnotation, DataError) as error:
            location = f"annotation {annotation.id}"
            issues.append(Issue(str(record.path), location, str(error).removeprefix(f"{location}: ")))


def _validate_semantic_mask(
    record: ImageRecord, dataset: AnnotatedDataset, size: tuple[int, int] | None, issues: list[Issue]
) -> Counter[int]:
    """Return the labels in a semantic mask."""
    file = str(record.mask_path)
    assert record.mask_path is not None
    try:
        values = count_mask_values(record.mask_path)
    except ImageError as error:
        issues.append(Issue(file, "", error.reason))
        return Counter()
    if size is not None and values.size != size:
        issues.append(Issue(file, "", _size_mismatch(values.size, size, "image")))
    known = {*dataset.mask_values, *dataset.unlabeled_values, values.ignore_value}
    unknown = sorted((-count, value) for value, count in values.counts.items() if value not in known)
    if unknown:
        pixels = sum(values.counts.values())
        listed = ", ".join(f"{value} ({-n / pixels:.2%} of the pixels)" for n, value in unknown[:_MAX_LISTED_VALUES])
        more = f" and {len(unknown) - _MAX_LISTED_VALUES} more" if len(unknown) > _MAX_LISTED_VALUES else ""
        issues.append(Issue(file, "", f"expected only values of classes, got {listed}{more}"))
    return Counter(label for label, value in enumerate(dataset.mask_values) if value in values.counts)


def _validate_panoptic_mask(record: ImageRecord, size: tuple[int, int] | None, issues: list[Issue]) -> None:
    file = str(record.mask_path)
    assert record.mask_path is not None
    try:
        ids = read_panoptic_ids(record.mask_path)
    except DataError as error:
        issues.append(Issue(file, "", str(error).removeprefix(f"{file}: ")))
        return
    if size is not None and ids.shape != size:
        issues.append(Issue(file, "", _size_mismatch(ids.shape, size, "image")))
    present, described = set(np.unique(ids).tolist()) - {0}, {segment.id for segment in record.segments}
    for segment_id in sorted(present - described):
        share = f"{float((ids == segment_id).mean()):.2%} of the pixels"
        message = f"expected an entry in segments_info, got none for {share}"
        issues.append(Issue(file, f"segment {segment_id}", message))
    for segment_id in sorted(described - present):
        issues.append(Issue(file, f"segment {segment_id}", "expected pixels with this id of segments_info, got none"))


def _size_mismatch(size: tuple[int, ...], expected: tuple[int, ...], source: str) -> str:
    hint = "; check its EXIF rotation" if size == expected[::-1] else ""
    return (
        f"expected {expected[1]}x{expected[0]} px (width x height), as its {source}, got {size[1]}x{size[0]} px{hint}"
    )
