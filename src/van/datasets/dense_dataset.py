"""The map-style dataset of detection and segmentation: images with targets, read on access.

Shapes: ``image`` (3, h, w), normalized model input; ``original_size`` (rows, columns) of the image file.
Training targets are in the coordinates of the model input; evaluation targets are in those of the original image.
Boxes (K, 4) x1, y1, x2, y2 in pixels; labels (K,); masks (K, rows, columns) bool; segmentation maps (rows, columns).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from van.datasets.annotations import IGNORE_INDEX, TARGET_TYPES, AnnotatedDataset, ImageRecord
from van.datasets.coco import read_panoptic_ids
from van.datasets.joint_augment import JointAugmentSettings
from van.datasets.joint_transform import JointTransform
from van.datasets.semantic_masks import load_semantic_mask
from van.errors import DataError, ImageError
from van.images import read_image
from van.preprocess import ResizePreprocess


class DenseDataset:
    """The images of an annotated dataset, whole for evaluation or augmented for training.

    Args:
        dataset: the images and their annotations.
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
        self._transform = None if augment is None else JointTransform(preprocess, augment, ignore_index=IGNORE_INDEX)

    def __len__(self) -> int:
        return len(self.dataset.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image``, ``target``, ``original_size``, ``name``; or ``name`` and why it is ``unreadable``."""
        record = self.dataset.images[index]
        try:
            image = read_image(record.path)
            size = (image.height, image.width)
            annotations = self._load_annotations(record, size)
            if self._transform is None:
                inputs = self.preprocess.without_resize(image) if self.without_resize else self.preprocess(image)
            else:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
                annotations = self._transform({"image": tv_tensors.Image(pixels), **annotations})
                inputs = self.preprocess.normalize(annotations.pop("image").as_subclass(Tensor).float() / 255)
        except ImageError as error:
            return {"name": record.name, "unreadable": error.reason}
        except DataError as error:
            return {"name": record.name, "unreadable": str(error)}
        return {
            "image": inputs,
            "target": self._to_target(record, annotations),
            "original_size": size,
            "name": record.name,
        }

    def _load_annotations(self, record: ImageRecord, size: tuple[int, int]) -> dict[str, Any]:
        """Return the annotations as torchvision's types, in original coordinates."""
        if self.target_type in ("semantic", "panoptic"):
            assert record.mask_path is not None
            if self.target_type == "semantic":
                values = load_semantic_mask(record.mask_path, self.dataset.mask_values)
            else:
                values = read_panoptic_ids(record.mask_path)
            return {"segmentation_map": tv_tensors.Mask(torch.from_numpy(_check_size(values, size)))}
        # metrics need crowds, to ignore detections on them; training does not
        objects = [each for each in record.annotations if self._transform is None or not each.crowd]
        boxes = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4)
        annotations: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # pyrefly: ignore[unexpected-keyword]
            "labels": torch.tensor([each.label for each in objects], dtype=torch.int64),
        }
        if self.target_type == "masks":
            masks = np.stack([each.mask(size) for each in objects]) if objects else np.zeros((0, *size), bool)
            annotations["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        if self._transform is None:
            annotations["iscrowd"] = torch.tensor([each.crowd for each in objects], dtype=torch.int64)
            annotations["area"] = torch.tensor([each.area for each in objects], dtype=torch.float32)
        return annotations

    def _to_target(self, record: ImageRecord, annotations: dict[str, Any]) -> Any:
        """Return plain tensors: a semantic map, a dictionary of tensors, or the segments of a panoptic mask."""
        plain = {
            name: value.as_subclass(Tensor) if isinstance(value, Tensor) else value
            for name, value in annotations.items()
        }
        if self.target_type == "semantic":
            return plain["segmentation_map"].long()
        if self.target_type == "panoptic":
            return _to_segments(record, plain["segmentation_map"])
        return plain


def _to_segments(record: ImageRecord, ids: Tensor) -> dict[str, Tensor]:
    """Return labels (K,) and masks (K, rows, columns) of the visible segments, without crowds."""
    visible = set(ids.unique().tolist())
    segments = [segment for segment in record.segments if segment.id in visible and not segment.crowd]
    segment_ids = torch.tensor([segment.id for segment in segments], dtype=ids.dtype)
    labels = torch.tensor([segment.label for segment in segments], dtype=torch.int64)
    return {"labels": labels, "masks": ids == segment_ids[:, None, None]}


def _check_size(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape != size:
        raise DataError(
            f"mask: expected {size[1]}x{size[0]} px (width x height), as the image, "
            f"got {values.shape[1]}x{values.shape[0]} px"
        )
    return values
