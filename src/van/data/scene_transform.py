"""Training augmentation where boxes, masks and maps move with the picture, by torchvision's transforms v2.

Large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177), the crop that no class fills (as mmsegmentation has
it), photometric distortion (Liu et al. 2016, arXiv:1512.02325) and a mirror image.
Shapes: a picture (3, H, W) uint8; boxes (K, 4) x1, y1, x2, y2 in pixels; masks (K, H, W); a map (H, W).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from van.data.scene_augment import SceneAugmentSettings
from van.preprocess import WholePreprocess

Scene = dict[str, Any]
_CROP_TRIES = 10
"""Crops tried before one is taken that a single class fills."""


class _Distort(v2.RandomPhotometricDistort):
    """torchvision's, without its swaps of red, green and blue, which the paper's recipe does not make."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


class SceneTransform:
    """A random change of a picture together with all that is marked in it.

    Args:
        preprocess: what size evaluation would use.
        settings: how much is varied.
        ignored: what fills a map where there is no picture.
    """

    def __init__(self, preprocess: WholePreprocess, settings: SceneAugmentSettings, *, ignored: int) -> None:
        self.preprocess, self.settings, self.ignored = preprocess, settings, ignored
        self._fills: dict[str, Any] = {"picture": [round(255 * value) for value in preprocess.mean], "map": ignored}
        self._distort = _Distort(p=settings.distort)

    def __call__(self, scene: Mapping[str, Any]) -> Scene:
        """A scene of ``picture`` and any of ``boxes``, ``labels``, ``masks``, ``map``, varied.

        The picture stays uint8; things that no longer lie in it are left out.
        """
        scene = self._resized(dict(scene))
        if self.settings.crop_px:
            scene = self._cropped(self._padded(scene))
        if float(torch.rand(())) < self.settings.flip:
            scene = _each(scene, functional.horizontal_flip)
        if self.settings.distort:
            scene["picture"] = self._distort(scene["picture"])
        return _without_what_is_gone(scene) if "boxes" in scene else scene

    def _resized(self, scene: Scene) -> Scene:
        least, greatest = self.settings.scale
        factor = least + (greatest - least) * float(torch.rand(()))
        size = [max(1, round(side * factor)) for side in self.preprocess.seen(tuple(scene["picture"].shape[1:]))]
        return _each(scene, lambda value: functional.resize(value, size, antialias=True))

    def _padded(self, scene: Scene) -> Scene:
        """At least as large as the crop, filled up below and on the right."""
        rows, columns = scene["picture"].shape[1:]
        side = self.settings.crop_px
        padding = [0, 0, max(0, side - columns), max(0, side - rows)]
        if not any(padding):
            return scene
        return {name: self._pad(name, value, padding) for name, value in scene.items()}

    def _pad(self, name: str, value: Any, padding: list[int]) -> Any:
        return functional.pad(value, padding, fill=self._fills.get(name, 0)) if _moves(value) else value

    def _cropped(self, scene: Scene) -> Scene:
        side = self.settings.crop_px
        rows, columns = scene["picture"].shape[1:]
        top = left = 0
        for _ in range(_CROP_TRIES):
            top, left = (int(torch.randint(0, whole - side + 1, ())) for whole in (rows, columns))
            if "map" not in scene or self._is_varied(scene["map"][top : top + side, left : left + side]):
                break
        return _each(scene, lambda value: functional.crop(value, top, left, side, side))

    def _is_varied(self, part: Tensor) -> bool:
        """Whether no class fills more of the labelled pixels than it may."""
        _, counts = part[part != self.ignored].unique(return_counts=True)
        return len(counts) > 1 and float(counts.max()) <= self.settings.largest_class * float(counts.sum())


def _moves(value: Any) -> bool:
    return isinstance(value, tv_tensors.Image | tv_tensors.Mask | tv_tensors.BoundingBoxes)


def _each(scene: Scene, change: Callable[[Any], Any]) -> Scene:
    return {name: change(value) if _moves(value) else value for name, value in scene.items()}


def _without_what_is_gone(scene: Scene) -> Scene:
    """Things keep their place if a pixel of their box and, where there are masks, of their mask is left."""
    boxes = scene["boxes"].as_subclass(Tensor)
    kept = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    if "masks" in scene:
        kept &= scene["masks"].as_subclass(Tensor).flatten(1).any(1)
    scene = scene | {name: scene[name][kept] for name in ("boxes", "labels", "masks") if name in scene}
    return scene | {"boxes": _tight(scene)} if "masks" in scene else scene


def _tight(scene: Scene) -> Tensor:
    """The boxes, those that end at the picture's edge drawn anew around what is left of their masks."""
    boxes = scene["boxes"].clone()
    rows, columns = scene["picture"].shape[1:]
    cut = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2] >= columns) | (boxes[:, 3] >= rows)
    if cut.any():
        around = masks_to_boxes(scene["masks"].as_subclass(Tensor)[cut])
        boxes[cut] = (around + around.new_tensor([0, 0, 1, 1])).to(boxes)  # theirs end with the last pixel
    return boxes
