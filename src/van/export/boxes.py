"""Detectors cut in two: the network with its heads, which is exported, and what makes boxes of it, which is not.

A file holds everything up to the scores and the boxes of every anchor or query, for pictures padded to a canvas.
What follows (the best of them, without doubles) is of sizes that depend on the picture and costs little; the session
does it with the very functions that the network in PyTorch uses, so that the answers are the same.

Shapes: a canvas (N, 3, R, C); A anchors over all levels: class logits (N, A, K), box regression (N, A, 4) and, from
FCOS, centredness (N, A, 1); Q queries: class logits (N, Q, K) and boxes (N, Q, 4).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from van.errors import UsageError
from van.export.header import Header
from van.models.build import create
from van.models.detectors import Detector
from van.models.transformer_detectors import Size, TransformerDetector, decode, round_up

ANCHORS = {"retinanet": ("cls_logits", "bbox_regression"), "fcos": ("cls_logits", "bbox_regression", "bbox_ctrness")}
"""One-stage detectors, and what their heads give."""
QUERIES = ("d_fine", "rt_detr_v2")
"""Detectors with a transformer whose graph consists of plain operators."""
HEADS = (*ANCHORS, *QUERIES)
_LEVELS = 5
_TINY = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}


class AnchorHeads(nn.Module):
    """The part of a one-stage ``Detector`` that is exported."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network
        self.names = ANCHORS[head]

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """What the heads give, by ``names``."""
        detector: Any = self.network.detector
        found = detector.head(list(detector.backbone(canvas).values()))
        return tuple(found[name] for name in self.names)


class QueryHeads(nn.Module):
    """The part of a ``TransformerDetector`` that is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, TransformerDetector)
        self.network = network

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """Class logits and boxes of the queries."""
        found: Any = self.network.detector(pixel_values=canvas)
        return found.logits, found.pred_boxes


class Decoder(Protocol):
    """What makes boxes of the outputs."""

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Rows and columns on which pictures of these sizes are seen together."""
        ...

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each picture, in its own pixels."""
        ...


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
        self._names = ANCHORS[header.model_options["head"]]
        self._first_stride = 2 ** (2 + pyramid.first)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels."""
        rows, columns = (round_up(max(sides), 32) for sides in zip(*sizes, strict=True))
        return rows, columns

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


class QueryDecoder:
    """That of D-FINE and RT-DETR v2."""

    def __init__(self, header: Header) -> None:
        options = header.model_options
        self.head = options["head"]
        self.queries = options.get("queries", 300)
        self._detections = options.get("detections", 100)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels with enough places for the queries."""
        return TransformerDetector.canvas(self, sizes)  # pyrefly: ignore[bad-argument-type]  # it asks for these two

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """The best of queries and classes, by the network's own code."""
        logits, boxes = outputs
        frames = [canvas] * len(sizes)
        return decode(logits, boxes, frames=frames, sizes=sizes, detections=self._detections)


def make_decoder(header: Header) -> Decoder:
    """That of the header's head.

    Raises:
        UsageError: there is none.
    """
    head = header.model_options.get("head", "")
    if head in ANCHORS:
        return AnchorDecoder(header)
    if head in QUERIES:
        return QueryDecoder(header)
    raise UsageError(f"{head or header.task} cannot be read from an exported file; known: {', '.join(HEADS)}")
