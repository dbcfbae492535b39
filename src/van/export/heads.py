"""The heads whose networks are exported in two parts: the traced graph, and the post-processing outside of it.

The file contains everything up to the scores of all anchors or queries, for images padded to a common size. The rest
(selecting the best, non-maximum suppression) has sizes that depend on the image and costs little. The session computes
it with the functions that the network in PyTorch uses, so that predictions are the same. A new head is one entry here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from van.export import decode_anchors, decode_panoptic, decode_queries, decode_two_stage
from van.export.header import Header
from van.models.padding import Size


class Decoder(Protocol):
    """The post-processing of one head."""

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return the rows and columns to which images of these sizes are padded for one batch."""
        ...

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Return what the network in PyTorch returns for each image, in pixels of the image without its padding."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """How networks with one head are exported.

    Args:
        extract_traced_part: returns the module to export; it maps padded images (N, 3, R, C) to ``outputs``.
        outputs: their names, in order.
        decoder: makes the post-processing from a file's header.
        postprocess_note: what the session computes in Python, for the user.
        fixed_reason: why the input sizes cannot be dynamic; empty if they can.
        takes_sizes: whether the exported module also takes the images' sizes (N, 2); with dynamic sizes it then
            takes one image at a time.
    """

    extract_traced_part: Callable[[nn.Module], nn.Module]
    outputs: tuple[str, ...]
    decoder: Callable[[Header], Decoder]
    postprocess_note: str
    fixed_reason: str = ""
    takes_sizes: bool = False


_ANCHOR_NOTE = "the graph outputs scores and boxes of all anchors; the session selects the best in Python"
_QUERY_NOTE = "the graph outputs scores and boxes of all queries; the session selects the best in Python"
_MASK_NOTE = "the graph outputs classes and masks of all queries; the session crops the masks to the image in Python"
_TWO_STAGE_NOTE = "the graph outputs the best detections of any score; the session filters low scores in Python"
_MASK_RCNN_NOTE = f"{_TWO_STAGE_NOTE} and resizes the masks"
_FIXED_QUERIES = "its queries depend on the padded size and the batch size"

HEADS: dict[str, Head] = {
    **{
        head: Head(
            extract_traced_part=decode_anchors.TracedAnchorHead,
            outputs=outputs,
            decoder=decode_anchors.AnchorDecoder,
            postprocess_note=_ANCHOR_NOTE,
        )
        for head, outputs in decode_anchors.OUTPUTS.items()
    },
    **{
        head: Head(
            extract_traced_part=decode_queries.TracedQueryHead,
            outputs=decode_queries.OUTPUTS,
            decoder=decode_queries.QueryDecoder,
            postprocess_note=_QUERY_NOTE,
            fixed_reason=_FIXED_QUERIES,
        )
        for head in decode_queries.NAMES
    },
    **{
        head: Head(
            extract_traced_part=decode_two_stage.TracedTwoStage,
            outputs=outputs,
            decoder=decode_two_stage.TwoStageDecoder,
            postprocess_note=_MASK_RCNN_NOTE if decode_two_stage.ROI_MASKS in outputs else _TWO_STAGE_NOTE,
            takes_sizes=True,
        )
        for head, outputs in decode_two_stage.OUTPUTS.items()
    },
    decode_panoptic.NAME: Head(
        extract_traced_part=decode_panoptic.TracedMaskHead,
        outputs=decode_panoptic.OUTPUTS,
        decoder=lambda _: decode_panoptic.MaskDecoder(),
        postprocess_note=_MASK_NOTE,
        fixed_reason=_FIXED_QUERIES,
    ),
}
"""By the head's name in checkpoints."""


def find_head(options: Mapping[str, Any]) -> Head | None:
    """Return the head of a network with these options; None if the network is exported whole or not at all."""
    return HEADS.get(options.get("head", ""))
