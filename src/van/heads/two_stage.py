"""Faster and Mask R-CNN on VAN: their modules, and their export as one graph with static inner shapes.

In PyTorch the network continues with as many boxes as it detected. The graph continues with a fixed number of slots
and masks the empty ones: at most ``rpn_pre_nms_top_n`` anchors of each level, P proposals, D detections. Detections
are clipped to the image, not to the padded size, so the graph takes the sizes of the images as an input. The box
operators at the end return what torchvision's functions of the same purpose return, but where those remove boxes,
these return a mask.

Shapes: padded images (N, 3, R, C) and sizes (N, 2), rows and columns of the images before padding, in float32;
boxes (N, B, 4) as x1, y1, x2, y2 in pixels of the padded image; P proposals and D detections per image: boxes
(N, D, 4), labels (N, D) from 0, scores (N, D) in descending order and -1 in empty slots; roi_masks (N, D, M, M) of
probabilities, stretched over the boxes.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, box_area, nms, roi_align
from torchvision.ops.poolers import initLevelMapper

from van.heads.network import Size, common_padded_size
from van.heads.registry import ExportPart
from van.heads.torchvision_detector import Detector, PyramidBackbone, anchor_generator

ROI_MASKS = "roi_masks"
_MIN_SIDE_PX = 1e-2
"""Detections with a shorter side are removed, as in torchvision."""
_EMPTY_SCORE = -1.0
"""The score of an empty slot."""
_INVALID_BOX = (-2.0, -2.0, -1.0, -1.0)
"""Replaces invalid boxes: outside of every image, and the same for all, so that the first one suppresses the rest."""
_DUMMY_BOX = (-4.0, -4.0, -3.0, -3.0)
"""Prepended together with ``_INVALID_BOX``: PyTorch exports ``nms`` only if its example keeps at least two boxes."""


class FixedStrideRoIAlign(MultiScaleRoIAlign):
    """torchvision's multi-scale RoI align with the strides of the pyramid given.

    torchvision infers them from the first image and keeps them: after an image of 40 x 41 pixels, whose maps have the
    sizes of strides 2 to 16, it would pool at wrong positions in all later images.
    """

    def __init__(self, pyramid: PyramidBackbone, side: int) -> None:
        super().__init__(pyramid.pooled_levels, output_size=side, sampling_ratio=2)
        first = 2 + pyramid.first
        last = first + len(pyramid.pooled_levels) - 1
        self.scales = [2.0**-power for power in range(first, last + 1)]
        self.map_levels = initLevelMapper(
            first, last, canonical_scale=self.canonical_scale, canonical_level=self.canonical_level
        )


def box_modules(pyramid: PyramidBackbone, num_classes: int, anchor_sizes: Sequence[int] | None) -> dict[str, Any]:
    """Return the modules for boxes by torchvision's argument names, as wide as the pyramid."""
    channels, side = pyramid.out_channels, 7
    return {
        "rpn_anchor_generator": anchor_generator(anchor_sizes),
        "box_roi_pool": FixedStrideRoIAlign(pyramid, side),
        "box_head": TwoMLPHead(channels * side**2, 4 * channels),
        "box_predictor": FastRCNNPredictor(4 * channels, num_classes + 1),
    }


def mask_modules(pyramid: PyramidBackbone, num_classes: int) -> dict[str, Any]:
    """Return the modules for masks by torchvision's argument names, as wide as the pyramid."""
    channels = pyramid.out_channels
    return {
        "mask_roi_pool": FixedStrideRoIAlign(pyramid, 14),
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
    }


def two_stage_export(*outputs: str, computes: str) -> ExportPart:
    """Return the export of a two-stage detector; ``computes`` says what the session does with the ``outputs``."""
    return ExportPart(
        extract=TracedTwoStage,
        outputs=outputs,
        decoder=lambda header: TwoStageDecoder(header, outputs),
        note=f"the graph outputs the best detections of any score; the session {computes} in Python",
        takes_sizes=True,
        unfiltered=predict_any_score,
    )


class TracedTwoStage(nn.Module):
    """The exported form of a two-stage ``Detector``: the network's detections, not filtered by their final score.

    Maps padded images and their sizes to boxes, labels, scores and, from Mask R-CNN, roi_masks.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        detector = self.network.detector
        maps = detector.backbone(images)
        proposals, valid = self._proposals(maps, images, sizes)
        levels = [maps[name] for name in detector.roi_heads.box_roi_pool.featmap_names]
        boxes, labels, scores = self._detections(levels, proposals, valid, sizes)
        if detector.roi_heads.mask_roi_pool is None:
            return boxes, labels, scores
        return boxes, labels, scores, self._masks(levels, boxes, labels)

    def _proposals(self, maps: dict[str, Tensor], images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return proposals (N, P, 4) and which of them are valid, (N, P)."""
        detector = self.network.detector
        rpn = detector.rpn
        objectness, deltas = rpn.head(list(maps.values()))
        top_n = rpn.pre_nms_top_n()
        levels = []
        for anchors, level_logits, level_deltas in zip(self._anchors(maps, images), objectness, deltas, strict=True):
            # padded by top_n, so that topk has enough values on a level with few anchors
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
        generator = self.network.detector.rpn.anchor_generator
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
        detector = self.network.detector
        heads = detector.roi_heads
        features = self._roi_align(heads.box_roi_pool, levels, proposals)
        logits, deltas = heads.box_predictor(heads.box_head(features))
        images, count, _ = proposals.shape
        # index 0 is the background class
        decoded = heads.box_coder.decode_single(deltas, proposals.flatten(0, 1)).unflatten(1, (-1, 4))[:, 1:]
        scores = logits.softmax(dim=-1)[:, 1:]
        # the scores of a box sum to 1, so no more of its classes than this can score above the threshold
        limit, classes = heads.score_thresh, scores.shape[1]
        classes_per_box = classes if limit <= 0 else min(classes, math.ceil(1 / limit))
        scores, labels = scores.topk(classes_per_box, dim=1)
        decoded = decoded.gather(1, labels[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decoded.reshape(images, count * classes_per_box, 4), sizes)
        scores, labels = (values.reshape(images, count * classes_per_box) for values in (scores, labels))
        valid = valid[..., None].expand(-1, -1, classes_per_box).flatten(1) & _has_min_side(boxes, _MIN_SIDE_PX)
        max_detections = min(heads.detections_per_img, count * classes_per_box)
        masked = torch.where(valid, scores, _EMPTY_SCORE)
        # boxes under the threshold take part only as far as the slots are not filled by better ones
        min_score = masked.topk(max_detections, dim=1).values[:, -1:].clamp(max=heads.score_thresh)
        valid = valid & (scores >= min_score)
        shifted = offset_by_class(boxes, valid, labels)
        kept = nms_mask(shifted, scores, valid, iou_threshold=heads.nms_thresh)
        scores, indices = torch.where(kept, scores, _EMPTY_SCORE).topk(max_detections, dim=1)
        return _gather_boxes(boxes, indices), labels.gather(1, indices), scores

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask probabilities (N, D, M, M) of each detection's class."""
        detector = self.network.detector
        heads = detector.roi_heads
        logits = heads.mask_predictor(heads.mask_head(self._roi_align(heads.mask_roi_pool, levels, boxes)))
        index = (labels.reshape(-1, 1, 1, 1) + 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index)[:, 0].sigmoid().unflatten(0, labels.shape)

    def _roi_align(self, pooling: Any, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool ``boxes`` (N, B, 4) as ``pooling`` does: (N * B, channels, side, side)."""
        strides = [self.network.detector.backbone.first_stride * 2**level for level in range(len(levels))]
        members = assign_levels(boxes.flatten(0, 1), pooling, strides)
        size, ratio = pooling.output_size, pooling.sampling_ratio
        return multiscale_roi_align(levels, boxes, members, strides=strides, output_size=size, sampling_ratio=ratio)


class TwoStageDecoder:
    """The post-processing of Faster and Mask R-CNN."""

    padded_size = staticmethod(common_padded_size)

    def __init__(self, header: Any, outputs: Sequence[str]) -> None:
        default = inspect.signature(FasterRCNN).parameters["box_score_thresh"].default
        self._min_score = max(header.model_options.get("box_score_thresh", default), _EMPTY_SCORE)
        self._outputs = outputs

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Return the detections with a sufficient score, with masks at the image's size."""
        predictions = []
        for index, size in enumerate(sizes):
            image_outputs = [output[index] for output in outputs]
            detections = valid_detections(image_outputs, self._outputs, min_score=self._min_score)
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
    """Return the detections of any score for one image (3, H, W), by the network in PyTorch itself."""
    assert isinstance(network, Detector)
    detector = network.detector
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


def _has_min_side(boxes: Tensor, side_px: float) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= side_px).all(dim=-1)


def _gather_boxes(boxes: Tensor, indices: Tensor) -> Tensor:
    return boxes.gather(1, indices[..., None].expand(-1, -1, 4))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes to their images."""
    edges = sizes.flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), edges)


def offset_by_class(boxes: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
    """Offset boxes by their class, so that those of two classes never overlap; torchvision's ``batched_nms`` does so.

    ``boxes`` are clipped, ``labels`` (N, B) count from 0; boxes that are not ``valid`` (N, B) have no effect.
    """
    max_coordinate = torch.where(valid[..., None], boxes, 0.0).amax(dim=(1, 2)) + 1
    return boxes + ((labels + 1) * max_coordinate[:, None])[..., None]


def nms_mask(boxes: Tensor, scores: Tensor, valid: Tensor, *, iou_threshold: float) -> Tensor:
    """Return the mask (N, B) of the ``valid`` boxes that non-maximum suppression keeps; scores are at least 0."""
    invalid, dummy = (torch.tensor(corners, device=boxes.device) for corners in (_INVALID_BOX, _DUMMY_BOX))
    boxes = torch.where(valid[..., None], boxes, invalid)
    boxes = torch.cat([torch.stack([invalid, dummy]).expand(len(boxes), 2, 4), boxes], dim=1)
    scores = nn.functional.pad(torch.where(valid, scores, -1.0), (2, 0), value=-1.0)
    masks = []
    # the nms operator takes one image at a time
    for image_boxes, image_scores in zip(boxes.unbind(), scores.unbind(), strict=True):
        kept = nms(image_boxes, image_scores, iou_threshold)
        masks.append(torch.zeros_like(image_scores).scatter(0, kept, 1.0) > 0)
    return torch.stack(masks)[:, 2:] & valid


def assign_levels(boxes: Tensor, pooling: Any, strides: Sequence[int]) -> Tensor:
    """Return the pyramid level (B,) from which each of (B, 4) is pooled; larger boxes use coarser levels.

    torchvision's ``MultiScaleRoIAlign`` ``pooling`` defines the rule; the ``strides`` of the levels are powers of two.
    """
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    sides = box_area(boxes).sqrt()
    level = torch.floor(pooling.canonical_level + torch.log2(sides / pooling.canonical_scale) + 1e-6)
    return level.clamp(first, last).to(torch.int64) - first


def multiscale_roi_align(
    maps: Sequence[Tensor], boxes: Tensor, levels: Tensor, *, strides: Sequence[int], output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:  # fmt: skip
    """Pool each box from its level; return (N * B, channels, *output_size) in the dtype of the maps."""
    images, count, _ = boxes.shape
    image_index = torch.arange(images, device=boxes.device).repeat_interleave(count)
    rois = torch.cat([image_index[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
    pooled = rois.new_zeros((len(rois), maps[0].shape[1], *output_size))
    for level, (feature_map, stride) in enumerate(zip(maps, strides, strict=True)):
        members = (levels == level).nonzero().flatten()
        features = roi_align(
            feature_map.float(), rois.index_select(0, members), output_size, 1 / stride, sampling_ratio=sampling_ratio
        )
        pooled = pooled.index_put((members,), features)
    return pooled.to(maps[0].dtype)
