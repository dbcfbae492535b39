"""Detection with VAN and a transformer decoder, as transformers has them.

Shapes: images are a list of (3, H, W) normalized floats of any size; boxes (K, 4) as x1, y1, x2, y2 in pixels of the
image; labels (K,) from 0. Inside, Q queries per image: logits (N, Q, classes) and boxes (N, Q, 4) as center, width
and height, each a fraction of the reference size (rows, columns).

Reference sizes. Images are padded at the bottom and on the right. D-FINE and RT-DETR select their queries from the
cells of the feature maps and have no padding mask: their boxes and targets are fractions of the padded size.
Deformable DETR has one, and its boxes are fractions of the size of the unmasked area; each of its four levels (strides
8 to 64) rounds that to its own cells, so here the mask ends at a multiple of 64, where all of them agree. Position
embeddings and initial boxes depend on the padded size. D-FINE and RT-DETR learn box sizes as fractions of the padded
size, and faster from images that are all resized to one size.

Differences to transformers' defaults, for training from scratch: VAN's BatchNorms are trained; every decoder layer has
its own head; the initial class probabilities are low, whatever the number of classes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from van.backbones.van import VAN
from van.heads.network import (
    HeadNetwork,
    Size,
    check_targets,
    common_padded_size,
    predict_by_padded_size,
    sizes_of,
    stack_padded,
)
from van.heads.registry import ExportPart
from van.heads.transformers_adapter import VanBackbone, check_sizes, create_network, sum_losses_by_type

_LEVELS = (1, 2, 3)
_STRIDES = (8, 16, 32)
"""The detectors use the last three stages of VAN, with these strides in pixels."""
_QUERIES = 300
_MAX_DETECTIONS = 100
_PRIOR_PROBABILITY = 0.01
"""The initial probability of each class for a query, as in RetinaNet: most queries match no object."""
PRIOR_LOGIT = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceSizes:
    """The padded size of a batch, and what its boxes are fractions of; see the module docstring."""

    queries: int
    selects_queries: bool

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return rows and columns to which images of these sizes are padded in one batch."""
        rows, columns = common_padded_size(sizes, multiple=32 if self.selects_queries else 64)
        if self.selects_queries:  # a small image is padded to have enough cells
            while sum((rows // stride) * (columns // stride) for stride in _STRIDES) < self.queries:
                rows, columns = (rows + 32, columns) if rows <= columns else (rows, columns + 32)
        return rows, columns

    def of_images(self, sizes: Sequence[Size], padded_size: Size) -> list[Size]:
        """Return for each image the rows and columns that its boxes are fractions of."""
        return [padded_size if self.selects_queries else self.padded_size([size]) for size in sizes]


class TransformerDetector(HeadNetwork):
    """One of transformers' detectors on VAN, untrained.

    In training it takes targets and returns the weighted losses by name, whose sum is minimized; in evaluation it
    returns for each image ``boxes``, ``labels`` and ``scores``, by decreasing score.

    Args:
        backbone: a VAN.
        title, prefix: the detector's name in its paper, and of its classes in transformers.
        loss_weights: weights of the losses by transformers' names.
        num_classes: classes of objects, without a background class.
        selects_queries: whether the queries are selected from the cells of the feature maps.
        queries: the most objects per image.
        channels: of the feature maps and the queries, a multiple of 64.
        decoder_layers: number of layers of the transformer decoder.
        max_detections: the most detections per image.
        options: further fields of transformers' configuration.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: an option is unknown, or a size is too small.
    """

    def __init__(
        self, backbone: VAN, title: str, prefix: str, loss_weights: dict[str, float], *, num_classes: int,
        selects_queries: bool, queries: int = _QUERIES, channels: int = 256, decoder_layers: int = 6,
        max_detections: int = _MAX_DETECTIONS, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        counts = {"queries": queries, "decoder_layers": decoder_layers, "max_detections": max_detections}
        check_sizes(counts, channels=channels)
        self.num_classes, self.max_detections, self.loss_weights = num_classes, max_detections, loss_weights
        self.reference_sizes = ReferenceSizes(queries=queries, selects_queries=selects_queries)
        fields = {
            "num_labels": num_classes,
            "tie_word_embeddings": False,  # each decoder layer has its own head
            "auxiliary_loss": True,
            "num_queries": queries,
            "d_model": channels,
            "encoder_ffn_dim": 4 * channels,
            "decoder_ffn_dim": 4 * channels,
            "decoder_layers": decoder_layers,
        }
        if selects_queries:
            fields |= {
                "encoder_in_channels": [level["num_chs"] for level in backbone.feature_info[1:]],
                "encoder_hidden_dim": channels,
                "decoder_in_channels": [channels] * len(_LEVELS),
                "freeze_backbone_batch_norms": False,
                "initializer_bias_prior_prob": _PRIOR_PROBABILITY,
            }
        names = (f"{prefix}Config", f"{prefix}ForObjectDetection")
        self.detector = create_network(backbone, title, *names, levels=_LEVELS, fields={**fields, **options})
        if selects_queries:  # the decoder has the heads that are used; these are unused copies
            del self.detector.class_embed, self.detector.bbox_embed
        # transformers' own wrapper splits VAN into its stages and, in Deformable DETR, freezes BatchNorms
        self.detector.model.backbone.model = VanBackbone(backbone, _LEVELS)

    @property
    def backbone(self) -> VAN:  # pyrefly: ignore[bad-override]
        """The VAN; the weights of a classifier without its head can be loaded into it."""
        return self.detector.model.backbone.model.van

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if not self.training:
            return predict_by_padded_size(images, self.reference_sizes.padded_size, self._predict_batch)
        sizes = sizes_of(images)
        padded_size = self.reference_sizes.padded_size(sizes)
        labels = []
        reference_sizes = self.reference_sizes.of_images(sizes, padded_size)
        for target, reference_size in zip(check_targets(images, targets), reference_sizes, strict=True):
            boxes = target["boxes"].float()
            fractions = box_convert(boxes / _box_scale(reference_size, boxes), "xyxy", "cxcywh")
            labels.append({"boxes": fractions, "class_labels": target["labels"]})
        outputs = self.detector(**self._inputs(images, padded_size), labels=labels)
        losses = sum_losses_by_type(outputs.loss_dict, self.loss_weights)
        if (noise := getattr(self.detector.model, "denoising_class_embed", None)) is not None:
            # a batch without objects does not use it, but distributed training waits for its gradient anyway
            losses["vfl"] = losses["vfl"] + 0.0 * noise.weight.sum()
        return losses

    def _predict_batch(self, images: list[Tensor], padded_size: Size) -> list[dict[str, Tensor]]:
        outputs = self.detector(**self._inputs(images, padded_size))
        sizes = sizes_of(images)
        return decode(
            outputs.logits,
            outputs.pred_boxes,
            reference_sizes=self.reference_sizes.of_images(sizes, padded_size),
            sizes=sizes,
            max_detections=self.max_detections,
        )

    def _inputs(self, images: list[Tensor], padded_size: Size) -> dict[str, Tensor]:
        inputs = {"pixel_values": stack_padded(images, padded_size)}
        if not self.reference_sizes.selects_queries:
            reference_sizes = self.reference_sizes.of_images(sizes_of(images), padded_size)
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
    detections, classes = [], logits.shape[-1]
    rows = zip(logits.float(), boxes.float(), reference_sizes, sizes, strict=True)
    for image_logits, image_boxes, reference_size, size in rows:
        corners = box_convert(image_boxes, "cxcywh", "xyxy") * _box_scale(reference_size, boxes)
        corners = clip_boxes_to_image(corners, size)
        inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        corners, scores = corners[inside], image_logits[inside].sigmoid()
        best, indices = scores.flatten().topk(min(max_detections, scores.numel()))
        detections.append({"boxes": corners[indices // classes], "labels": indices % classes, "scores": best})
    return detections


def _box_scale(reference_size: Size, like: Tensor) -> Tensor:
    rows, columns = reference_size
    return torch.tensor([columns, rows, columns, rows], dtype=torch.float32, device=like.device)


def query_export(*, selects_queries: bool) -> ExportPart:
    """Return the export of a ``TransformerDetector`` up to the scores and boxes of all queries."""
    return ExportPart(
        extract=TracedQueryHead,
        outputs=("logits", "pred_boxes"),
        decoder=lambda header: QueryDecoder(header, selects_queries=selects_queries),
        note="the graph outputs scores and boxes of all queries; the session selects the best in Python",
        fixed_reason="its queries depend on the padded size and the batch size",
    )


class TracedQueryHead(nn.Module):
    """The exported part of a ``TransformerDetector``; maps padded images to logits and boxes of the queries.

    In evaluation a batch contains only images of one padded size, which counts as valid as a whole: Deformable DETR's
    mask is all ones, which is also its default, and becomes a constant of the graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, TransformerDetector)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network.detector(pixel_values=images)
        return outputs.logits, outputs.pred_boxes


class QueryDecoder:
    """The post-processing of a ``TransformerDetector``, with its own code."""

    def __init__(self, header: Any, *, selects_queries: bool) -> None:
        queries = header.model_options.get("queries", _QUERIES)
        self.padded_size = ReferenceSizes(queries=queries, selects_queries=selects_queries).padded_size
        self._max_detections = header.model_options.get("max_detections", _MAX_DETECTIONS)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Select the best pairs of query and class."""
        reference_sizes = [padded_size] * len(sizes)
        return decode(*outputs, reference_sizes=reference_sizes, sizes=sizes, max_detections=self._max_detections)
