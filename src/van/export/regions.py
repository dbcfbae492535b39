"""Boxes in a graph whose sizes are all fixed: clipped, thinned out, and what lies in them pooled from a pyramid.

Each gives what torchvision's function of the same purpose gives (see the tests), with every tensor's size known
before the graph runs; where torchvision leaves boxes out, a mask says so.
Shapes: boxes (N, B, 4) as x1, y1, x2, y2 in pixels of the canvas; sizes (N, 2), rows and columns of the pictures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_area, nms, roi_align

_NOWHERE = (-2.0, -2.0, -1.0, -1.0)
"""The place of boxes that are none: outside every picture, and one for all, so that the first puts out the others."""
_ELSEWHERE = (-4.0, -4.0, -3.0, -3.0)
"""Two boxes that do not overlap are put in front of the others: PyTorch exports thinning out for two that stay."""


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """The parts inside each picture."""
    edges = sizes.flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), edges)


def apart(boxes: Tensor, real: Tensor, kinds: Tensor) -> Tensor:
    """The boxes moved so that those of two kinds never overlap, as torchvision moves them.

    Args:
        boxes: clipped.
        real: (N, B) bool; the others do not matter.
        kinds: (N, B), whole numbers from 0.
    """
    furthest = torch.where(real[..., None], boxes, 0.0).amax(dim=(1, 2)) + 1
    return boxes + ((kinds + 1) * furthest[:, None])[..., None]


def only_the_best(boxes: Tensor, scores: Tensor, real: Tensor, *, threshold: float) -> Tensor:
    """Which (N, B) of the real boxes remain where those go that overlap a better one.

    Args:
        boxes: nowhere less than 0.
        scores: (N, B), at least 0.
        real: (N, B) bool.
        threshold: the largest overlap that is left.
    """
    nowhere, elsewhere = (torch.tensor(corners, device=boxes.device) for corners in (_NOWHERE, _ELSEWHERE))
    boxes = torch.where(real[..., None], boxes, nowhere)
    boxes = torch.cat([torch.stack([nowhere, elsewhere]).expand(len(boxes), 2, 4), boxes], dim=1)
    scores = nn.functional.pad(torch.where(real, scores, -1.0), (2, 0), value=-1.0)
    rows = []
    for own, score in zip(boxes.unbind(), scores.unbind(), strict=True):  # there is no operator for several pictures
        best = nms(own, score, threshold)
        rows.append(torch.zeros_like(score).scatter(0, best, 1.0) > 0)
    return torch.stack(rows)[:, 2:] & real


def level_of(boxes: Tensor, pooling: Any, strides: Sequence[int]) -> Tensor:
    """The level (B,) from which each of (B, 4) is pooled: the larger, the coarser.

    Args:
        boxes: in pixels.
        pooling: torchvision's ``MultiScaleRoIAlign``, whose rule it is.
        strides: of the levels, powers of two.
    """
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    sides = box_area(boxes).sqrt()
    level = torch.floor(pooling.canonical_level + torch.log2(sides / pooling.canonical_scale) + 1e-6)
    return level.clamp(first, last).to(torch.int64) - first


def pool(
    maps: Sequence[Tensor], boxes: Tensor, level: Tensor, *, strides: Sequence[int], side: tuple[int, int], samples: int
) -> Tensor:
    """What lies in the boxes, each from its own level: (N * B, channels, side, side), in the maps' own precision."""
    pictures, count, _ = boxes.shape
    place = torch.arange(pictures, device=boxes.device).repeat_interleave(count)
    rois = torch.cat([place[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
    found = rois.new_zeros((len(rois), maps[0].shape[1], *side))
    for number, (each, stride) in enumerate(zip(maps, strides, strict=True)):
        own = (level == number).nonzero().flatten()
        pooled = roi_align(
            each.float(), rois.index_select(0, own), side, spatial_scale=1 / stride, sampling_ratio=samples
        )
        found = found.index_put((own,), pooled)
    return found.to(maps[0].dtype)
