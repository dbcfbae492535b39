"""Panoptic segmentation with VAN: Mask2Former as transformers has it, and the merging of its answers.

Shapes: pictures are a list of (3, H, W) floats, normalised already, each of its own size; Q queries, C classes of
things and stuff together; class logits (Q, C + 1), the last for "nothing"; mask logits (Q, h, w), which cover
exactly the picture at about a quarter of its rows and columns; ids (H, W) int32, 0 for nothing.

Mask2Former has no mask for filled-up pictures: a smaller picture of a batch is seen on a canvas, with zeros at the
bottom and on the right, and its masks are empty there. Its answers are cut to the picture. Positions depend on the
canvas: in evaluation only pictures with one canvas are seen together, so that no answer depends on the others.
Source: Cheng et al. 2022, arXiv:2112.01527.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError
from van.models.canvas import Size, common_canvas, group_by_canvas, sizes_of, stack_padded
from van.models.transformers_parts import (
    VanLevels,
    create_backbone,
    create_configuration,
    import_transformers,
    sums_by_kind,
    want_numbers,
    want_targets,
)
from van.models.van import VAN

_LEVELS = (0, 1, 2, 3)
_STRIDE = 4
"""Of the mask logits, in pixels."""
_WEIGHTS = dict.fromkeys(("cross_entropy", "mask", "dice"), 1.0)
"""transformers gives these losses with their weights."""

Segment = tuple[int, int, float]


class PanopticSegmenter(nn.Module):
    """Mask2Former on VAN, fresh.

    In training it takes for each picture ``labels`` (K,) and ``masks`` (K, H, W), and gives the weighted losses by
    name, whose sum is to be made small; in evaluation it gives, for each picture, ``class_logits`` and
    ``mask_logits``, which ``panoptic_segments`` merges.

    Args:
        name: the VAN to build on.
        num_classes: of things and of stuff, together.
        queries: how many segments it can find; 100, and 200 for van_b6, if None.
        channels: of the maps, the masks and the queries, a multiple of 64.
        encoder_layers: of the pixel decoder, which mixes the maps.
        decoder_layers: of the transformer, which finds the segments.
        points: at so many points of each mask the losses look.
        drop_path_rate: of VAN, in training.
        **options: other fields of transformers' configuration.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: there is no VAN or option of that name, or a number is too small.
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
        numbers = {"num_classes": num_classes, "queries": queries, "points": points}
        layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        want_numbers({**numbers, **layers}, channels=channels)
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
            "decoder_layers": decoder_layers + 1,  # transformers counts the queries before the first layer, too
            "num_queries": queries,
            "train_num_points": points,
        }
        self.segmenter = _create(transformers, name, num_classes, {**sizes, **options})
        self.segmenter.model.pixel_level_module.encoder = VanLevels(backbone, _LEVELS)

    @property
    def backbone(self) -> VAN:
        """The VAN inside; a classifier's weights without its head load into it."""
        return self.segmenter.model.pixel_level_module.encoder.van

    def forward(
        self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        sizes = sizes_of(pictures)
        if self.training:
            canvas = common_canvas(sizes)
            targets = list(want_targets(pictures, targets))
            # on the whole canvas, because the losses look at points given as fractions of it
            masks = [stack_padded([target["masks"].float()], canvas)[0] for target in targets]
            labels = [target["labels"] for target in targets]
            found = self.segmenter(pixel_values=stack_padded(pictures, canvas), output_auxiliary_logits=True)
            losses = self.segmenter.get_loss_dict(
                found.masks_queries_logits, found.class_queries_logits, masks, labels, found.auxiliary_logits
            )
            return sums_by_kind(losses, _WEIGHTS)
        answers: dict[int, dict[str, Tensor]] = {}
        for canvas, members in group_by_canvas(sizes, common_canvas).items():
            found = self.segmenter(pixel_values=stack_padded([pictures[member] for member in members], canvas))
            for row, member in enumerate(members):
                masks = cut_to_picture(found.masks_queries_logits[row], canvas, sizes[member])
                answers[member] = {"class_logits": found.class_queries_logits[row], "mask_logits": masks}
        return [answers[place] for place in range(len(pictures))]


def cut_to_picture(masks: Tensor, canvas: Size, size: Size) -> Tensor:
    """Of (Q, rows / 4, columns / 4) logits on a canvas the part of a picture, its edges where the picture's are.

    Where a side is no multiple of 4 pixels, the logits are sampled anew, a little denser, and bilinearly.
    """
    rows, columns = (-(-side // _STRIDE) for side in size)
    if all(side % _STRIDE == 0 for side in size):
        return masks[:, :rows, :columns]
    covered = [
        (torch.arange(steps, device=masks.device, dtype=masks.dtype) + 0.5) * (2 * side / steps / whole) - 1
        for steps, side, whole in zip((rows, columns), size, canvas, strict=True)
    ]
    y, x = torch.meshgrid(*covered, indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(masks[None], grid, padding_mode="border", align_corners=False)[0]


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: Size,
    *,
    things: Sequence[bool],
    min_score: float = 0.5,
    min_visible: float = 0.8,
) -> tuple[Tensor, list[Segment]]:
    """Merge one picture's answers into segments that do not overlap, as the paper's code does.

    Each pixel goes to the query with the highest score times probability of the mask there, if that probability
    is at least a half; a query of whose mask too little remains is left out; stuff of one class is one segment.
    transformers' merging differs: it brings the masks to 384 x 384 first, compares score times probability with a
    half, and counts on from a merged segment's id, so that two segments can end up with one.

    Args:
        class_logits: (Q, C + 1).
        mask_logits: (Q, h, w).
        size: rows and columns of the picture that the ids are for.
        things: for each class, whether its segments are counted one by one.
        min_score: less sure queries say nothing.
        min_visible: share of a mask's pixels that must remain.

    Returns:
        The ids (rows, columns), and id, label and score of each segment; for merged ones the highest score.

    Raises:
        ShapeError: the logits do not belong together, or ``things`` does not name every class.
    """
    _want_shapes(class_logits, mask_logits, things)
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = (labels < len(things)) & (scores > min_score)
    ids = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    if not kept.any():
        return ids, []
    logits = F.interpolate(mask_logits[kept][None].float(), size=size, mode="bilinear", align_corners=False)[0]
    masks = logits.sigmoid()
    scores, labels = scores[kept], labels[kept].tolist()
    owner = (masks * scores[:, None, None]).argmax(0)
    segments: dict[int, Segment] = {}
    merged: dict[int, int] = {}
    for query, (label, score) in enumerate(zip(labels, scores.tolist(), strict=True)):
        mask = masks[query] >= 0.5
        owned = owner == query
        shown = owned & mask
        # the paper's code compares all that is owned with the mask, the parts under a half included
        if not shown.any() or owned.sum() < min_visible * mask.sum():
            continue
        number = merged.get(label, len(segments) + 1)
        if not things[label]:
            merged[label] = number
        ids[shown] = number
        best = max(score, segments[number][2]) if number in segments else score
        segments[number] = (number, label, best)
    return ids, list(segments.values())


def _want_shapes(class_logits: Tensor, mask_logits: Tensor, things: Sequence[bool]) -> None:
    queries, classes = len(mask_logits), len(things)
    if mask_logits.ndim != 3 or class_logits.shape != (queries, classes + 1):
        raise ShapeError(
            f"class_logits is {tuple(class_logits.shape)}, mask_logits {tuple(mask_logits.shape)} and things has "
            f"{classes} classes; wanted (queries, classes + 1), (queries, rows, columns) and classes"
        )


def _create(transformers: Any, name: str, num_classes: int, options: dict[str, Any]) -> Any:
    configuration = create_configuration(transformers.Mask2FormerConfig, {"num_labels": num_classes, **options})
    # put in afterwards, because transformers warns of every backbone but its Swin
    configuration.backbone_config = transformers.TimmBackboneConfig(backbone=name, out_indices=list(_LEVELS))
    return transformers.Mask2FormerForUniversalSegmentation(configuration)
