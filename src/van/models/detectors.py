"""Detection and instance segmentation with VAN: torchvision's detectors on a feature pyramid.

Shapes: pictures are a list of (3, H, W) floats in 0..1, each of its own size; the detector resizes and
normalises them itself. Boxes are (K, 4) as x1, y1, x2, y2 in pixels of the picture; labels (K,) from 0;
masks (K, 1, H, W).
Sources: RetinaNet (Lin et al. 2017, arXiv:1708.02002), FCOS (Tian et al. 2019, arXiv:1904.01355),
Faster and Mask R-CNN (Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870).
"""

from collections import OrderedDict
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from van.errors import UsageError
from van.models.catalogue import VARIANTS
from van.models.van import VAN

HEADS = ("retinanet", "fcos", "faster_rcnn", "mask_rcnn")
"""Detectors by name; the last gives masks, too."""
_ONE_STAGE = ("retinanet", "fcos")
_PYRAMID_CHANNELS = 256
_SIZES_PX = (32, 64, 128, 256, 512)
"""Side of the anchors on the five levels."""


class PyramidBackbone(nn.Module):
    """VAN and a feature pyramid of five levels: P3 to P7 (strides 8 to 128) or P2 to P6 (4 to 64)."""

    def __init__(self, body: VAN, *, from_stride_8: bool) -> None:
        super().__init__()
        channels = [level["num_chs"] for level in body.feature_info]
        body.reset_classifier(0)
        self.body = body
        self.first = 1 if from_stride_8 else 0
        self.out_channels = _PYRAMID_CHANNELS
        extra = LastLevelP6P7(channels[-1], _PYRAMID_CHANNELS) if from_stride_8 else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(channels[self.first :], _PYRAMID_CHANNELS, extra_blocks=extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.fpn(OrderedDict((str(place), level) for place, level in enumerate(maps[self.first :])))


class Detector(nn.Module):
    """One of torchvision's detectors on VAN, whose labels count from 0 whatever the detector.

    In training it takes targets and gives the losses by name; in evaluation, for each picture, ``boxes``,
    ``labels``, ``scores`` and, from Mask R-CNN, ``masks`` (K, 1, H, W) of probabilities.

    Args:
        backbone: a VAN; its classifier is taken off.
        head: one of ``HEADS``.
        num_classes: classes of things, without a background.
        min_size_px: pictures are resized so that the short side has this,
        max_size_px: and the long one at most this.
        mean: of the colours in 0..1, as the backbone was trained.
        std: likewise.

    Raises:
        UsageError: there is no detector of that name, or fewer than one class.
    """

    def __init__(
        self,
        backbone: VAN,
        *,
        head: str,
        num_classes: int,
        min_size_px: int = 800,
        max_size_px: int = 1333,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **options: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"there is no detector {head!r}; known: {', '.join(HEADS)}")
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}; wanted at least 1")
        self.num_classes = num_classes
        self.first_label = 0 if head in _ONE_STAGE else 1  # the two-stage ones call the background 0
        body = PyramidBackbone(backbone, from_stride_8=head in _ONE_STAGE)
        sizes = {"min_size": min_size_px, "max_size": max_size_px, "image_mean": list(mean), "image_std": list(std)}
        self.detector = _torchvision_detector(head, body, num_classes, {**sizes, **options})

    def forward(
        self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + self.first_label} for target in targets]
        found = self.detector(pictures, targets)
        if self.training:
            return found
        return [{**each, "labels": each["labels"] - self.first_label} for each in found]


def _torchvision_detector(head: str, body: PyramidBackbone, num_classes: int, options: dict[str, Any]) -> nn.Module:
    if head == "fcos":
        anchors = AnchorGenerator(tuple((8 * 2**level,) for level in range(5)), ((1.0,),) * 5)
        return FCOS(body, num_classes, anchor_generator=anchors, **options)
    ratios = ((0.5, 1.0, 2.0),) * 5
    if head == "retinanet":
        sizes = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in _SIZES_PX)
        return RetinaNet(body, num_classes, anchor_generator=AnchorGenerator(sizes, ratios), **options)
    levels = [str(place) for place in range(4)]
    options = {
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in _SIZES_PX), ratios),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        **options,
    }
    if head == "faster_rcnn":
        return FasterRCNN(body, num_classes + 1, **options)
    return MaskRCNN(body, num_classes + 1, mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2), **options)


def create_detector(model: str, *, head: str, num_classes: int, **options: Any) -> Detector:
    """A fresh ``Detector`` on the VAN of that name; ``options`` are those of ``Detector``.

    Raises:
        UsageError: there is no VAN or detector of that name.
    """
    if model not in VARIANTS:
        raise UsageError(f"there is no {model!r} to build on; known: {', '.join(VARIANTS)}")
    backbone = timm.create_model(model, num_classes=0)
    assert isinstance(backbone, VAN)
    return Detector(backbone, head=head, num_classes=num_classes, **options)
