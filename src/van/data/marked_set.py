"""A marked data set as the engine sees it: samples for detection and segmentation, read when asked for.

Shapes: ``picture`` (3, h, w) normalised, as the network sees it; ``size`` (rows, columns) of the file's picture.
Targets to learn from lie in the picture that is seen; targets to measure against lie in the file's picture.
Boxes (K, 4) x1, y1, x2, y2 in pixels; labels (K,); masks (K, rows, columns) bool; maps (rows, columns).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from van.data.coco import read_panoptic_ids
from van.data.maps import load_map
from van.data.marks import IGNORED, WANTS, Marked, MarkedPicture
from van.data.scene_augment import SceneAugmentSettings
from van.data.scene_transform import SceneTransform
from van.errors import DataError, PictureError
from van.pictures import read_picture
from van.preprocess import WholePreprocess


class MarkedSet:
    """Marked pictures, whole and as they are, or augmented for training.

    Args:
        marked: what to read.
        preprocess: the rule of the network.
        want: one of ``van.data.marks.WANTS``.
        augment: for training; None gives whole pictures with targets in their own pixels.
        own_size: do not resize, for a network that sees a picture through a sliding window.
    """

    def __init__(
        self,
        marked: Marked,
        preprocess: WholePreprocess,
        *,
        want: str,
        augment: SceneAugmentSettings | None = None,
        own_size: bool = False,
    ) -> None:
        assert want in WANTS
        self.own_size = own_size
        self.marked, self.preprocess, self.want = marked, preprocess, want
        self._transform = None if augment is None else SceneTransform(preprocess, augment, ignored=IGNORED)

    def __len__(self) -> int:
        return len(self.marked.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``picture``, ``target``, ``size`` and ``name``; or ``name`` and the reason why it is ``unreadable``."""
        entry = self.marked.pictures[index]
        try:
            picture = read_picture(entry.path)
            size = (picture.height, picture.width)
            annotations = self._annotations(entry, size)
            if self._transform is None:
                seen = self.preprocess.at_own_size(picture) if self.own_size else self.preprocess(picture)
            else:
                pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
                annotations = self._transform({"picture": tv_tensors.Image(pixels), **annotations})
                seen = self.preprocess.normalise(annotations.pop("picture").as_subclass(Tensor).float() / 255)
        except PictureError as error:
            return {"name": entry.name, "unreadable": error.reason}
        except DataError as error:
            return {"name": entry.name, "unreadable": str(error)}
        return {"picture": seen, "target": self._target(entry, annotations), "size": size, "name": entry.name}

    def _annotations(self, entry: MarkedPicture, size: tuple[int, int]) -> dict[str, Any]:
        """What is marked, as torchvision's types, in the pixels of the file's picture."""
        if self.want == "map":
            return {"map": tv_tensors.Mask(torch.from_numpy(_fitting(self._map(entry), size)))}
        if self.want == "panoptic":
            assert entry.map_path is not None
            ids = _fitting(read_panoptic_ids(entry.map_path), size)
            return {"map": tv_tensors.Mask(torch.from_numpy(ids))}
        marks = [mark for mark in entry.marks if self._transform is None or not mark.crowd]
        boxes = torch.tensor([mark.box for mark in marks], dtype=torch.float32).reshape(-1, 4)
        found: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # pyrefly: ignore[unexpected-keyword]
            "labels": torch.tensor([mark.label for mark in marks], dtype=torch.int64),
        }
        if self.want == "masks":
            masks = np.stack([mark.mask(size) for mark in marks]) if marks else np.zeros((0, *size), bool)
            found["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        if self._transform is None:
            found["iscrowd"] = torch.tensor([mark.crowd for mark in marks], dtype=torch.int64)
            found["area"] = torch.tensor([mark.area for mark in marks], dtype=torch.float32)
        return found

    def _map(self, entry: MarkedPicture) -> np.ndarray:
        assert entry.map_path is not None
        return load_map(entry.map_path, self.marked.map_values)

    def _target(self, entry: MarkedPicture, annotations: dict[str, Any]) -> Any:
        """Plain tensors for the task: a map, a dictionary of tensors, or the segments of a panoptic map."""
        plain = {
            name: value.as_subclass(Tensor) if isinstance(value, Tensor) else value
            for name, value in annotations.items()
        }
        if self.want == "map":
            return plain["map"].long()
        if self.want == "panoptic":
            return _segments(entry, plain["map"])
        return plain


def _segments(entry: MarkedPicture, ids: Tensor) -> dict[str, Tensor]:
    """Labels (K,) and masks (K, rows, columns) of the segments that are seen, crowds left out."""
    seen = set(ids.unique().tolist())
    kept = [segment for segment in entry.segments if segment.id in seen and not segment.crowd]
    numbers = torch.tensor([segment.id for segment in kept], dtype=ids.dtype)
    labels = torch.tensor([segment.label for segment in kept], dtype=torch.int64)
    return {"labels": labels, "masks": ids == numbers[:, None, None]}


def _fitting(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape != size:
        raise DataError(
            f"its map has {values.shape[1]}x{values.shape[0]} pixels and it has {size[1]}x{size[0]}; "
            "make them equal, see van data check"
        )
    return values
