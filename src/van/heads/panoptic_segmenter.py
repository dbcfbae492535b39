"""Panoptic segmentation with VAN by mask queries, and the merging of its outputs into segments.

Shapes: images are a list of (3, H, W) normalized floats of any size; Q queries, C classes of things and stuff
together; class logits (Q, C + 1), the last for "no object"; mask logits (Q, h, w), which cover exactly the image at
about a quarter of its rows and columns; segment ids (H, W) int32, 0 for no segment.

Mask2Former has no padding mask: images are padded with zeros at the bottom and on the right, target masks are empty
there, and predicted masks are cropped to the image. Position embeddings depend on the padded size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.van import VAN
from van.errors import ShapeError
from van.heads.network import (
    HeadNetwork,
    Size,
    check_targets,
    common_padded_size,
    predict_by_padded_size,
    sizes_of,
    stack_padded,
)
from van.heads.transformers_adapter import VanBackbone, sum_losses_by_type

LEVELS = (0, 1, 2, 3)
_STRIDE = 4
"""Stride of the mask logits in pixels."""

SegmentInfo = tuple[int, int, float]
"""Id, label and score of a segment."""


class PanopticSegmenter(HeadNetwork):
    """transformers' Mask2Former on VAN.

    In training it takes for each image ``labels`` (K,) and ``masks`` (K, H, W), and returns the weighted losses by
    name, whose sum is minimized; in evaluation it returns for each image ``class_logits`` and ``mask_logits``, which
    ``merge_panoptic`` converts to segments.

    Args:
        backbone: a VAN; it replaces the one of ``segmenter``.
        segmenter: of transformers.
        num_classes: classes of things and stuff together.
        loss_weights: weights of the losses by transformers' names.
    """

    def __init__(self, backbone: VAN, segmenter: Any, *, num_classes: int, loss_weights: Mapping[str, float]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.loss_weights = dict(loss_weights)
        self.segmenter = segmenter
        segmenter.model.pixel_level_module.encoder = VanBackbone(backbone, LEVELS)

    @property
    def backbone(self) -> VAN:  # pyrefly: ignore[bad-override]
        """The VAN; the weights of a classifier without its head can be loaded into it."""
        return self.segmenter.model.pixel_level_module.encoder.van

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if not self.training:
            return predict_by_padded_size(images, common_padded_size, self._predict_batch)
        padded_size = common_padded_size(sizes_of(images))
        targets = list(check_targets(images, targets))
        # padded like the images, because the losses sample points given as fractions of the padded size
        masks = [stack_padded([target["masks"].float()], padded_size)[0] for target in targets]
        labels = [target["labels"] for target in targets]
        outputs = self.segmenter(pixel_values=stack_padded(images, padded_size), output_auxiliary_logits=True)
        losses = self.segmenter.get_loss_dict(
            outputs.masks_queries_logits, outputs.class_queries_logits, masks, labels, outputs.auxiliary_logits
        )
        return sum_losses_by_type(losses, self.loss_weights)

    def _predict_batch(self, images: list[Tensor], padded_size: Size) -> list[dict[str, Tensor]]:
        outputs = self.segmenter(pixel_values=stack_padded(images, padded_size))
        logits = (outputs.class_queries_logits, outputs.masks_queries_logits)
        return MaskDecoder()(logits, sizes_of(images), padded_size)


def crop_to_image(masks: Tensor, padded_size: Size, size: Size) -> Tensor:
    """Crop mask logits (Q, rows / 4, columns / 4) of a padded image to the image of ``size``, edge to edge.

    If a side is not a multiple of 4 pixels, the logits are resampled bilinearly, slightly denser.
    """
    rows, columns = (-(-side // _STRIDE) for side in size)
    if all(side % _STRIDE == 0 for side in size):
        return masks[:, :rows, :columns]
    coordinates = [
        (torch.arange(steps, device=masks.device, dtype=masks.dtype) + 0.5) * (2 * side / steps / padded_side) - 1
        for steps, side, padded_side in zip((rows, columns), size, padded_size, strict=True)
    ]
    y, x = torch.meshgrid(*coordinates, indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(masks[None], grid, padding_mode="border", align_corners=False)[0]


def merge_panoptic(
    class_logits: Tensor, mask_logits: Tensor, size: Size, *, things: Sequence[bool], min_score: float = 0.5,
    min_visible: float = 0.8,
) -> tuple[Tensor, list[SegmentInfo]]:  # fmt: skip
    """Merge the outputs for one image into segments that do not overlap, as the paper's code does.

    Each pixel is assigned to the query with the highest product of score and mask probability, if that probability is
    at least a half; a query that keeps too few pixels of its mask is dropped; all stuff of one class is one segment.
    transformers' merging differs: it resizes the masks to 384 x 384 first, compares the product of score and
    probability with a half, and continues from a merged segment's id, so that two segments can get the same id.

    Args:
        class_logits, mask_logits: (Q, C + 1) and (Q, h, w).
        size: rows and columns of the image.
        things: for each class, whether its objects are separate segments.
        min_score: queries with a lower score are dropped.
        min_visible: the fraction of a mask's pixels that a query must keep.

    Returns:
        Segment ids (rows, columns), and id, label and score of each segment; merged ones have the highest score.
    """
    queries, classes = len(mask_logits), len(things)
    if mask_logits.ndim != 3 or class_logits.shape != (queries, classes + 1):
        raise ShapeError(
            f"class_logits, mask_logits, things: expected (queries, classes + 1), (queries, rows, columns), classes, "
            f"got {tuple(class_logits.shape)}, {tuple(mask_logits.shape)}, {classes}"
        )
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = (labels < len(things)) & (scores > min_score)
    ids = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    if not kept.any():
        return ids, []
    logits = F.interpolate(mask_logits[kept][None].float(), size=size, mode="bilinear", align_corners=False)[0]
    masks = logits.sigmoid()
    scores, labels = scores[kept], labels[kept].tolist()
    owner = (masks * scores[:, None, None]).argmax(0)
    segments: dict[int, SegmentInfo] = {}
    merged: dict[int, int] = {}
    for query, (label, score) in enumerate(zip(labels, scores.tolist(), strict=True)):
        mask = masks[query] >= 0.5
        assigned = owner == query
        visible = assigned & mask
        # the paper's code compares all assigned pixels with the mask, those with a probability below a half included
        if not visible.any() or assigned.sum() < min_visible * mask.sum():
            continue
        segment_id = merged.get(label, len(segments) + 1)
        if not things[label]:
            merged[label] = segment_id
        ids[visible] = segment_id
        best = max(score, segments[segment_id][2]) if segment_id in segments else score
        segments[segment_id] = (segment_id, label, best)
    return ids, list(segments.values())


class TracedMaskHead(nn.Module):
    """The exported part of a ``PanopticSegmenter``; maps padded images to class and mask logits of the queries.

    It replaces the network's self-attention in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, PanopticSegmenter)
        self.network = network
        for layer in network.segmenter.model.transformer_module.decoder.layers:
            layer.self_attn = _SelfAttention(layer.self_attn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network.segmenter(pixel_values=images)
        return outputs.class_queries_logits, outputs.masks_queries_logits


class _SelfAttention(nn.Module):
    """The queries' self-attention of transformers, with separate axes for batch and heads throughout.

    transformers merges batch and heads into one axis. The ONNX optimizer undoes that for one factor of a matrix
    product and not for the other, and OpenVINO 2026.4 cannot compile such a product.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden_states: Tensor, position_embeddings: Tensor, attention_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Return the attended queries (Q, N, C); the attention weights are None because nothing reads them."""
        assert attention_mask is None, "each query attends to all others"
        hidden = hidden_states.transpose(0, 1)
        with_positions = hidden + position_embeddings.transpose(0, 1)
        attention = self.attention
        heads = (attention.num_heads, attention.head_dim)
        layers = ((attention.q_proj, with_positions), (attention.k_proj, with_positions), (attention.v_proj, hidden))
        query, key, value = (layer(x).unflatten(-1, heads).transpose(1, 2) for layer, x in layers)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attention.out_proj(attended.transpose(1, 2).flatten(2)).transpose(0, 1), None


class MaskDecoder:
    """The post-processing of Mask2Former up to mask logits; ``van.tasks.panoptic`` resolves overlapping masks."""

    padded_size = staticmethod(common_padded_size)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Return each image's class and mask logits, masks without the padding."""
        return [
            {"class_logits": class_logits, "mask_logits": crop_to_image(mask_logits, padded_size, size)}
            for class_logits, mask_logits, size in zip(*outputs, sizes, strict=True)
        ]
