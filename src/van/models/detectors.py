"""Detection and instance segmentation with VAN: torchvision's detectors on a feature pyramid.

Shapes: pictures are a list of (3, H, W) floats, normalised and of any size: the rule that travels with the network
(``van.preprocess.WholePreprocess``) has resized them. Boxes are (K, 4) as x1, y1, x2, y2 in pixels of the
picture; labels (K,) from 0; masks (K, 1, H, W).
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
from van.models.canvas import common_canvas, group_by_canvas, sizes_of
from van.models.catalogue import VARIANTS
from van.models.van import VAN

_CLASSES = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
HEADS = tuple(_CLASSES)
"""Detectors by name; the last gives masks, too."""
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
_TAKEN = ("backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "self", "kwargs")
"""Options of torchvision's that are set here, or have no meaning for pictures that are ready."""


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
        self.pooled_levels = [str(place) for place in range(len(in_channels) - self.first)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.fpn(OrderedDict((str(place), level) for place, level in enumerate(maps[self.first :])))


class _PooledAtStrides(MultiScaleRoIAlign):
    """torchvision's pooling over the levels of a pyramid whose strides are known.

    Its own guesses them from the first picture that it sees, and keeps the guess: after one of 40 x 41 pixels, whose
    maps are as large as those of strides 2 to 16, it looks beside every thing in all that follow.
    """

    def __init__(self, pyramid: PyramidBackbone, side: int) -> None:
        super().__init__(pyramid.pooled_levels, output_size=side, sampling_ratio=2)
        first = 2 + pyramid.first
        last = first + len(pyramid.pooled_levels) - 1
        self.scales = [2.0**-power for power in range(first, last + 1)]
        self.map_levels = initLevelMapper(
            first, last, canonical_scale=self.canonical_scale, canonical_level=self.canonical_level
        )


class _PaddedOnly(GeneralizedRCNNTransform):
    """torchvision's transform without its resize and its normalisation: pictures come ready, and are padded.

    Its own ``_skip_resize`` holds in training only; with it, evaluation would still resize to ``min_size``.
    """

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class Detector(nn.Module):
    """One of torchvision's detectors on VAN, whose labels count from 0 whatever the detector.

    In training it takes targets and gives the losses by name; in evaluation, for each picture, ``boxes``,
    ``labels``, ``scores`` and, from Mask R-CNN, ``masks`` (K, 1, H, W) of probabilities.

    Args:
        backbone: a VAN; its classifier is taken off.
        head: one of ``HEADS``.
        num_classes: classes of things, without a background.
        channels: of the pyramid and of the heads on it; a multiple of 64 for FCOS, which normalises in 32 groups
            of two values at least.
        anchor_sizes_px: side of the anchors on the five levels; 32 to 512 if None. FCOS has none.
        first_level: stride of the finest level in pixels, 4 or 8; if None 8 for one stage and 4 for two.
        options: others that torchvision's detector of that name takes, such as ``score_thresh``.

    Raises:
        UsageError: there is no detector of that name, fewer than one class, or an option that it cannot have.
    """

    def __init__(
        self,
        backbone: VAN,
        *,
        head: str,
        num_classes: int,
        channels: int = 256,
        anchor_sizes_px: Sequence[int] | None = None,
        first_level: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if first_level is None:
            first_level = 8 if head in _ONE_STAGE else 4
        _check(head, num_classes, channels, anchor_sizes_px, first_level, options)
        self.num_classes = num_classes
        self.first_label = 0 if head in _ONE_STAGE else 1  # the two-stage ones call the background 0
        self.class_layers = tuple(f"detector.{name}" for name in _CLASS_LAYERS[head])
        body = PyramidBackbone(backbone, first_level=first_level, channels=channels)
        if head == "fcos":
            anchors = AnchorGenerator(tuple((first_level * 2**level,) for level in range(_LEVELS)), ((1.0,),) * _LEVELS)
            self.detector: nn.Module = FCOS(body, num_classes, anchor_generator=anchors, **options)
        else:
            sizes = tuple(anchor_sizes_px or _ANCHOR_SIZES_PX)
            build = _retinanet if head == "retinanet" else _two_stage
            self.detector = build(body, num_classes, sizes, masks=head == "mask_rcnn", options=options)
        self.detector.transform = _PaddedOnly()
        for name in _LAST_LAYERS:
            with contextlib.suppress(AttributeError):  # one or two stages, with or without masks
                self.detector.get_submodule(name).register_forward_hook(_in_float32)

    @property
    def backbone(self) -> VAN:
        """The VAN."""
        pyramid: Any = self.detector.backbone
        return pyramid.body

    def get_classifier(self) -> nn.ModuleList:
        """Everything but the VAN: the pyramid and the heads."""
        heads = [part for name, part in self.detector.named_children() if name not in ("backbone", "transform")]
        pyramid: Any = self.detector.backbone
        return nn.ModuleList([pyramid.fpn, *heads])

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside biases and norms: the layer scales."""
        return {f"detector.backbone.body.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade a second forward pass of every block of the backbone for the memory of its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def forward(
        self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + self.first_label} for target in targets]
        if self.training:
            return self.detector(pictures, targets)
        answers: dict[int, dict[str, Tensor]] = {}
        for places in group_by_canvas(
            sizes_of(pictures), common_canvas
        ).values():  # padding is seen, so that an answer would depend on the other pictures
            found = self.detector([pictures[place] for place in places])
            answers |= zip(places, found, strict=True)
        return [{**found, "labels": found["labels"] - self.first_label} for _, found in sorted(answers.items())]


def _in_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """A forward hook: under autocast boxes of several hundred pixels, and scores, need more than eight bits."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _in_float32(module, arguments, value) for name, value in output.items()}
    return type(output)([_in_float32(module, arguments, value) for value in output])


def _check(
    head: str,
    num_classes: int,
    channels: int,
    anchor_sizes_px: Sequence[int] | None,
    first_level: int,
    options: Mapping[str, Any],
) -> None:
    if head not in HEADS:
        raise UsageError(f"there is no detector {head!r}; known: {', '.join(HEADS)}")
    if num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; wanted at least 1")
    if channels < 1 or (head == "fcos" and channels % 64):
        raise UsageError(f"channels is {channels}; wanted {'a multiple of 64' if head == 'fcos' else 'at least 1'}")
    if first_level not in (4, 8):
        raise UsageError(f"first_level is {first_level}; wanted a stride of 4 or 8 pixels")
    if head == "fcos" and anchor_sizes_px is not None:
        raise UsageError(f"anchor_sizes_px is {tuple(anchor_sizes_px)}, and fcos has no anchors; leave it out")
    if anchor_sizes_px is not None and (len(anchor_sizes_px) != _LEVELS or min(anchor_sizes_px) < 1):
        raise UsageError(f"anchor_sizes_px is {tuple(anchor_sizes_px)}; wanted {_LEVELS} sides of at least 1 pixel")
    known = [name for name in inspect.signature(_CLASSES[head].__init__).parameters if name not in _TAKEN]
    for name in options:
        if name not in known:
            raise UsageError(f"{head} has no option {name!r}; known: {', '.join(known)}")


def _retinanet(
    body: PyramidBackbone, num_classes: int, sizes: tuple[int, ...], *, masks: bool, options: dict[str, Any]
) -> nn.Module:
    assert not masks
    thirds = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in sizes)
    return RetinaNet(body, num_classes, **{"anchor_generator": AnchorGenerator(thirds, _RATIOS), **options})


def _two_stage(
    body: PyramidBackbone, num_classes: int, sizes: tuple[int, ...], *, masks: bool, options: dict[str, Any]
) -> nn.Module:
    """Faster or Mask R-CNN, whose heads are as wide as the pyramid; at 256 channels they are torchvision's own."""
    channels, side = body.out_channels, 7
    width = 4 * channels
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in sizes), _RATIOS),
        "box_roi_pool": _PooledAtStrides(body, side),
        "box_head": TwoMLPHead(channels * side**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes + 1),
    }
    if masks:
        parts |= {
            "mask_roi_pool": _PooledAtStrides(body, 2 * side),
            "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
        }
    return (MaskRCNN if masks else FasterRCNN)(body, **{**parts, **options})


def create_detector(model: str, *, head: str, num_classes: int, **options: Any) -> Detector:
    """A fresh ``Detector`` on the VAN of that name; ``options`` are those of ``Detector`` and of ``VAN``.

    Raises:
        UsageError: there is no VAN or detector of that name, or no such option.
    """
    if model not in VARIANTS:
        raise UsageError(f"there is no {model!r} to build on; known: {', '.join(VARIANTS)}")
    for_backbone = {name: options.pop(name) for name in inspect.signature(VAN).parameters if name in options}
    backbone = timm.create_model(model, num_classes=0, **for_backbone)
    assert isinstance(backbone, VAN)
    return Detector(backbone, head=head, num_classes=num_classes, **options)
