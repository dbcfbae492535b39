"""Detectors with a transformer cut in two: all up to what the queries say, which is exported, and what picks the best.

Shapes: a canvas (N, 3, R, C); Q queries: class logits (N, Q, K) and boxes (N, Q, 4).

Deformable DETR is told by a mask where a picture ends. In evaluation pictures are seen together with those of their
own canvas only, whose frame is the whole of it: the mask is all ones, which is what the detector takes where none is
given, and becomes part of the graph.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from van.export.header import Header
from van.models.canvas import Size
from van.models.transformer_detectors import HEADS, TransformerDetector, decode

NAMES = HEADS
"""Every one of them; with a canvas of fixed size the sizes of its maps are constants."""
OUTPUTS = ("logits", "pred_boxes")


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


class QueryDecoder:
    """That of D-FINE, RT-DETR v2 and Deformable DETR."""

    def __init__(self, header: Header) -> None:
        options = header.model_options
        self.head = options["head"]
        self.queries = options.get("queries", 300)
        self._detections = options.get("detections", 100)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels with enough places for the queries; of 64 for Deformable DETR."""
        return TransformerDetector.canvas(self, sizes)  # pyrefly: ignore[bad-argument-type]  # it asks for these two

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """The best of queries and classes, by the network's own code."""
        logits, boxes = outputs
        frames = [canvas] * len(sizes)
        return decode(logits, boxes, frames=frames, sizes=sizes, detections=self._detections)
