"""Datasets to evaluate a model on: the validation split of a dataset in any layout that the model's task reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from van.datasets.annotations import TASK_TARGETS, Issues
from van.datasets.dense_dataset import DenseDataset
from van.datasets.folder import find_validation_folder, load_validation_items
from van.datasets.formats import load_split, remap_labels
from van.datasets.image_dataset import ImageDataset
from van.errors import UsageError
from van.preprocess import CenterCropPreprocess, ResizePreprocess


def evaluation_dataset(
    root: Path,
    *,
    task: str,
    class_names: Sequence[str],
    preprocess: CenterCropPreprocess | ResizePreprocess,
    without_resize: bool = False,
    log: Callable[[str], None] = lambda message: None,
) -> ImageDataset | DenseDataset:
    """Return the validation samples in ``root``, their classes matched to the model's by name.

    Args:
        root: class folders, or an annotated dataset in any layout of ``van.datasets.formats``.
        task: classify, or a key of ``TASK_TARGETS``.
        class_names: of the model.
        preprocess: of the model.
        without_resize: see ``DenseDataset``.
        log: called with a message about invalid annotations, which the metrics do not count.

    Raises:
        DataError: the layout does not match, the split is empty, or it has classes that the model does not have.
        UsageError: the task has no evaluation.
    """
    if task == "classify":
        return ImageDataset(load_validation_items(root, class_names), preprocess)
    if task not in TASK_TARGETS or not isinstance(preprocess, ResizePreprocess):
        raise UsageError(f"task: expected one of classify, {', '.join(TASK_TARGETS)} to evaluate, got {task!r}")
    target_type = TASK_TARGETS[task]
    issues = Issues(collect=True)
    dataset = load_split(root, "val", target_type=target_type, issues=issues)
    skipped = issues.raise_unless_minor(num_annotations=sum(len(image.annotations) for image in dataset.images))
    if skipped:
        log(
            f"skipped {len(skipped)} invalid annotations, which the metrics do not count; the first is {skipped[0]}; "
            f'run "van data check {root}" for all issues'
        )
    return DenseDataset(
        remap_labels(dataset, class_names), preprocess, target_type=target_type, without_resize=without_resize
    )


def training_data_warnings(data: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Return a warning if the model was trained on the very folder that it is evaluated on, else nothing."""
    trained_on = recipe.get("data")
    if not isinstance(trained_on, str):
        return []
    if find_validation_folder(data).resolve() not in (Path(trained_on).resolve(), Path(trained_on, "train").resolve()):
        return []
    return [f"{data} has the images that this model was trained on; expect worse metrics on new images"]
