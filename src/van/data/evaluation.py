"""What to measure a network on: the held-out part of a data set in any layout that its task reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from van.data.find import check_labels, read_part
from van.data.folder import evaluation_folder, evaluation_items
from van.data.marked_set import MarkedSet
from van.data.marks import WANTED, Problems
from van.data.pictures import PictureSet
from van.errors import UsageError
from van.preprocess import Preprocess, WholePreprocess


def evaluation_set(
    root: Path,
    *,
    task: str,
    labels: Sequence[str],
    preprocess: Preprocess | WholePreprocess,
    own_size: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> PictureSet | MarkedSet:
    """The held-out samples in ``root``, their classes matched to ``labels`` by name.

    Args:
        root: class folders, or a marked data set in any layout of ``van.data.find``.
        task: classify, or a key of ``WANTED``.
        labels: of the network.
        preprocess: of the network.
        own_size: see ``MarkedSet``.
        tell: told of marks that are damaged and in no figure.

    Raises:
        DataError: the set is laid out in another way, is empty, or has classes that the network does not know.
        UsageError: the network's task needs no such samples.
    """
    if task == "classify":
        return PictureSet(evaluation_items(root, labels), preprocess)
    if task not in WANTED or not isinstance(preprocess, WholePreprocess):
        raise UsageError(f"a network that was made to {task} cannot be measured; known: classify, {', '.join(WANTED)}")
    want = WANTED[task]
    problems = Problems(collect=True)
    marked = read_part(root, "val", want=want, problems=problems)
    left_out = problems.tolerate(marks=sum(len(picture.marks) for picture in marked.pictures))
    if left_out:
        tell(f"{len(left_out)} damaged marks are in no figure, such as {left_out[0]}; see van data check {root}")
    return MarkedSet(check_labels(marked, labels), preprocess, want=want, own_size=own_size)


def flattered(data: Path, recipe: Mapping[str, Any]) -> list[str]:
    """A warning where the network has learnt from the very folder that it is measured on."""
    learnt = recipe.get("data")
    if not isinstance(learnt, str):
        return []
    if evaluation_folder(data).resolve() not in (Path(learnt).resolve(), Path(learnt, "train").resolve()):
        return []
    return [f"{data} holds the pictures that this network learnt from: it will do worse on new ones"]
