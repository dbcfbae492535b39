"""Detection and instance segmentation with VAN: torchvision's detectors on a feature pyramid.

Shapes: images are a list of (3, H, W) floats of any size, resized and normalized by
``van.preprocess.ResizePreprocess``. Boxes are (K, 4) as x1, y1, x2, y2 in pixels of the image; labels (K,) from 0;
masks (K, 1, H, W).
Sources: RetinaNet (Lin et al. 2017, arXiv:1708.02002), FCOS (Tian et al. 2019, arXiv:1904.01355),
Faster and Mask R-CNN (Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870).
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from van.errors import UsageError
from van.models.padding import common_padded_size, group_by_padded_size, sizes_of
from van.models.registry import VARIANTS
from van.models.van import VAN

_CLASSES = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
HEADS = tuple(_CLASSES)
"""Detectors by name; the last one predicts masks, too."""
_ONE_STAGE = ("retinanet", "fcos")
_LEVELS = 5
_ANCHOR_SIZES_PX = (32, 64, 128, 256, 512)
_RATIOS = ((0.5, 1.0, 2.0),) * _LEVELS
_CLASS_LAYERS = {
    "retinanet": ("head.classification_head.cls_logits",),
    "fcos": ("head.classification_head.cls_logits",),
    "faster_rcnn": ("roi_heads.box_predictor",),
    "mask_rcnn": ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits"),
}
_LAST_LAYERS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
_RESERVED = ("backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "self", "kwargs")
"""Arguments of torchvision's detectors that are set here, or that preprocessed images do not need."""


class PyramidBackbone(nn.Module):
    """VAN and a feature pyramid of five levels: P2 to P6 (strides 4 to 64) or P3 to P7 (8 to 128)."""

    def __init__(self, body: VAN, *, first_level: int, channels: int) -> None:
        super().__init__()
        in_channels = [level["num_chs"] for level in body.feature_info]
        body.reset_classifier(0)
        self.body = body
        self.first = 1 if first_level == 8 else 0
        self.out_channels = channels
        extra = LastLevelP6P7(in_channels[-1], channels) if self.first else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(in_channels[self.first :], channels, extra_blocks=extra)
        self.pooled_levels = [str(level) for level in range(len(in_channels) - self.first)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.fpn(OrderedDict((str(index), level) for index, level in enumerate(maps[self.first :])))


class _FixedStrideRoIAlign(MultiScaleRoIAlign):
    """torchvision's multi-scale RoI align with the strides of the pyramid given.

    torchvision infers them from the first image and keeps them: after an image of 40 x 41 pixels, whose maps have the
    sizes of strides 2 to 16, it would pool at wrong positions in all later images.
    """

    def __init__(self, pyramid: PyramidBackbone, side: int) -> None:
        super().__init__(pyramid.pooled_levels, output_size=side, sampling_ratio=2)
        first = 2 + pyramid.first
        last = first + len(pyramid.pooled_levels) - 1
        self.scales = [2.0**-power for power in range(first, last + 1)]
        self.map_levels = initLevelMapper(
            first, last, canonical_scale=self.canonical_scale, canonical_level=self.canonical_level
        )


class _PadTransform(GeneralizedRCNNTransform):
    """torchvision's transform without resize and normalization: preprocessed images are only padded.

    torchvision's ``_skip_resize`` applies in training only; evaluation would still resize to ``min_size``.
    """

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class Detector(nn.Module):
    """One of torchvision's detectors on VAN; labels count from 0 for every detector.

    In training it takes targets and returns the losses by name; in evaluation it returns for each image ``boxes``,
    ``labels``, ``scores`` and, from Mask R-CNN, ``masks`` (K, 1, H, W) of probabilities.

    Args:
        backbone: a VAN; its classifier is removed.
        head: one of ``HEADS``.
        num_classes: classes of objects, without a background class.
        channels: of the pyramid and of the heads on it; a multiple of 64 for FCOS, whose group norms have 32 groups
            that need at least two values.
        anchor_sizes: side of the anchors on the five levels in pixels; 32 to 512 if None. FCOS has none.
        first_level: stride of the finest level in pixels, 4 or 8; if None 8 for one-stage detectors, 4 for two-stage.
        options: further arguments of torchvision's detector, such as ``score_thresh``.

    Raises:
        UsageError: the detector is unknown, there are no classes, or an option is unknown or out of range.
    """

    def __init__(
        self,
        backbone: VAN,
        *,
        head: str,
        num_classes: int,
        channels: int = 256,
        anchor_sizes: Sequence[int] | None = None,
        first_level: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if first_level is None:
            first_level = 8 if head in _ONE_STAGE else 4
        _check_options(head, num_classes, channels, anchor_sizes, first_level, options)
        self.num_classes = num_classes
        self.first_label = 0 if head in _ONE_STAGE else 1  # two-stage detectors use label 0 for the background
        self.class_layers = tuple(f"detector.{name}" for name in _CLASS_LAYERS[head])
        body = PyramidBackbone(backbone, first_level=first_level, channels=channels)
        if head == "fcos":
            anchors = AnchorGenerator(tuple((first_level * 2**level,) for level in range(_LEVELS)), ((1.0,),) * _LEVELS)
            self.detector: nn.Module = FCOS(body, num_classes, anchor_generator=anchors, **options)
        else:
            sizes = tuple(anchor_sizes or _ANCHOR_SIZES_PX)
            create = _create_retinanet if head == "retinanet" else _create_two_stage
            self.detector = create(body, num_classes, sizes, masks=head == "mask_rcnn", options=options)
        self.detector.transform = _PadTransform()
        for name in _LAST_LAYERS:
            with contextlib.suppress(AttributeError):  # no detector has all of these layers
                self.detector.get_submodule(name).register_forward_hook(_to_float32)

    @property
    def backbone(self) -> VAN:
        """The VAN."""
        pyramid: Any = self.detector.backbone
        return pyramid.body

    def get_classifier(self) -> nn.ModuleList:
        """Return all modules except the VAN: the pyramid and the heads."""
        heads = [module for name, module in self.detector.named_children() if name not in ("backbone", "transform")]
        pyramid: Any = self.detector.backbone
        return nn.ModuleList([pyramid.fpn, *heads])

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, beside biases and norms: the layer scales."""
        return {f"detector.backbone.body.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable gradient checkpointing of the backbone: its blocks run forward twice and store no activations."""
        self.backbone.set_grad_checkpointing(enable)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + self.first_label} for target in targets]
        if self.training:
            return self.detector(images, targets)
        outputs: dict[int, dict[str, Tensor]] = {}
        # padding changes the features, so only images of one padded size form a batch: a prediction must not depend
        # on the other images
        for indices in group_by_padded_size(sizes_of(images), common_padded_size).values():
            outputs |= zip(indices, self.detector([images[index] for index in indices]), strict=True)
        return [{**output, "labels": output["labels"] - self.first_label} for _, output in sorted(outputs.items())]


def _to_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Convert a layer's output to float32; bfloat16 has too few bits for boxes of several hundred pixels."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _to_float32(module, arguments, value) for name, value in output.items()}
    return type(output)([_to_float32(module, arguments, value) for value in output])


def _check_options(
    head: str,
    num_classes: int,
    channels: int,
    anchor_sizes: Sequence[int] | None,
    first_level: int,
    options: Mapping[str, Any],
) -> None:
    if head not in HEADS:
        raise UsageError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
    if num_classes < 1:
        raise UsageError(f"num_classes: expected at least 1, got {num_classes}")
    if channels < 1 or (head == "fcos" and channels % 64):
        limit = "a multiple of 64 for fcos" if head == "fcos" else "at least 1"
        raise UsageError(f"channels: expected {limit}, got {channels}")
    if first_level not in (4, 8):
        raise UsageError(f"first_level: expected a stride of 4 or 8 pixels, got {first_level}")
    if head == "fcos" and anchor_sizes is not None:
        raise UsageError(f"anchor_sizes: expected None, because fcos has no anchors, got {tuple(anchor_sizes)}")
    if anchor_sizes is not None and (len(anchor_sizes) != _LEVELS or min(anchor_sizes) < 1):
        raise UsageError(f"anchor_sizes: expected {_LEVELS} sides of at least 1 pixel, got {tuple(anchor_sizes)}")
    known = [name for name in inspect.signature(_CLASSES[head].__init__).parameters if name not in _RESERVED]
    for name in options:
        if name not in known:
            raise UsageError(f"{head}: unknown option {name!r}; expected one of {', '.join(known)}")


def _create_retinanet(
    body: PyramidBackbone, num_classes: int, sizes: tuple[int, ...], *, masks: bool, options: dict[str, Any]
) -> nn.Module:
    assert not masks
    thirds = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in sizes)
    return RetinaNet(body, num_classes, **{"anchor_generator": AnchorGenerator(thirds, _RATIOS), **options})


def _create_two_stage(
    body: PyramidBackbone, num_classes: int, sizes: tuple[int, ...], *, masks: bool, options: dict[str, Any]
) -> nn.Module:
    """Create Faster or Mask R-CNN with heads as wide as the pyramid; at 256 channels they equal torchvision's."""
    channels, side = body.out_channels, 7
    width = 4 * channels
    modules: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in sizes), _RATIOS),
        "box_roi_pool": _FixedStrideRoIAlign(body, side),
        "box_head": TwoMLPHead(channels * side**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes + 1),
    }
    if masks:
        modules |= {
            "mask_roi_pool": _FixedStrideRoIAlign(body, 2 * side),
            "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
        }
    return (MaskRCNN if masks else FasterRCNN)(body, **{**modules, **options})


def create_detector(model: str, *, head: str, num_classes: int, **options: Any) -> Detector:
    """Create an untrained ``Detector`` on the VAN of that name; ``options`` are those of ``Detector`` and of ``VAN``.

    Raises:
        UsageError: the VAN, the detector or an option is unknown.
    """
    if model not in VARIANTS:
        raise UsageError(f"backbone: expected one of {', '.join(VARIANTS)}, got {model!r}")
    backbone_options = {name: options.pop(name) for name in inspect.signature(VAN).parameters if name in options}
    backbone = timm.create_model(model, num_classes=0, **backbone_options)
    assert isinstance(backbone, VAN)
    return Detector(backbone, head=head, num_classes=num_classes, **options)
