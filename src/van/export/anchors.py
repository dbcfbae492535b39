"""RetinaNet and FCOS cut in two: the network with its heads, which is exported, and what makes boxes of it.

Shapes: a canvas (N, 3, R, C); A anchors over all levels: class logits (N, A, K), box regression (N, A, 4) and, from
FCOS, centredness (N, A, 1).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from van.export.header import Header
from van.models.build import create
from van.models.canvas import Size, common_canvas
from van.models.detectors import Detector

OUTPUTS = {"retinanet": ("cls_logits", "bbox_regression"), "fcos": ("cls_logits", "bbox_regression", "bbox_ctrness")}
"""What the heads of each give."""
_LEVELS = 5
_TINY = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}


class AnchorHeads(nn.Module):
    """The part of a one-stage ``Detector`` that is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """What the heads give, in the order of ``OUTPUTS``."""
        detector: Any = self.network.detector
        found = detector.head(list(detector.backbone(canvas).values()))
        names = OUTPUTS["fcos" if "bbox_ctrness" in found else "retinanet"]
        return tuple(found[name] for name in names)


class AnchorDecoder:
    """That of RetinaNet and FCOS.

    It belongs to a detector of the same anchors and thresholds on the smallest of backbones, which is never run.
    """

    def __init__(self, header: Header) -> None:
        options = {**header.model_options, **_TINY, "channels": 64}
        network = create(header.model, num_classes=len(header.labels), options=options)
        assert isinstance(network, Detector)
        pyramid: Any = network.detector.backbone
        self._detector: Any = network.detector.eval()
        self._names = OUTPUTS[header.model_options["head"]]
        self._first_stride = 2 ** (2 + pyramid.first)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels."""
        return common_canvas(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """The best anchors without doubles, by torchvision's own code."""
        maps = self._maps(canvas)
        pictures = ImageList(torch.empty(len(sizes), 3, *canvas), [tuple(size) for size in sizes])
        with torch.inference_mode():
            anchors = self._detector.anchor_generator(pictures, maps)
            cells = [level.shape[2] * level.shape[3] for level in maps]
            each = outputs[0].shape[1] // sum(cells)
            counts = [count * each for count in cells]
            heads = {name: list(output.split(counts, dim=1)) for name, output in zip(self._names, outputs, strict=True)}
            split = [list(own.split(counts)) for own in anchors]
            return self._detector.postprocess_detections(heads, split, pictures.image_sizes)

    def _maps(self, canvas: Size) -> list[Tensor]:
        """Empty maps of the levels' sizes: each level has half the last one's rows and columns, rounded up."""
        sides = [side // self._first_stride for side in canvas]
        maps = []
        for _ in range(_LEVELS):
            maps.append(torch.empty(1, 0, *sides))
            sides = [-(-side // 2) for side in sides]
        return maps
