"""Panoptic segmentation with VAN: Mask2Former from transformers, and the merging of its outputs into segments.

Shapes: images are a list of (3, H, W) normalized floats of any size; Q queries, C classes of things and stuff
together; class logits (Q, C + 1), the last for "no object"; mask logits (Q, h, w), which cover exactly the image at
about a quarter of its rows and columns; segment ids (H, W) int32, 0 for no segment.

Mask2Former has no padding mask: images are padded with zeros at the bottom and on the right, target masks are empty
there, and predicted masks are cropped to the image. Position embeddings depend on the padded size: in evaluation only
images of one padded size form a batch, so that no prediction depends on the other images.
Source: Cheng et al. 2022, arXiv:2112.01527.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError
from van.models.padding import Size, common_padded_size, group_by_padded_size, sizes_of, stack_padded
from van.models.transformers_adapter import (
    VanBackbone,
    check_sizes,
    check_targets,
    create_backbone,
    create_config,
    import_transformers,
    sum_losses_by_type,
)
from van.models.van import VAN

_LEVELS = (0, 1, 2, 3)
_STRIDE = 4
"""Stride of the mask logits in pixels."""
_WEIGHTS = dict.fromkeys(("cross_entropy", "mask", "dice"), 1.0)
"""transformers returns these losses already weighted."""

SegmentInfo = tuple[int, int, float]
"""Id, label and score of a segment."""


class PanopticSegmenter(nn.Module):
    """Mask2Former on VAN, untrained.

    In training it takes for each image ``labels`` (K,) and ``masks`` (K, H, W), and returns the weighted losses by
    name, whose sum is minimized; in evaluation it returns for each image ``class_logits`` and ``mask_logits``, which
    ``merge_panoptic`` converts to segments.

    Args:
        name: the VAN backbone.
        num_classes: classes of things and stuff together.
        queries: the most segments per image; if None 100, and 200 for van_b6.
        channels: of the feature maps, the masks and the queries, a multiple of 64.
        encoder_layers: number of layers of the pixel decoder, which fuses the feature maps.
        decoder_layers: number of layers of the transformer decoder, which predicts the segments.
        points: number of points of each mask at which the losses are computed.
        drop_path_rate: of VAN, in training.
        **options: further fields of transformers' configuration.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: the VAN or an option is unknown, or a size is too small.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        queries: int | None = None,
        channels: int = 256,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        points: int = 12_544,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if queries is None:
            queries = 200 if name == "van_b6" else 100
        counts = {"num_classes": num_classes, "queries": queries, "points": points}
        layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        check_sizes({**counts, **layers}, channels=channels)
        transformers = import_transformers("Mask2Former")
        backbone = create_backbone(name, drop_path_rate=drop_path_rate)
        self.num_classes = num_classes
        sizes = {
            "feature_size": channels,
            "mask_feature_size": channels,
            "hidden_dim": channels,
            "encoder_feedforward_dim": 4 * channels,
            "dim_feedforward": 8 * channels,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers + 1,  # transformers counts the prediction before the first layer, too
            "num_queries": queries,
            "train_num_points": points,
        }
        self.segmenter = _create(transformers, name, num_classes, {**sizes, **options})
        self.segmenter.model.pixel_level_module.encoder = VanBackbone(backbone, _LEVELS)

    @property
    def backbone(self) -> VAN:
        """The VAN; the weights of a classifier without its head can be loaded into it."""
        return self.segmenter.model.pixel_level_module.encoder.van

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        sizes = sizes_of(images)
        if self.training:
            padded_size = common_padded_size(sizes)
            targets = list(check_targets(images, targets))
            # padded like the images, because the losses sample points given as fractions of the padded size
            masks = [stack_padded([target["masks"].float()], padded_size)[0] for target in targets]
            labels = [target["labels"] for target in targets]
            outputs = self.segmenter(pixel_values=stack_padded(images, padded_size), output_auxiliary_logits=True)
            losses = self.segmenter.get_loss_dict(
                outputs.masks_queries_logits, outputs.class_queries_logits, masks, labels, outputs.auxiliary_logits
            )
            return sum_losses_by_type(losses, _WEIGHTS)
        predictions: dict[int, dict[str, Tensor]] = {}
        for padded_size, indices in group_by_padded_size(sizes, common_padded_size).items():
            outputs = self.segmenter(pixel_values=stack_padded([images[index] for index in indices], padded_size))
            for row, index in enumerate(indices):
                masks = crop_to_image(outputs.masks_queries_logits[row], padded_size, sizes[index])
                predictions[index] = {"class_logits": outputs.class_queries_logits[row], "mask_logits": masks}
        return [predictions[index] for index in range(len(images))]


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
    class_logits: Tensor,
    mask_logits: Tensor,
    size: Size,
    *,
    things: Sequence[bool],
    min_score: float = 0.5,
    min_visible: float = 0.8,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Merge the outputs for one image into segments that do not overlap, as the paper's code does.

    Each pixel is assigned to the query with the highest product of score and mask probability, if that probability is
    at least a half; a query that keeps too few pixels of its mask is dropped; all stuff of one class is one segment.
    transformers' merging differs: it resizes the masks to 384 x 384 first, compares the product of score and
    probability with a half, and continues from a merged segment's id, so that two segments can get the same id.

    Args:
        class_logits: (Q, C + 1).
        mask_logits: (Q, h, w).
        size: rows and columns of the image.
        things: for each class, whether its objects are separate segments.
        min_score: queries with a lower score are dropped.
        min_visible: the fraction of a mask's pixels that a query must keep.

    Returns:
        Segment ids (rows, columns), and id, label and score of each segment; merged ones have the highest score.

    Raises:
        ShapeError: the shapes of the logits do not match, or ``things`` has another number of classes.
    """
    _check_shapes(class_logits, mask_logits, things)
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


def _check_shapes(class_logits: Tensor, mask_logits: Tensor, things: Sequence[bool]) -> None:
    queries, classes = len(mask_logits), len(things)
    if mask_logits.ndim != 3 or class_logits.shape != (queries, classes + 1):
        raise ShapeError(
            f"class_logits, mask_logits, things: expected (queries, classes + 1), (queries, rows, columns), classes, "
            f"got {tuple(class_logits.shape)}, {tuple(mask_logits.shape)}, {classes}"
        )


def _create(transformers: Any, name: str, num_classes: int, options: dict[str, Any]) -> Any:
    configuration = create_config(transformers.Mask2FormerConfig, {"num_labels": num_classes, **options})
    # set afterwards, because transformers warns about every backbone but Swin
    configuration.backbone_config = transformers.TimmBackboneConfig(backbone=name, out_indices=list(_LEVELS))
    return transformers.Mask2FormerForUniversalSegmentation(configuration)
