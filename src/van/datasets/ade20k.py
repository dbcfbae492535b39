"""Reader of datasets in ADE20K's folders: 0 in a mask is an unlabeled pixel, classes count from 1.

::

    images/training/a.jpg    annotations/training/a.png    likewise validation

Class names come from ``classes.txt`` or ``objectInfo150.txt``. Source: Zhou et al. 2017, ADE20K.
"""

import functools
from pathlib import Path

from van.datasets.annotations import AnnotatedDataset, Issues
from van.datasets.registry import register_format
from van.datasets.semantic_masks import find_values, list_pairs, read_class_names, to_dataset


def is_ade20k(root: Path, split: str) -> bool:
    """Return whether a folder has images and masks in ADE20K's folders."""
    masks = root / "annotations"
    return (root / "images").is_dir() and any((masks / name).is_dir() for name in ("training", "validation"))


@register_format(
    "ade20k",
    title="ADE20K",
    tasks=("segment",),
    files="`images/training` and `annotations/training`, likewise `validation`; 0 is no class",
    recognize=is_ade20k,
)
def read_ade20k(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images and masks of ``split``; as ``van.datasets.semantic_masks.read_image_masks``."""
    pairs = functools.partial(list_pairs, root / "images", root / "annotations")
    # classes without names count up to the greatest value, without gaps
    names = read_class_names(root)
    if not names:
        names = [f"class {value}" for value in range(1, 1 + max(find_values(pairs), default=0))]
    classes = {name: value for value, name in enumerate(names, start=1)}
    return to_dataset(pairs(split, issues), classes, unlabeled_values=(0,))
