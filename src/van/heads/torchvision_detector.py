"""Detection and instance segmentation with VAN: torchvision's detectors on a feature pyramid.

Shapes: images are a list of (3, H, W) floats of any size, resized and normalized by
``van.preprocess.ResizePreprocess``. Boxes are (K, 4) as x1, y1, x2, y2 in pixels of the image; labels (K,) from 0;
masks (K, 1, H, W). In the export of a one-stage detector: padded images (N, 3, R, C); A anchors over all levels:
class logits (N, A, K), box regression (N, A, 4) and, for FCOS, centerness (N, A, 1).
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from van.backbones.van import VAN
from van.errors import UsageError
from van.heads.network import HeadNetwork, Size, common_padded_size, predict_by_padded_size
from van.heads.registry import ExportPart, create_model

LEVELS = 5
"""Number of levels of the feature pyramid."""
_FLOAT32_LAYERS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
_RESERVED = ("backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "self", "kwargs")
"""Arguments of torchvision's detectors that are set here, or that preprocessed images do not need."""


class PyramidBackbone(nn.Module):
    """VAN and a feature pyramid of five levels: P2 to P6 (strides 4 to 64) or P3 to P7 (8 to 128).

    ``first_level`` is the stride of the finest level in pixels, 4 or 8; every level has ``channels``.
    """

    def __init__(self, body: VAN, *, first_level: int, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise UsageError(f"channels: expected at least 1, got {channels}")
        if first_level not in (4, 8):
            raise UsageError(f"first_level: expected a stride of 4 or 8 pixels, got {first_level}")
        in_channels = [level["num_chs"] for level in body.feature_info]
        body.reset_classifier(0)
        self.body = body
        self.first = 1 if first_level == 8 else 0
        self.first_stride = first_level
        self.out_channels = channels
        extra = LastLevelP6P7(in_channels[-1], channels) if self.first else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(in_channels[self.first :], channels, extra_blocks=extra)
        self.pooled_levels = [str(level) for level in range(len(in_channels) - self.first)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.fpn(OrderedDict((str(index), level) for index, level in enumerate(maps[self.first :])))


def anchor_generator(sizes: Sequence[int] | None, *, scales: Sequence[float] = (1.0,)) -> AnchorGenerator:
    """Return torchvision's generator of anchors with three aspect ratios.

    ``sizes`` are the sides on the five levels in pixels, 32 to 512 if None; each is used with every factor of
    ``scales``.
    """
    sizes = (32, 64, 128, 256, 512) if sizes is None else tuple(sizes)
    if len(sizes) != LEVELS or min(sizes) < 1:
        raise UsageError(f"anchor_sizes: expected {LEVELS} sides of at least 1 pixel, got {sizes}")
    sides = tuple(tuple(int(size * scale) for scale in scales) for size in sizes)
    return AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * LEVELS)


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


class Detector(HeadNetwork):
    """One of torchvision's detectors on VAN; labels count from 0 for every detector.

    In training it takes targets and returns the losses by name; in evaluation it returns for each image ``boxes``,
    ``labels``, ``scores`` and, from Mask R-CNN, ``masks`` (K, 1, H, W) of probabilities.

    Args:
        detector_class, pyramid, options: torchvision's class and its arguments.
        num_classes: classes of objects, without a background class.
        class_layers: of the detector.
        has_background: whether the detector's label 0 is a background class, and ``options`` has the predictors.
    """

    def __init__(
        self, detector_class: type[nn.Module], pyramid: PyramidBackbone, options: Mapping[str, Any], *,
        num_classes: int, class_layers: Sequence[str], has_background: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        known = [name for name in inspect.signature(detector_class.__init__).parameters if name not in _RESERVED]
        if unknown := [name for name in options if name not in known]:
            raise UsageError(
                f"{detector_class.__name__}: unknown option {unknown[0]!r}; expected one of {', '.join(known)}"
            )
        self.num_classes = num_classes
        self.first_label = int(has_background)
        self.class_layers = tuple(f"detector.{name}" for name in class_layers)
        # those with a background class take the number of classes from their predictors, which are among the options
        classes = {} if has_background else {"num_classes": num_classes}
        self.detector: Any = detector_class(pyramid, **classes, **options)
        self.detector.transform = _PadTransform()
        for name in _FLOAT32_LAYERS:
            with contextlib.suppress(AttributeError):  # no detector has all of these layers
                self.detector.get_submodule(name).register_forward_hook(_to_float32)

    @property
    def backbone(self) -> VAN:  # pyrefly: ignore[bad-override]
        """The VAN."""
        return self.detector.backbone.body

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + self.first_label} for target in targets]
        if self.training:
            return self.detector(images, targets)
        outputs = predict_by_padded_size(images, common_padded_size, lambda batch, _: self.detector(batch))
        return [{**output, "labels": output["labels"] - self.first_label} for output in outputs]


def _to_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Convert a layer's output to float32; bfloat16 has too few bits for boxes of several hundred pixels."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _to_float32(module, arguments, value) for name, value in output.items()}
    return type(output)([_to_float32(module, arguments, value) for value in output])


def one_stage_export(*outputs: str) -> ExportPart:
    """Return the export of a one-stage detector, up to all ``outputs`` of its head, by torchvision's names."""
    return ExportPart(
        extract=lambda network: TracedAnchorHead(network, outputs),
        outputs=outputs,
        decoder=lambda header: AnchorDecoder(header, outputs),
        note="the graph outputs scores and boxes of all anchors; the session selects the best in Python",
        compare_outputs=True,
    )


class TracedAnchorHead(nn.Module):
    """The exported part of a one-stage ``Detector``; maps padded images to ``outputs``."""

    def __init__(self, network: nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        detector = self.network.detector
        outputs = detector.head(list(detector.backbone(images).values()))
        return tuple(outputs[name] for name in self.outputs)


class AnchorDecoder:
    """The post-processing of a one-stage detector, by one with the same anchors on a tiny backbone that never runs."""

    padded_size = staticmethod(common_padded_size)

    def __init__(self, header: Any, outputs: Sequence[str]) -> None:
        tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "channels": 64}
        options = {**header.model_options, **tiny}
        network: Any = create_model(header.model, num_classes=len(header.class_names), options=options)
        self._detector: Any = network.detector.eval()
        self._outputs = outputs

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Decode boxes and apply non-maximum suppression, with torchvision's own code."""
        # torchvision reads only the sizes of the feature maps; each level halves rows and columns, rounded up
        sides, maps = [side // self._detector.backbone.first_stride for side in padded_size], []
        for _ in range(LEVELS):
            maps.append(torch.empty(1, 0, *sides))
            sides = [-(-side // 2) for side in sides]
        images = ImageList(torch.empty(len(sizes), 3, *padded_size), [tuple(size) for size in sizes])
        with torch.inference_mode():
            anchors = self._detector.anchor_generator(images, maps)
            cells = [level.shape[2] * level.shape[3] for level in maps]
            counts = [count * (outputs[0].shape[1] // sum(cells)) for count in cells]
            pairs = zip(self._outputs, outputs, strict=True)
            by_level = {name: list(output.split(counts, dim=1)) for name, output in pairs}
            anchors_by_level = [list(image_anchors.split(counts)) for image_anchors in anchors]
            return self._detector.postprocess_detections(by_level, anchors_by_level, images.image_sizes)
