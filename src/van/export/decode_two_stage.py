"""Export of Faster and Mask R-CNN as one graph with static inner shapes, and the post-processing of its outputs.

In PyTorch the network continues with as many boxes as it detected. The graph continues with a fixed number of slots
and masks the empty ones: at most ``rpn_pre_nms_top_n`` anchors of each level, P proposals, D detections. Detections
are clipped to the image, not to the padded size, so the graph takes the sizes of the images as an input.

Shapes: padded images (N, 3, R, C) and sizes (N, 2), rows and columns of the images before padding, in float32;
P proposals and D detections per image: boxes (N, D, 4), labels (N, D) from 0, scores (N, D) in descending order and
-1 in empty slots; roi_masks (N, D, M, M) of probabilities, stretched over the boxes.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from van.export.box_ops import assign_levels, clip_boxes, multiscale_roi_align, nms_mask, offset_by_class
from van.export.header import Header
from van.models.detectors import Detector
from van.models.padding import Size, common_padded_size

ROI_MASKS = "roi_masks"
_BOX_OUTPUTS = ("boxes", "labels", "scores")
OUTPUTS = {"faster_rcnn": _BOX_OUTPUTS, "mask_rcnn": (*_BOX_OUTPUTS, ROI_MASKS)}
"""The outputs of each head's graph."""
_MIN_SIDE_PX = 1e-2
"""Detections with a shorter side are removed, as in torchvision."""
_EMPTY_SCORE = -1.0
"""The score of an empty slot."""


class TracedTwoStage(nn.Module):
    """The exported form of a two-stage ``Detector``: the network's detections, not filtered by their final score."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network
        self._first_stride = 2 ** (2 + network.detector.backbone.first)  # pyrefly: ignore

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the head's ``OUTPUTS``."""
        detector: Any = self.network.detector
        maps = detector.backbone(images)
        proposals, valid = self._proposals(maps, images, sizes)
        levels = [maps[name] for name in detector.roi_heads.box_roi_pool.featmap_names]
        boxes, labels, scores = self._detections(levels, proposals, valid, sizes)
        if detector.roi_heads.mask_roi_pool is None:
            return boxes, labels, scores
        return boxes, labels, scores, self._masks(levels, boxes, labels)

    def _proposals(self, maps: dict[str, Tensor], images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return proposals (N, P, 4) and which of them are valid, (N, P)."""
        detector: Any = self.network.detector
        rpn = detector.rpn
        objectness, deltas = rpn.head(list(maps.values()))
        top_n = rpn.pre_nms_top_n()
        levels = []
        for anchors, level_logits, level_deltas in zip(self._anchors(maps, images), objectness, deltas, strict=True):
            # Padded by top_n, so that topk has enough values on a level with few anchors.
            flat = nn.functional.pad(level_logits.permute(0, 2, 3, 1).flatten(1), (0, top_n), value=-math.inf)
            count = level_logits.shape[1]
            level_deltas = level_deltas.unflatten(1, (count, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            logits, indices = flat.topk(top_n, dim=1)
            inside = indices.clamp(max=anchors.shape[0] - 1)
            level_anchors = anchors.index_select(0, inside.flatten()).unflatten(0, inside.shape)
            levels.append((logits, _gather_boxes(level_deltas, inside), level_anchors))
        logits, deltas, anchors = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), anchors.flatten(0, 1)).reshape(anchors.shape)
        boxes, scores = clip_boxes(boxes, sizes), logits.sigmoid()
        valid = (logits > -math.inf) & (scores >= rpn.score_thresh) & _has_min_side(boxes, rpn.min_size)
        by_level = zip(*(values.split(top_n, dim=1) for values in (boxes, scores, valid)), strict=True)
        kept = torch.cat([nms_mask(*level, iou_threshold=rpn.nms_thresh) for level in by_level], dim=1)
        count = min(rpn.post_nms_top_n(), boxes.shape[1])
        scores, indices = torch.where(kept, scores, _EMPTY_SCORE).topk(count, dim=1)
        return _gather_boxes(boxes, indices), scores > _EMPTY_SCORE

    def _anchors(self, maps: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """Return each level's anchors (rows x columns x shapes, 4) in the order of torchvision's generator."""
        generator: Any = self.network.detector.rpn.anchor_generator  # pyrefly: ignore
        anchors = []
        for shapes, level in zip(generator.cell_anchors, maps.values(), strict=True):
            rows, columns = level.shape[2:]
            offsets_y, offsets_x = (
                torch.arange(locations, device=images.device) * (side // locations)
                for locations, side in ((rows, images.shape[2]), (columns, images.shape[3]))
            )
            y, x = offsets_y[:, None].expand(rows, columns), offsets_x[None].expand(rows, columns)
            centers = torch.stack((x, y, x, y), dim=2).reshape(-1, 1, 4)
            anchors.append((centers + shapes.to(images.device, torch.float32)).reshape(-1, 4))
        return anchors

    def _detections(
        self, levels: Sequence[Tensor], proposals: Tensor, valid: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, labels and scores of the D best detections after non-maximum suppression."""
        detector: Any = self.network.detector
        heads = detector.roi_heads
        features = self._roi_align(heads.box_roi_pool, levels, proposals)
        logits, deltas = heads.box_predictor(heads.box_head(features))
        images, count, _ = proposals.shape
        # Index 0 is the background class.
        decoded = heads.box_coder.decode_single(deltas, proposals.flatten(0, 1)).unflatten(1, (-1, 4))[:, 1:]
        scores = logits.softmax(dim=-1)[:, 1:]
        classes_per_box = _max_classes_above(heads.score_thresh, scores.shape[1])
        scores, labels = scores.topk(classes_per_box, dim=1)
        decoded = decoded.gather(1, labels[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decoded.reshape(images, count * classes_per_box, 4), sizes)
        scores, labels = (values.reshape(images, count * classes_per_box) for values in (scores, labels))
        valid = valid[..., None].expand(-1, -1, classes_per_box).flatten(1) & _has_min_side(boxes, _MIN_SIDE_PX)
        max_detections = min(heads.detections_per_img, count * classes_per_box)
        masked = torch.where(valid, scores, _EMPTY_SCORE)
        # Boxes under the threshold take part only as far as the slots are not filled by better ones.
        min_score = masked.topk(max_detections, dim=1).values[:, -1:].clamp(max=heads.score_thresh)
        valid = valid & (scores >= min_score)
        shifted = offset_by_class(boxes, valid, labels)
        kept = nms_mask(shifted, scores, valid, iou_threshold=heads.nms_thresh)
        scores, indices = torch.where(kept, scores, _EMPTY_SCORE).topk(max_detections, dim=1)
        return _gather_boxes(boxes, indices), labels.gather(1, indices), scores

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask probabilities (N, D, M, M) of each detection's class."""
        detector: Any = self.network.detector
        heads = detector.roi_heads
        logits = heads.mask_predictor(heads.mask_head(self._roi_align(heads.mask_roi_pool, levels, boxes)))
        index = (labels.reshape(-1, 1, 1, 1) + 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index)[:, 0].sigmoid().unflatten(0, labels.shape)

    def _roi_align(self, pooling: Any, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool ``boxes`` (N, B, 4) as ``pooling`` does: (N * B, channels, side, side)."""
        strides = [self._first_stride * 2**level for level in range(len(levels))]
        return multiscale_roi_align(
            levels,
            boxes,
            assign_levels(boxes.flatten(0, 1), pooling, strides),
            strides=strides,
            output_size=pooling.output_size,
            sampling_ratio=pooling.sampling_ratio,
        )


class TwoStageDecoder:
    """The post-processing of Faster and Mask R-CNN."""

    def __init__(self, header: Header) -> None:
        default = inspect.signature(FasterRCNN).parameters["box_score_thresh"].default
        self._min_score = max(header.model_options.get("box_score_thresh", default), _EMPTY_SCORE)
        self._names = OUTPUTS[header.model_options["head"]]

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return the padded size, multiples of 32 pixels."""
        return common_padded_size(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Return the detections with a sufficient score, with masks at the image's size."""
        predictions = []
        for place, size in enumerate(sizes):
            image_outputs = [output[place] for output in outputs]
            detections = valid_detections(image_outputs, self._names, min_score=self._min_score)
            if ROI_MASKS in detections:
                roi_masks = detections.pop(ROI_MASKS)[:, None]
                detections["masks"] = paste_masks_in_image(roi_masks, detections["boxes"], size)
            predictions.append(detections)
        return predictions


def valid_detections(
    outputs: Sequence[Tensor], names: Sequence[str], *, min_score: float = _EMPTY_SCORE
) -> dict[str, Tensor]:
    """Return one image's detections by name whose score exceeds ``min_score``; roi_masks are (K, M, M)."""
    detections = dict(zip(names, outputs, strict=True))
    kept = detections["scores"] > min_score
    return {name: output[kept] for name, output in detections.items()}


def predict_any_score(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the detections of any score for one image (3, H, W), by the network in PyTorch itself.

    The format is that of ``valid_detections``.
    """
    assert isinstance(network, Detector)
    detector: Any = network.detector
    heads = detector.eval().roi_heads
    threshold, heads.score_thresh = heads.score_thresh, _EMPTY_SCORE
    try:
        images, _ = detector.transform([image])
        maps = detector.backbone(images.tensors)
        proposals, _ = detector.rpn(images, maps)
        (detections,), _ = heads(maps, proposals, images.image_sizes)
    finally:
        heads.score_thresh = threshold
    detections["labels"] = detections["labels"] - network.first_label
    if "masks" in detections:
        detections[ROI_MASKS] = detections.pop("masks")[:, 0]
    return detections


def _max_classes_above(score: float, num_classes: int) -> int:
    """Return how many classes of one box can score more than ``score``: the scores of all classes sum to 1."""
    return num_classes if score <= 0 else min(num_classes, math.ceil(1 / score))


def _has_min_side(boxes: Tensor, side_px: float) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= side_px).all(dim=-1)


def _gather_boxes(boxes: Tensor, indices: Tensor) -> Tensor:
    return boxes.gather(1, indices[..., None].expand(-1, -1, 4))
