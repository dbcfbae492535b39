"""Detection with VAN and a transformer decoder: D-FINE, RT-DETR v2 and Deformable DETR, as transformers has them.

Shapes: images are a list of (3, H, W) normalized floats of any size; boxes (K, 4) as x1, y1, x2, y2 in pixels of the
image; labels (K,) from 0. Inside, Q queries per image: logits (N, Q, classes) and boxes (N, Q, 4) as center, width
and height, each a fraction of the reference size (rows, columns).

Reference sizes. Images are padded at the bottom and on the right. D-FINE and RT-DETR have no padding mask: their boxes
and targets are fractions of the padded size. Deformable DETR has one, and its boxes are fractions of the size of the
unmasked area; each of its four levels (strides 8 to 64) rounds that to its own cells, so here the mask ends at a
multiple of 64, where all of them agree. Position embeddings and initial boxes depend on the padded size, and VAN's
features on the padding: in evaluation only images of one padded size form a batch, so that no prediction depends on
the other images. D-FINE and RT-DETR learn box sizes as fractions of the padded size, and faster from images that are
all resized to one size.

Differences to transformers' defaults, for training from scratch: VAN's BatchNorms are trained; every decoder layer has
its own head; the initial class probabilities are low, whatever the number of classes; Deformable DETR refines its
boxes layer by layer, starts with small ones and weights classes twice in the matching, as its authors' code does;
D-FINE's losses pair each layer's boxes with the corners of the same layer (transformers 5.23: with the boxes of the
layer before), so that every layer has a loss.
Sources: Peng et al. 2024 (D-FINE), arXiv:2410.13842; Lv et al. 2024 (RT-DETRv2), arXiv:2407.17140;
Zhu et al. 2021 (Deformable DETR), arXiv:2010.04159.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from van.errors import UsageError
from van.models.padding import Size, common_padded_size, group_by_padded_size, sizes_of, stack_padded
from van.models.registry import VARIANTS
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

HEADS = ("d_fine", "rt_detr_v2", "deformable_detr")
"""Detectors by transformers' names."""
_TITLES = {"d_fine": "D-FINE", "rt_detr_v2": "RT-DETR v2", "deformable_detr": "Deformable DETR"}
_LEVELS = (1, 2, 3)
_STRIDES = (8, 16, 32)
"""The detectors use the last three stages of VAN, with these strides in pixels."""
_WEIGHTS = {
    "d_fine": dict.fromkeys(("vfl", "bbox", "giou", "fgl", "ddf"), 1.0),
    "rt_detr_v2": dict.fromkeys(("vfl", "bbox", "giou"), 1.0),
    "deformable_detr": {"ce": 1.0, "bbox": 5.0, "giou": 2.0},
}
"""Loss weights. transformers returns the losses of the first two already weighted."""
_PRIOR_PROBABILITY = 0.01
"""The initial probability of each class for a query, as in RetinaNet: most queries match no object."""


class TransformerDetector(nn.Module):
    """One of transformers' detectors on VAN, untrained, with the interface of ``van.models.detectors.Detector``.

    In training it takes targets and returns the weighted losses by name, whose sum is minimized; in evaluation it
    returns for each image ``boxes``, ``labels`` and ``scores``, by decreasing score.

    Args:
        name: the VAN backbone.
        head: one of ``HEADS``.
        num_classes: classes of objects, without a background class.
        queries: the most objects per image; D-FINE and RT-DETR pad small images to have enough cells for them.
        channels: of the feature maps and the queries, a multiple of 64.
        decoder_layers: number of layers of the transformer decoder.
        max_detections: the most detections per image.
        drop_path_rate: of VAN, in training.
        **options: further fields of transformers' configuration of that detector.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: the VAN, the detector or an option is unknown, or a size is too small.
    """

    def __init__(
        self,
        name: str,
        *,
        head: str,
        num_classes: int,
        queries: int = 300,
        channels: int = 256,
        decoder_layers: int = 6,
        max_detections: int = 100,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
        counts = {"num_classes": num_classes, "queries": queries, "decoder_layers": decoder_layers}
        check_sizes({**counts, "max_detections": max_detections}, channels=channels)
        transformers = import_transformers(_TITLES[head])
        self.head = head
        self.num_classes = num_classes
        self.queries = queries
        self.max_detections = max_detections
        backbone = create_backbone(name, drop_path_rate=drop_path_rate)
        sizes = {
            "num_queries": queries,
            "d_model": channels,
            "encoder_ffn_dim": 4 * channels,
            "decoder_ffn_dim": 4 * channels,
            "decoder_layers": decoder_layers,
        }
        self.detector = _create(transformers, head, name, num_classes, {**sizes, **options})
        # transformers' own wrapper splits VAN into its stages and, in Deformable DETR, freezes BatchNorms
        self.detector.model.backbone.model = VanBackbone(backbone, _LEVELS)

    @property
    def backbone(self) -> VAN:
        """The VAN; the weights of a classifier without its head can be loaded into it."""
        return self.detector.model.backbone.model.van

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        sizes = sizes_of(images)
        if self.training:
            padded_size = self.padded_size(sizes)
            pairs = zip(check_targets(images, targets), self.reference_sizes(sizes, padded_size), strict=True)
            labels = [_to_fractions(target, reference_size) for target, reference_size in pairs]
            outputs = self.detector(**self._inputs(images, padded_size), labels=labels)
            losses = sum_losses_by_type(outputs.loss_dict, _WEIGHTS[self.head])
            if (noise := getattr(self.detector.model, "denoising_class_embed", None)) is not None:
                # a batch without objects does not use it, but distributed training waits for its gradient anyway
                losses["vfl"] = losses["vfl"] + 0.0 * noise.weight.sum()
            return losses
        detections: dict[int, dict[str, Tensor]] = {}
        for padded_size, indices in group_by_padded_size(sizes, self.padded_size).items():
            outputs = self.detector(**self._inputs([images[index] for index in indices], padded_size))
            image_sizes = [sizes[index] for index in indices]
            decoded = decode(
                outputs.logits,
                outputs.pred_boxes,
                reference_sizes=self.reference_sizes(image_sizes, padded_size),
                sizes=image_sizes,
                max_detections=self.max_detections,
            )
            detections.update(zip(indices, decoded, strict=True))
        return [detections[index] for index in range(len(images))]

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return rows and columns to which images of these sizes are padded in one batch."""
        multiple = 64 if self.head == "deformable_detr" else 32
        rows, columns = common_padded_size(sizes, multiple=multiple)
        if self.head != "deformable_detr":  # these select their queries from the cells of the feature maps
            while sum((rows // stride) * (columns // stride) for stride in _STRIDES) < self.queries:
                rows, columns = (rows + 32, columns) if rows <= columns else (rows, columns + 32)
        return rows, columns

    def reference_sizes(self, sizes: Sequence[Size], padded_size: Size) -> list[Size]:
        """Return for each image the rows and columns that its boxes are fractions of."""
        if self.head == "deformable_detr":
            return [self.padded_size([size]) for size in sizes]
        return [padded_size] * len(sizes)

    def _inputs(self, images: list[Tensor], padded_size: Size) -> dict[str, Tensor]:
        inputs = {"pixel_values": stack_padded(images, padded_size)}
        if self.head == "deformable_detr":
            reference_sizes = self.reference_sizes(sizes_of(images), padded_size)
            inputs["pixel_mask"] = stack_padded([images[0].new_ones(size) for size in reference_sizes], padded_size)
        return inputs


def decode(
    logits: Tensor, boxes: Tensor, *, reference_sizes: Sequence[Size], sizes: Sequence[Size], max_detections: int
) -> list[dict[str, Tensor]]:
    """Decode the queries to detections in pixels of each image, clipped to it, by decreasing score.

    Args:
        logits: (N, Q, classes).
        boxes: (N, Q, 4), center, width and height as fractions of the reference size.
        reference_sizes: rows and columns that the boxes of each image are fractions of.
        sizes: rows and columns of each image.
        max_detections: the most detections per image; boxes that lie in the padding only are dropped.
    """
    detections = []
    rows = zip(logits.float(), boxes.float(), reference_sizes, sizes, strict=True)
    for image_logits, image_boxes, reference_size, size in rows:
        corners = clip_boxes_to_image(
            box_convert(image_boxes, "cxcywh", "xyxy") * _box_scale(reference_size, boxes), size
        )
        inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        corners, scores = corners[inside], image_logits[inside].sigmoid()
        best, indices = scores.flatten().topk(min(max_detections, scores.numel()))
        classes = logits.shape[-1]
        detections.append({"boxes": corners[indices // classes], "labels": indices % classes, "scores": best})
    return detections


def _box_scale(reference_size: Size, like: Tensor) -> Tensor:
    rows, columns = reference_size
    return torch.tensor([columns, rows, columns, rows], dtype=torch.float32, device=like.device)


def _to_fractions(target: dict[str, Tensor], reference_size: Size) -> dict[str, Tensor]:
    """Convert an image's target to transformers' format: boxes as fractions of the reference size."""
    boxes = target["boxes"].float()
    fractions = box_convert(boxes / _box_scale(reference_size, boxes), "xyxy", "cxcywh")
    return {"boxes": fractions, "class_labels": target["labels"]}


def _create(transformers: Any, head: str, name: str, num_classes: int, options: dict[str, Any]) -> Any:
    options = {
        "backbone_config": transformers.TimmBackboneConfig(backbone=name, out_indices=list(_LEVELS)),
        "num_labels": num_classes,
        "tie_word_embeddings": False,  # each decoder layer has its own head
        "auxiliary_loss": True,
        **options,
    }
    if head == "deformable_detr":
        options = {"with_box_refine": True, "class_cost": 2, **options}
        detector = transformers.DeformableDetrForObjectDetection(
            create_config(transformers.DeformableDetrConfig, options)
        )
        _init_deformable_detr(detector)
        return detector
    channels = options["d_model"]
    options = {
        "encoder_in_channels": list(VARIANTS[name].dims[1:]),
        "encoder_hidden_dim": channels,
        "decoder_in_channels": [channels] * len(_LEVELS),
        "freeze_backbone_batch_norms": False,
        "initializer_bias_prior_prob": _PRIOR_PROBABILITY,
        **options,
    }
    if head == "d_fine":
        detector = transformers.DFineForObjectDetection(create_config(transformers.DFineConfig, options))
        detector.loss_function = _d_fine_losses
    else:
        detector = transformers.RTDetrV2ForObjectDetection(create_config(transformers.RTDetrV2Config, options))
    # the decoder has the heads that are used; these are unused copies
    del detector.class_embed, detector.bbox_embed
    return detector


def _init_deformable_detr(detector: Any) -> None:
    """Initialize the heads as the authors' code does, with box refinement: low class scores, small first boxes."""
    for layer, (classes, boxes) in enumerate(zip(detector.class_embed, detector.bbox_embed, strict=True)):
        nn.init.constant_(classes.bias, -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
        if layer == 0:
            nn.init.constant_(boxes.layers[-1].bias[2:], -2.0)
    detector.model.decoder.bbox_embed = detector.bbox_embed


def _d_fine_losses(
    logits: Tensor,
    labels: list[dict[str, Tensor]],
    device: torch.device,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Tensor,
    outputs_coord: Tensor,
    denoising_meta_values: dict[str, Any] | None = None,
    **others: Any,
) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Return D-FINE's losses as transformers computes them, but with each layer's boxes paired with its own corners.

    The first of the (N, 1 + layers, Q, ...) outputs are those before the refinement, which have no corners.
    """
    from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss

    _, losses, auxiliary = DFineForObjectDetectionLoss(
        logits, labels, device, pred_boxes, config, outputs_class[:, 1:], outputs_coord[:, 1:],
        denoising_meta_values=denoising_meta_values, **others,
    )  # fmt: skip
    first: dict[str, Any] = {"logits": outputs_class[:, 0], "pred_boxes": outputs_coord[:, 0].clamp(0, 1)}
    if denoising_meta_values is not None:
        groups = {name: value.split(denoising_meta_values["dn_num_split"], dim=1) for name, value in first.items()}
        first = {name: plain for name, (_, plain) in groups.items()}
        first["dn_auxiliary_outputs"] = [{name: noisy for name, (noisy, _) in groups.items()}]
        first["denoising_meta_values"] = denoising_meta_values
    first_losses = DFineLoss(config).to(device)(first, labels)
    losses = {**losses, **{f"{name}_first": value for name, value in first_losses.items()}}
    return sum(losses.values(), logits.new_zeros(())), losses, auxiliary
