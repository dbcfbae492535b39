"""Box operators for graphs with static shapes: clipping, non-maximum suppression and RoI align over a pyramid.

Each returns what the torchvision function of the same purpose returns (see the tests), but the size of every tensor
is known before the graph runs: where torchvision removes boxes, these return a mask.
Shapes: boxes (N, B, 4) as x1, y1, x2, y2 in pixels of the padded image; sizes (N, 2), rows and columns of the images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_area, nms, roi_align

_INVALID_BOX = (-2.0, -2.0, -1.0, -1.0)
"""Replaces invalid boxes: outside of every image, and the same for all, so that the first one suppresses the rest."""
_DUMMY_BOX = (-4.0, -4.0, -3.0, -3.0)
"""Prepended together with ``_INVALID_BOX``: PyTorch exports ``nms`` only if its example keeps at least two boxes."""


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes to their images."""
    edges = sizes.flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), edges)


def offset_by_class(boxes: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
    """Offset boxes by their class, so that those of two classes never overlap; torchvision's ``batched_nms`` does so.

    Args:
        boxes: clipped.
        valid: (N, B) bool; the other boxes have no effect on the offsets.
        labels: (N, B), class indices from 0.
    """
    max_coordinate = torch.where(valid[..., None], boxes, 0.0).amax(dim=(1, 2)) + 1
    return boxes + ((labels + 1) * max_coordinate[:, None])[..., None]


def nms_mask(boxes: Tensor, scores: Tensor, valid: Tensor, *, iou_threshold: float) -> Tensor:
    """Return the mask (N, B) of the valid boxes that non-maximum suppression keeps.

    Args:
        boxes: coordinates of at least 0.
        scores: (N, B), at least 0.
        valid: (N, B) bool.
        iou_threshold: boxes that overlap a better one by more are suppressed.
    """
    invalid, dummy = (torch.tensor(corners, device=boxes.device) for corners in (_INVALID_BOX, _DUMMY_BOX))
    boxes = torch.where(valid[..., None], boxes, invalid)
    boxes = torch.cat([torch.stack([invalid, dummy]).expand(len(boxes), 2, 4), boxes], dim=1)
    scores = nn.functional.pad(torch.where(valid, scores, -1.0), (2, 0), value=-1.0)
    masks = []
    # The nms operator takes one image at a time.
    for image_boxes, image_scores in zip(boxes.unbind(), scores.unbind(), strict=True):
        kept = nms(image_boxes, image_scores, iou_threshold)
        masks.append(torch.zeros_like(image_scores).scatter(0, kept, 1.0) > 0)
    return torch.stack(masks)[:, 2:] & valid


def assign_levels(boxes: Tensor, pooling: Any, strides: Sequence[int]) -> Tensor:
    """Return the pyramid level (B,) from which each of (B, 4) is pooled; larger boxes use coarser levels.

    Args:
        boxes: in pixels.
        pooling: torchvision's ``MultiScaleRoIAlign``, which defines the rule.
        strides: of the levels, powers of two.
    """
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    sides = box_area(boxes).sqrt()
    level = torch.floor(pooling.canonical_level + torch.log2(sides / pooling.canonical_scale) + 1e-6)
    return level.clamp(first, last).to(torch.int64) - first


def multiscale_roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """Pool each box from its level; return (N * B, channels, *output_size) in the dtype of the maps."""
    images, count, _ = boxes.shape
    image_index = torch.arange(images, device=boxes.device).repeat_interleave(count)
    rois = torch.cat([image_index[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
    pooled = rois.new_zeros((len(rois), maps[0].shape[1], *output_size))
    for level, (feature_map, stride) in enumerate(zip(maps, strides, strict=True)):
        members = (levels == level).nonzero().flatten()
        features = roi_align(
            feature_map.float(),
            rois.index_select(0, members),
            output_size,
            spatial_scale=1 / stride,
            sampling_ratio=sampling_ratio,
        )
        pooled = pooled.index_put((members,), features)
    return pooled.to(maps[0].dtype)
