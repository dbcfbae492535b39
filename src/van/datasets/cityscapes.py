"""Reader of datasets in Cityscapes' folders, from masks of train ids or of the 34 label ids.

::

    leftImg8bit/train/CITY/a_leftImg8bit.png    gtFine/train/CITY/a_gtFine_labelTrainIds.png or _labelIds.png

Source: Cordts et al. 2016, arXiv:1604.01685.
"""

from pathlib import Path

from van.datasets.annotations import AnnotatedDataset, Issues
from van.datasets.registry import register_format
from van.datasets.semantic_masks import list_pairs, to_dataset

CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The 19 evaluated classes, in the order of their train ids, with the id of each among the 34 of ``_labelIds.png``."""
_NUM_LABEL_IDS = 34


@register_format(
    "cityscapes",
    title="Cityscapes",
    tasks=("segment",),
    files="`leftImg8bit/{split}` and `gtFine/{split}`",
    recognize=lambda root, split: (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir(),
)
def read_cityscapes(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the images and masks of ``split``; as ``van.datasets.semantic_masks.read_image_masks``."""

    def suffixes(folder: str) -> tuple[str, str]:
        has_train_ids = any((root / "gtFine" / folder).rglob("*_labelTrainIds.png"))
        return "_leftImg8bit.png", f"_gtFine_label{'TrainIds' if has_train_ids else 'Ids'}.png"

    pairs = list_pairs(root / "leftImg8bit", root / "gtFine", split, issues, suffixes=suffixes)
    if any(pair.mask.stem.endswith("TrainIds") for pair in pairs):
        return to_dataset(pairs, {name: train_id for train_id, name in enumerate(CITYSCAPES)})
    return to_dataset(pairs, CITYSCAPES, unlabeled_values=range(_NUM_LABEL_IDS))
