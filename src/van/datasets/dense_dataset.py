"""The map-style dataset of detection and segmentation, and the joint augmentation of images and their annotations.

Shapes of samples: ``image`` (3, h, w), normalized model input; ``original_size`` (rows, columns) of the image file.
Training targets are in the coordinates of the model input; evaluation targets are in those of the original image.
Boxes (K, 4) x1, y1, x2, y2 in pixels; labels (K,); masks (K, rows, columns) bool; segmentation maps (rows, columns).

The augmentation is by torchvision's transforms v2: large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177), a crop
that no single class fills (as mmsegmentation's ``cat_max_ratio``), photometric distortion (Liu et al. 2016,
arXiv:1512.02325) and a horizontal flip.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from van.datasets.annotations import IGNORE_INDEX, TARGET_TYPES, AnnotatedDataset, ImageRecord
from van.datasets.augment import JointAugmentSettings
from van.datasets.coco_panoptic import read_panoptic_ids
from van.datasets.semantic_masks import load_semantic_mask
from van.errors import DataError, ImageError
from van.images import read_image
from van.preprocess import ResizePreprocess

_MAX_CROP_TRIES = 10
"""Crops tried before one that a single class fills is taken."""


class DenseDataset:
    """The images of an annotated dataset, whole for evaluation or augmented for training.

    A sample is a mapping of ``image``, ``target``, ``original_size`` and ``name``, which the tasks in ``van.tasks``
    collate; that of a damaged file has ``name`` and the reason why it is ``unreadable``.

    Args:
        dataset: the images and their annotations, see ``van.datasets.load_split``.
        preprocess: the model's preprocessing.
        target_type: one of ``van.datasets.annotations.TARGET_TYPES``.
        augment: for training; None gives whole images with targets in original coordinates.
        without_resize: keep the original resolution, for a model that uses a sliding window.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        preprocess: ResizePreprocess,
        *,
        target_type: str,
        augment: JointAugmentSettings | None = None,
        without_resize: bool = False,
    ) -> None:
        assert target_type in TARGET_TYPES
        self.without_resize = without_resize
        self.dataset, self.preprocess, self.target_type = dataset, preprocess, target_type
        self._transform = None if augment is None else JointTransform(preprocess, augment)

    def __len__(self) -> int:
        return len(self.dataset.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample; augmentation draws from torch's global random generator."""
        record = self.dataset.images[index]
        try:
            image = read_image(record.path)
            size = (image.height, image.width)
            target = self._load_target(record, size)
            if self._transform is None:
                inputs = self.preprocess.without_resize(image) if self.without_resize else self.preprocess(image)
            else:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
                target = self._transform({"image": tv_tensors.Image(pixels), **target})
                inputs = self.preprocess.normalize(target.pop("image").as_subclass(Tensor).float() / 255)
        except (ImageError, DataError) as error:
            return {"name": record.name, "unreadable": getattr(error, "reason", str(error))}
        plain: Any = {name: value.as_subclass(Tensor) for name, value in target.items()}
        if self.target_type == "semantic":
            plain = plain["segmentation_map"].long()
        elif self.target_type == "panoptic":  # labels and masks of the visible segments, without crowds
            ids = plain["segmentation_map"]
            visible = set(ids.unique().tolist())
            segments = [segment for segment in record.segments if segment.id in visible and not segment.crowd]
            segment_ids = torch.tensor([segment.id for segment in segments], dtype=ids.dtype)
            labels = torch.tensor([segment.label for segment in segments], dtype=torch.int64)
            plain = {"labels": labels, "masks": ids == segment_ids[:, None, None]}
        return {"image": inputs, "target": plain, "original_size": size, "name": record.name}

    def _load_target(self, record: ImageRecord, size: tuple[int, int]) -> dict[str, Any]:
        """Return the annotations as torchvision's types, in original coordinates."""
        if self.target_type in ("semantic", "panoptic"):
            assert record.mask_path is not None
            if self.target_type == "semantic":
                values = load_semantic_mask(record.mask_path, self.dataset.mask_values)
            else:
                values = read_panoptic_ids(record.mask_path)
            if values.shape != size:
                raise DataError(
                    f"mask: expected {size[1]}x{size[0]} px (width x height), as the image, "
                    f"got {values.shape[1]}x{values.shape[0]} px"
                )
            return {"segmentation_map": tv_tensors.Mask(torch.from_numpy(values))}
        # metrics need crowds, to ignore detections on them; training does not
        objects = [each for each in record.annotations if self._transform is None or not each.crowd]
        boxes = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # pyrefly: ignore[unexpected-keyword]
            "labels": torch.tensor([each.label for each in objects], dtype=torch.int64),
        }
        if self.target_type == "masks":
            masks = np.stack([each.mask(size) for each in objects]) if objects else np.zeros((0, *size), bool)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        if self._transform is None:
            target["iscrowd"] = torch.tensor([each.crowd for each in objects], dtype=torch.int64)
            target["area"] = torch.tensor([each.area for each in objects], dtype=torch.float32)
        return target


class JointTransform:
    """A random transform of an image (3, H, W) uint8 together with its annotations, in torchvision's ``tv_tensors``.

    Args:
        preprocess: the rule of evaluation, which gives the size that ``scale`` multiplies.
        settings: the ranges and probabilities of the changes.
    """

    def __init__(self, preprocess: ResizePreprocess, settings: JointAugmentSettings) -> None:
        self.preprocess, self.settings = preprocess, settings
        # padding with the mean is padding with zeros after normalization
        mean = [round(255 * value) for value in preprocess.mean]
        self._fills: dict[str, Any] = {"image": mean, "segmentation_map": IGNORE_INDEX}
        self._distort = _PhotometricDistort(p=settings.photometric_distort)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Transform a sample of ``image`` and any of ``boxes``, ``labels``, ``masks``, ``segmentation_map``.

        The image stays uint8; objects outside the result are dropped.
        """
        least, greatest = self.settings.scale
        factor = least + (greatest - least) * float(torch.rand(()))
        whole_size = self.preprocess.resized_size(tuple(sample["image"].shape[1:]))
        size = [max(1, round(side * factor)) for side in whole_size]
        sample = _apply(sample, lambda value, name: functional.resize(value, size, antialias=True))
        if self.settings.crop_size:
            sample = self._crop(sample)
        if float(torch.rand(())) < self.settings.hflip:
            sample = _apply(sample, lambda value, name: functional.horizontal_flip(value))
        if self.settings.photometric_distort:
            sample["image"] = self._distort(sample["image"])
        return _drop_invisible_objects(sample) if "boxes" in sample else sample

    def _crop(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Pad below and on the right to at least the crop, and cut it out where no class fills too much of it."""
        side = self.settings.crop_size
        rows, columns = sample["image"].shape[1:]
        if min(rows, columns) < side:
            padding = [0, 0, max(0, side - columns), max(0, side - rows)]
            sample = _apply(sample, lambda value, name: functional.pad(value, padding, fill=self._fills.get(name, 0)))
            rows, columns = sample["image"].shape[1:]
        top = left = 0
        for _ in range(_MAX_CROP_TRIES):
            top, left = (int(torch.randint(0, whole - side + 1, ())) for whole in (rows, columns))
            if "segmentation_map" not in sample:
                break
            crop = sample["segmentation_map"][top : top + side, left : left + side]
            _, counts = crop[crop != IGNORE_INDEX].unique(return_counts=True)
            if len(counts) > 1 and float(counts.max()) <= self.settings.max_class_fraction * float(counts.sum()):
                break
        return _apply(sample, lambda value, name: functional.crop(value, top, left, side, side))


class _PhotometricDistort(v2.RandomPhotometricDistort):
    """torchvision's transform without its permutation of channels, which the paper's recipe does not have."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


def _apply(sample: Mapping[str, Any], transform: Callable[[Any, str], Any]) -> dict[str, Any]:
    spatial = (tv_tensors.Image, tv_tensors.Mask, tv_tensors.BoundingBoxes)
    return {name: transform(value, name) if isinstance(value, spatial) else value for name, value in sample.items()}


def _drop_invisible_objects(sample: dict[str, Any]) -> dict[str, Any]:
    """Keep objects of which a pixel of the box and, where there are masks, of the mask is left.

    Boxes that reach the image's edge are recomputed from what is left of their masks.
    """
    boxes = sample["boxes"].as_subclass(Tensor)
    visible = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    if "masks" in sample:
        visible &= sample["masks"].as_subclass(Tensor).flatten(1).any(1)
    sample = sample | {name: sample[name][visible] for name in ("boxes", "labels", "masks") if name in sample}
    if "masks" in sample:
        boxes = sample["boxes"].clone()
        rows, columns = sample["image"].shape[1:]
        cut = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2] >= columns) | (boxes[:, 3] >= rows)
        if cut.any():
            around = masks_to_boxes(sample["masks"].as_subclass(Tensor)[cut])
            # masks_to_boxes gives the last pixel; a box of ours ends behind it
            boxes[cut] = (around + around.new_tensor([0, 0, 1, 1])).to(boxes)
        sample["boxes"] = boxes
    return sample
