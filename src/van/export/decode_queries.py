"""Export of transformer detectors: everything up to the queries' outputs is traced, the best are selected in Python.

Shapes: padded images (N, 3, R, C); Q queries: class logits (N, Q, K) and boxes (N, Q, 4).

Deformable DETR takes a mask of the valid pixels. In evaluation a batch contains only images that have the same padded
size, and the whole padded size counts as valid: the mask is all ones, which is also the detector's default, and
becomes a constant of the graph.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from van.export.header import Header
from van.models.padding import Size
from van.models.transformer_detectors import HEADS, TransformerDetector, decode

NAMES = HEADS
"""All of them; with a fixed padded size the sizes of the feature maps are constants."""
OUTPUTS = ("logits", "pred_boxes")


class TracedQueryHead(nn.Module):
    """The exported part of a ``TransformerDetector``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, TransformerDetector)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return class logits and boxes of the queries."""
        outputs: Any = self.network.detector(pixel_values=images)
        return outputs.logits, outputs.pred_boxes


class QueryDecoder:
    """The post-processing of D-FINE, RT-DETR v2 and Deformable DETR."""

    def __init__(self, header: Header) -> None:
        options = header.model_options
        self.head = options["head"]
        self.queries = options.get("queries", 300)
        self._max_detections = options.get("max_detections", 100)

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return multiples of 32 pixels with enough locations for the queries; of 64 for Deformable DETR."""
        # The method reads only the attributes ``head`` and ``queries``, which this class has too.
        return TransformerDetector.padded_size(self, sizes)  # pyrefly: ignore[bad-argument-type]

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Select the best pairs of query and class, with the network's own code."""
        logits, boxes = outputs
        reference_sizes = [padded_size] * len(sizes)
        return decode(logits, boxes, reference_sizes=reference_sizes, sizes=sizes, max_detections=self._max_detections)
