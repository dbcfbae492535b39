"""The pictures that a run held out, found again from its settings.

A run remembers where its data lay, not the data: what was moved or deleted since is reported as missing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from van.data.evaluation import evaluation_set, flattered
from van.data.folder import read_split
from van.data.marked_set import MarkedSet
from van.data.pictures import PictureSet
from van.errors import DataError
from van.models.load import Loaded
from van.pictures import read_picture, to_rgb
from van.preprocess import Preprocess
from van.tasks.base import Sample

Pictures = PictureSet | MarkedSet


class HeldOut(NamedTuple):
    """The held-out samples, and where they come from, in words."""

    samples: Pictures
    source: str


def find_held_out(
    run: Path,
    recipe: Mapping[str, Any],
    loaded: Loaded,
    *,
    data: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> HeldOut:
    """What the run measured itself on.

    Args:
        run: its folder.
        recipe: its settings.
        loaded: its network.
        data: look there instead; a folder that the run itself learnt from is split as the run split it.
        tell: told of marks that are damaged and in no figure, and of pictures that the network learnt from.

    Raises:
        DataError: the settings name no data, or nothing that fits is there any more.
        MissingExtra: the digits are needed, and scikit-learn is not installed.
    """
    learnt = Path(recipe["data"]) if isinstance(recipe.get("data"), str) else None
    if data is None and recipe.get("recipe") == "digits" and recipe.get("pictures") is None:
        return _embedded_digits(loaded)
    root = data or learnt or _written_by_recipe(run, recipe)
    if root is None:
        raise DataError("its settings do not say where its pictures lay; give their folder by --data")
    if loaded.task == "classify" and learnt is not None and root.resolve() == learnt.resolve():
        return HeldOut(_own_share(root, recipe, loaded), str(root))
    if loaded.task == "classify":
        for warning in flattered(root, recipe):
            tell(warning)
    samples = evaluation_set(root, task=loaded.task, labels=loaded.labels, preprocess=loaded.preprocess, tell=tell)
    return HeldOut(samples, str(root))


class EveryNth:
    """Some samples of a set, evenly spread over it, so that no class is left out for coming last.

    Args:
        samples: the whole.
        count: how many to take, at most all.
    """

    def __init__(self, samples: Pictures, count: int) -> None:
        self.samples = samples
        self._count = min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index * len(self.samples) // self._count]


def picture_named(samples: Pictures, name: str) -> Any:
    """The whole RGB picture of the sample with that name, as PIL has it.

    Raises:
        PictureError: it cannot be read any more.
    """
    if isinstance(samples, MarkedSet):
        return read_picture(next(entry.path for entry in samples.marked.pictures if entry.name == name))
    source = next(item.source for item in samples.items if item.name == name)
    return read_picture(source) if isinstance(source, Path) else to_rgb(source)


def _embedded_digits(loaded: Loaded) -> HeldOut:
    from van.data.digits import LABELS, load_digits

    if loaded.labels != LABELS or not isinstance(loaded.preprocess, Preprocess):
        raise DataError(f"its settings say it learnt the digits, and its classes are {', '.join(loaded.labels[:8])}")
    return HeldOut(PictureSet(load_digits().validation, loaded.preprocess), "the digits that come with the package")


def _written_by_recipe(run: Path, recipe: Mapping[str, Any]) -> Path | None:
    """Where a recipe that writes its own pictures put them."""
    for name in ("pictures", "scenes"):
        if isinstance(recipe.get(name), str):
            return Path(recipe[name])
    return run / "scenes" if "scenes" in recipe else None


def _own_share(root: Path, recipe: Mapping[str, Any], loaded: Loaded) -> PictureSet:
    """The pictures that training left out of the folder that it learnt from."""
    split = read_split(root, validation_share=recipe.get("validation_share", 0.2), seed=recipe.get("seed", 0))
    if split.labels != loaded.labels:
        raise DataError(
            f"{root} has the classes {', '.join(split.labels[:8])}; when the run began there were "
            f"{', '.join(loaded.labels[:8])}: give the folder as it was by --data"
        )
    assert isinstance(loaded.preprocess, Preprocess)  # as of every network that classifies
    return PictureSet(split.validation, loaded.preprocess)
