"""Joint augmentation of images, boxes and masks for training, by torchvision's transforms v2.

Large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177), a crop that no single class fills (as mmsegmentation's
``cat_max_ratio``), photometric distortion (Liu et al. 2016, arXiv:1512.02325) and a horizontal flip.
Shapes: an image (3, H, W) uint8; boxes (K, 4) x1, y1, x2, y2 in pixels; masks (K, H, W); a segmentation map (H, W).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from van.datasets.joint_augment import JointAugmentSettings
from van.preprocess import ResizePreprocess

Sample = dict[str, Any]
_MAX_CROP_TRIES = 10
"""Crops tried before one that a single class fills is taken."""


class _PhotometricDistort(v2.RandomPhotometricDistort):
    """torchvision's transform without its permutation of channels, which the paper's recipe does not have."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


class JointTransform:
    """A random transform of an image together with its annotations.

    Args:
        preprocess: the rule of evaluation, which gives the size that ``scale`` multiplies.
        settings: the ranges and probabilities of the changes.
        ignore_index: the fill value of a segmentation map outside the image.
    """

    def __init__(self, preprocess: ResizePreprocess, settings: JointAugmentSettings, *, ignore_index: int) -> None:
        self.preprocess, self.settings, self.ignore_index = preprocess, settings, ignore_index
        # padding with the mean is padding with zeros after normalization
        mean = [round(255 * value) for value in preprocess.mean]
        self._fills: dict[str, Any] = {"image": mean, "segmentation_map": ignore_index}
        self._distort = _PhotometricDistort(p=settings.photometric_distort)

    def __call__(self, sample: Mapping[str, Any]) -> Sample:
        """Transform a sample of ``image`` and any of ``boxes``, ``labels``, ``masks``, ``segmentation_map``.

        The image stays uint8; objects outside the result are dropped.
        """
        sample = self._resize(dict(sample))
        if self.settings.crop_size:
            sample = self._crop(self._pad(sample))
        if float(torch.rand(())) < self.settings.hflip:
            sample = _apply(sample, functional.horizontal_flip)
        if self.settings.photometric_distort:
            sample["image"] = self._distort(sample["image"])
        return _drop_invisible_objects(sample) if "boxes" in sample else sample

    def _resize(self, sample: Sample) -> Sample:
        least, greatest = self.settings.scale
        factor = least + (greatest - least) * float(torch.rand(()))
        size = [max(1, round(side * factor)) for side in self.preprocess.resized_size(tuple(sample["image"].shape[1:]))]
        return _apply(sample, lambda value: functional.resize(value, size, antialias=True))

    def _pad(self, sample: Sample) -> Sample:
        """Pad below and on the right to at least the size of the crop."""
        rows, columns = sample["image"].shape[1:]
        side = self.settings.crop_size
        padding = [0, 0, max(0, side - columns), max(0, side - rows)]
        if not any(padding):
            return sample
        return {
            name: functional.pad(value, padding, fill=self._fills.get(name, 0)) if _is_spatial(value) else value
            for name, value in sample.items()
        }

    def _crop(self, sample: Sample) -> Sample:
        side = self.settings.crop_size
        rows, columns = sample["image"].shape[1:]
        top = left = 0
        for _ in range(_MAX_CROP_TRIES):
            top, left = (int(torch.randint(0, whole - side + 1, ())) for whole in (rows, columns))
            if "segmentation_map" not in sample:
                break
            if self._has_several_classes(sample["segmentation_map"][top : top + side, left : left + side]):
                break
        return _apply(sample, lambda value: functional.crop(value, top, left, side, side))

    def _has_several_classes(self, crop: Tensor) -> bool:
        """Return whether no class fills more of the labeled pixels than ``max_class_fraction``."""
        _, counts = crop[crop != self.ignore_index].unique(return_counts=True)
        return len(counts) > 1 and float(counts.max()) <= self.settings.max_class_fraction * float(counts.sum())


def _is_spatial(value: Any) -> bool:
    return isinstance(value, tv_tensors.Image | tv_tensors.Mask | tv_tensors.BoundingBoxes)


def _apply(sample: Sample, transform: Callable[[Any], Any]) -> Sample:
    return {name: transform(value) if _is_spatial(value) else value for name, value in sample.items()}


def _drop_invisible_objects(sample: Sample) -> Sample:
    """Keep objects of which a pixel of the box and, where there are masks, of the mask is left."""
    boxes = sample["boxes"].as_subclass(Tensor)
    visible = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    if "masks" in sample:
        visible &= sample["masks"].as_subclass(Tensor).flatten(1).any(1)
    sample = sample | {name: sample[name][visible] for name in ("boxes", "labels", "masks") if name in sample}
    return sample | {"boxes": _tighten_boxes(sample)} if "masks" in sample else sample


def _tighten_boxes(sample: Sample) -> Tensor:
    """Return the boxes; those that reach the image's edge are recomputed from what is left of their masks."""
    boxes = sample["boxes"].clone()
    rows, columns = sample["image"].shape[1:]
    cut = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2] >= columns) | (boxes[:, 3] >= rows)
    if cut.any():
        around = masks_to_boxes(sample["masks"].as_subclass(Tensor)[cut])
        # masks_to_boxes gives the last pixel; a box of ours ends behind it
        boxes[cut] = (around + around.new_tensor([0, 0, 1, 1])).to(boxes)
    return boxes
