"""Datasets to evaluate a model on: the validation split of a dataset in any format that the model's task reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from van.datasets.annotations import TASK_TARGETS
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
        root: class folders, or an annotated dataset in any format, see ``van.datasets.formats.load_split``.
        task: classify, or a key of ``TASK_TARGETS``.
        class_names: of the model.
        preprocess: of the model.
        without_resize: see ``DenseDataset``.
        log: called with a message about invalid annotations, which the metrics do not count.

    Raises:
        DataError: the format does not match, the split is empty, or it has classes that the model does not have.
        UsageError: the task has no evaluation.
    """
    if task == "classify":
        return ImageDataset(load_validation_items(root, class_names), preprocess)
    if task not in TASK_TARGETS or not isinstance(preprocess, ResizePreprocess):
        raise UsageError(f"task: expected one of classify, {', '.join(TASK_TARGETS)} to evaluate, got {task!r}")
    target_type = TASK_TARGETS[task]
    dataset = remap_labels(load_split(root, "val", target_type=target_type, log=log), class_names)
    return DenseDataset(dataset, preprocess, target_type=target_type, without_resize=without_resize)


def training_data_warnings(data: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Return a warning if the model was trained on the very folder that it is evaluated on, else nothing."""
    trained_on = recipe.get("data")
    if not isinstance(trained_on, str):
        return []
    if find_validation_folder(data).resolve() not in (Path(trained_on).resolve(), Path(trained_on, "train").resolve()):
        return []
    return [f"{data} has the images that this model was trained on; expect worse metrics on new images"]
