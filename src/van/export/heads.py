"""The heads whose networks are cut in two: what of each is exported, and what makes an answer of its outputs.

A file holds everything up to the scores of every anchor or query, for pictures padded to a canvas. What follows (the
best of them, without doubles) is of sizes that depend on the picture and costs little; the session does it with the
very functions that the network in PyTorch uses, so that the answers are the same. A new head is one entry here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from van.export import anchors, panoptic, queries, two_stage
from van.export.header import Header
from van.models.canvas import Size


class Decoder(Protocol):
    """What makes answers of the outputs."""

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Rows and columns on which pictures of these sizes are seen together."""
        ...

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """Of each picture what the network in PyTorch answers, in the picture's own pixels."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """How networks with one head are exported.

    Args:
        cut: gives the part of a network that is exported: a canvas (N, 3, R, C) to ``outputs``.
        outputs: their names, in order.
        decoder: made of a file's header.
        left: what the session does in Python, in words for the user.
        fixed: why the sizes cannot be free; empty if they can.
        sized: whether the exported part is told the pictures' own sizes (N, 2), too; where these are free, such a
            part takes one picture at a time.
    """

    cut: Callable[[nn.Module], nn.Module]
    outputs: tuple[str, ...]
    decoder: Callable[[Header], Decoder]
    left: str
    fixed: str = ""
    sized: bool = False


_OF_ANCHORS = "the file gives scores and boxes of all anchors; the session picks the best of them in Python"
_OF_QUERIES = "the file gives scores and boxes of all queries; the session picks the best of them in Python"
_OF_MASKS = "the file gives classes and masks of all queries; the session cuts the masks to the picture in Python"
_OF_PLACES = "the file gives the best things of any score; the session leaves out low scores in Python"
_OF_CUTTINGS = f"{_OF_PLACES} and enlarges the masks"
_ONE_CANVAS = "it lays out its queries for one canvas and one batch"

HEADS: dict[str, Head] = {
    **{
        head: Head(cut=anchors.AnchorHeads, outputs=outputs, decoder=anchors.AnchorDecoder, left=_OF_ANCHORS)
        for head, outputs in anchors.OUTPUTS.items()
    },
    **{
        head: Head(
            cut=queries.QueryHeads,
            outputs=queries.OUTPUTS,
            decoder=queries.QueryDecoder,
            left=_OF_QUERIES,
            fixed=_ONE_CANVAS,
        )
        for head in queries.NAMES
    },
    **{
        head: Head(
            cut=two_stage.TwoStages,
            outputs=outputs,
            decoder=two_stage.TwoStageDecoder,
            left=_OF_CUTTINGS if two_stage.MASKS in outputs else _OF_PLACES,
            sized=True,
        )
        for head, outputs in two_stage.OUTPUTS.items()
    },
    panoptic.NAME: Head(
        cut=panoptic.MaskHeads,
        outputs=panoptic.OUTPUTS,
        decoder=lambda _: panoptic.MaskDecoder(),
        left=_OF_MASKS,
        fixed=_ONE_CANVAS,
    ),
}
"""By the name that checkpoints have for it."""


def head_of(options: Mapping[str, Any]) -> Head | None:
    """That of a network with these options; None if it is exported whole, or not at all."""
    return HEADS.get(options.get("head", ""))
