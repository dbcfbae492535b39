"""Export of RetinaNet and FCOS: the backbone with its heads is traced, boxes are decoded in Python.

Shapes: padded images (N, 3, R, C); A anchors over all levels: class logits (N, A, K), box regression (N, A, 4) and,
for FCOS, centerness (N, A, 1).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from van.export.header import Header
from van.models.build import create_model
from van.models.detectors import Detector
from van.models.padding import Size, common_padded_size

OUTPUTS = {"retinanet": ("cls_logits", "bbox_regression"), "fcos": ("cls_logits", "bbox_regression", "bbox_ctrness")}
"""The outputs of each head, by torchvision's names."""
_LEVELS = 5
_TINY = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}


class TracedAnchorHead(nn.Module):
    """The exported part of a one-stage ``Detector``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the head's outputs in the order of ``OUTPUTS``."""
        detector: Any = self.network.detector
        outputs = detector.head(list(detector.backbone(images).values()))
        names = OUTPUTS["fcos" if "bbox_ctrness" in outputs else "retinanet"]
        return tuple(outputs[name] for name in names)


class AnchorDecoder:
    """The post-processing of RetinaNet and FCOS.

    It uses the methods of a detector with the same anchors and thresholds on a minimal backbone, which never runs.
    """

    def __init__(self, header: Header) -> None:
        options = {**header.model_options, **_TINY, "channels": 64}
        network = create_model(header.model, num_classes=len(header.class_names), options=options)
        assert isinstance(network, Detector)
        pyramid: Any = network.detector.backbone
        self._detector: Any = network.detector.eval()
        self._names = OUTPUTS[header.model_options["head"]]
        self._first_stride = 2 ** (2 + pyramid.first)

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return the padded size, multiples of 32 pixels."""
        return common_padded_size(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Decode boxes and apply non-maximum suppression, with torchvision's own code."""
        maps = self._feature_maps(padded_size)
        images = ImageList(torch.empty(len(sizes), 3, *padded_size), [tuple(size) for size in sizes])
        with torch.inference_mode():
            anchors = self._detector.anchor_generator(images, maps)
            locations = [level.shape[2] * level.shape[3] for level in maps]
            anchors_per_location = outputs[0].shape[1] // sum(locations)
            counts = [count * anchors_per_location for count in locations]
            heads = {name: list(output.split(counts, dim=1)) for name, output in zip(self._names, outputs, strict=True)}
            anchors_by_level = [list(image_anchors.split(counts)) for image_anchors in anchors]
            return self._detector.postprocess_detections(heads, anchors_by_level, images.image_sizes)

    def _feature_maps(self, padded_size: Size) -> list[Tensor]:
        """Return empty maps of the levels' sizes; each level halves rows and columns, rounded up."""
        sides = [side // self._first_stride for side in padded_size]
        maps = []
        for _ in range(_LEVELS):
            maps.append(torch.empty(1, 0, *sides))
            sides = [-(-side // 2) for side in sides]
        return maps
