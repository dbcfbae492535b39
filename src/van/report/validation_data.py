"""The validation images of a run, loaded again from its settings.

A run stores the path of its dataset, not the dataset: images that were moved or deleted are reported as missing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from van.datasets.dense_dataset import DenseDataset
from van.datasets.evaluation import evaluation_dataset, training_data_warnings
from van.datasets.folder import load_image_folder
from van.datasets.image_dataset import ImageDataset
from van.errors import DataError
from van.images import read_image, to_rgb
from van.model import Model
from van.preprocess import CenterCropPreprocess
from van.tasks.base import Sample

ValidationDataset = ImageDataset | DenseDataset


class ValidationData(NamedTuple):
    """The validation samples and a description of their source."""

    samples: ValidationDataset
    source: str


def find_validation_data(
    run: Path,
    recipe: Mapping[str, Any],
    loaded: Model,
    *,
    data: Path | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> ValidationData:
    """Load the validation images of a run.

    Args:
        run: the run folder.
        recipe: the run's settings.
        loaded: the run's network.
        data: dataset folder to use instead of the stored one; the training folder is split as in training.
        log: called with warnings about invalid annotations and about images that the network was trained on.

    Raises:
        DataError: the settings name no dataset, or the dataset is missing or does not fit the network.
        MissingExtra: the digits are needed and scikit-learn is not installed.
    """
    trained_on = Path(recipe["data"]) if isinstance(recipe.get("data"), str) else None
    if data is None and recipe.get("recipe") == "digits" and recipe.get("images") is None:
        return _embedded_digits(loaded)
    root = data or trained_on or _generated_by_recipe(run, recipe)
    if root is None:
        raise DataError(f"{run / 'settings.json'}: data: expected the dataset folder, got nothing; give it with --data")
    if loaded.task == "classify" and trained_on is not None and root.resolve() == trained_on.resolve():
        return ValidationData(_validation_split(root, recipe, loaded), str(root))
    if loaded.task == "classify":
        for warning in training_data_warnings(root, recipe):
            log(warning)
    samples = evaluation_dataset(
        root, task=loaded.task, class_names=loaded.class_names, preprocess=loaded.preprocess, log=log
    )
    return ValidationData(samples, str(root))


class EvenSubset:
    """A subset of evenly spaced samples, so that a dataset sorted by class keeps all classes.

    Args:
        samples: the dataset.
        count: number of samples; at most all.
    """

    def __init__(self, samples: ValidationDataset, count: int) -> None:
        self.samples = samples
        self._count = min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index * len(self.samples) // self._count]


def read_image_by_name(samples: ValidationDataset, name: str) -> Any:
    """Read the full RGB image of the sample with that name as a PIL image.

    Raises:
        ImageError: the file can no longer be read.
    """
    if isinstance(samples, DenseDataset):
        return read_image(next(entry.path for entry in samples.dataset.images if entry.name == name))
    source = next(item.source for item in samples.items if item.name == name)
    return read_image(source) if isinstance(source, Path) else to_rgb(source)


def _embedded_digits(loaded: Model) -> ValidationData:
    from van.datasets.digits import LABELS, load_digits

    if loaded.class_names != LABELS or not isinstance(loaded.preprocess, CenterCropPreprocess):
        raise DataError(
            f"recipe digits: expected a classifier of {', '.join(LABELS)}, "
            f"got the classes {', '.join(loaded.class_names[:8])}"
        )
    samples = ImageDataset(load_digits().validation, loaded.preprocess)
    return ValidationData(samples, "the digits of scikit-learn")


def _generated_by_recipe(run: Path, recipe: Mapping[str, Any]) -> Path | None:
    """Return the folder of the images that a recipe generated, if it does."""
    if isinstance(recipe.get("images"), str):
        return Path(recipe["images"])
    # the scenes recipes write into the run folder by default, which may have been moved since
    return run / "scenes" if str(recipe.get("recipe")).startswith("scenes-") else None


def _validation_split(root: Path, recipe: Mapping[str, Any], loaded: Model) -> ImageDataset:
    """Return the validation split of the training folder, split with the run's fraction and seed."""
    split = load_image_folder(root, val_fraction=recipe.get("val_fraction", 0.2), seed=recipe.get("seed", 0))
    if split.class_names != loaded.class_names:
        raise DataError(
            f"{root}: expected the classes {', '.join(loaded.class_names[:8])} of the run, "
            f"got {', '.join(split.class_names[:8])}; give the unchanged folder with --data"
        )
    assert isinstance(loaded.preprocess, CenterCropPreprocess)  # every classifier has this rule
    return ImageDataset(split.validation, loaded.preprocess)
