"""Faster and Mask R-CNN as one graph of fixed inner sizes, and what makes things of its outputs.

Where the network in PyTorch goes on with as many boxes as it found, the graph goes on with a fixed number of places,
and marks those that hold none: at most ``rpn_pre_nms_top_n`` anchors of each level, P proposals, D things. Boxes end
at the picture's edge, not at the canvas's, which is why the graph is told the pictures' own sizes.

Shapes: a canvas (N, 3, R, C) and sizes (N, 2), rows and columns of the pictures on it, in float32; P proposals and D
things a picture: boxes (N, D, 4), labels (N, D) from 0, scores (N, D), best first and -1 in places that hold none;
masks_in_boxes (N, D, M, M) of probabilities, stretched over the boxes.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from van.export.header import Header
from van.export.regions import apart, clipped, level_of, only_the_best, pool
from van.models.canvas import Size, common_canvas
from van.models.detectors import Detector

MASKS = "masks_in_boxes"
_OF_BOXES = ("boxes", "labels", "scores")
OUTPUTS = {"faster_rcnn": _OF_BOXES, "mask_rcnn": (*_OF_BOXES, MASKS)}
"""What the graph of each gives."""
_EMPTY_PX = 1e-2
"""Things with a shorter side are left out, as torchvision does."""
_NONE = -1.0
"""The score of a place that holds nothing."""


class TwoStages(nn.Module):
    """A two-stage ``Detector`` as it is exported; its answers are the network's own, cut off nowhere by their score."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Detector)
        self.network = network
        self._first_stride = 2 ** (2 + network.detector.backbone.first)  # pyrefly: ignore

    def forward(self, canvas: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """The ``OUTPUTS``."""
        detector: Any = self.network.detector
        maps = detector.backbone(canvas)
        proposals, real = self._proposals(maps, canvas, sizes)
        levels = [maps[name] for name in detector.roi_heads.box_roi_pool.featmap_names]
        boxes, labels, scores = self._things(levels, proposals, real, sizes)
        if detector.roi_heads.mask_roi_pool is None:
            return boxes, labels, scores
        return boxes, labels, scores, self._masks(levels, boxes, labels)

    def _proposals(self, maps: dict[str, Tensor], canvas: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) that may hold something, and which of them are any, (N, P)."""
        detector: Any = self.network.detector
        rpn = detector.rpn
        objectness, deltas = rpn.head(list(maps.values()))
        best = rpn.pre_nms_top_n()
        found = []
        for anchors, chances, moves in zip(self._anchors(maps, canvas), objectness, deltas, strict=True):
            flat = nn.functional.pad(chances.permute(0, 2, 3, 1).flatten(1), (0, best), value=-math.inf)
            count = chances.shape[1]
            moves = moves.unflatten(1, (count, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            logits, places = flat.topk(best, dim=1)
            inside = places.clamp(max=anchors.shape[0] - 1)
            laid = anchors.index_select(0, inside.flatten()).unflatten(0, inside.shape)
            found.append((logits, _rows(moves, inside), laid))
        logits, moves, anchors = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        boxes = rpn.box_coder.decode_single(moves.flatten(0, 1), anchors.flatten(0, 1)).reshape(anchors.shape)
        boxes, scores = clipped(boxes, sizes), logits.sigmoid()
        real = (logits > -math.inf) & (scores >= rpn.score_thresh) & _no_smaller(boxes, rpn.min_size)
        levels = zip(*(each.split(best, dim=1) for each in (boxes, scores, real)), strict=True)
        kept = torch.cat([only_the_best(*level, threshold=rpn.nms_thresh) for level in levels], dim=1)
        count = min(rpn.post_nms_top_n(), boxes.shape[1])
        scores, places = torch.where(kept, scores, _NONE).topk(count, dim=1)
        return _rows(boxes, places), scores > _NONE

    def _anchors(self, maps: dict[str, Tensor], canvas: Tensor) -> list[Tensor]:
        """Of each level (rows x columns x shapes, 4), as torchvision's generator lays them out."""
        generator: Any = self.network.detector.rpn.anchor_generator  # pyrefly: ignore
        anchors = []
        for shapes, level in zip(generator.cell_anchors, maps.values(), strict=True):
            rows, columns = level.shape[2:]
            down, along = (
                torch.arange(cells, device=canvas.device) * (side // cells)
                for cells, side in ((rows, canvas.shape[2]), (columns, canvas.shape[3]))
            )
            y, x = down[:, None].expand(rows, columns), along[None].expand(rows, columns)
            middles = torch.stack((x, y, x, y), dim=2).reshape(-1, 1, 4)
            anchors.append((middles + shapes.to(canvas.device, torch.float32)).reshape(-1, 4))
        return anchors

    def _things(
        self, levels: Sequence[Tensor], proposals: Tensor, real: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and scores of the D best, without doubles."""
        detector: Any = self.network.detector
        heads = detector.roi_heads
        regions = self._pooled(heads.box_roi_pool, levels, proposals)
        logits, moves = heads.box_predictor(heads.box_head(regions))
        pictures, count, _ = proposals.shape
        moved = heads.box_coder.decode_single(moves, proposals.flatten(0, 1)).unflatten(1, (-1, 4))[:, 1:]
        scores = logits.softmax(dim=-1)[:, 1:]
        likely = _most_above(heads.score_thresh, scores.shape[1])
        scores, labels = scores.topk(likely, dim=1)
        moved = moved.gather(1, labels[..., None].expand(-1, -1, 4))
        boxes = clipped(moved.reshape(pictures, count * likely, 4), sizes)
        scores, labels = (each.reshape(pictures, count * likely) for each in (scores, labels))
        real = real[..., None].expand(-1, -1, likely).flatten(1) & _no_smaller(boxes, _EMPTY_PX)
        most = min(heads.detections_per_img, count * likely)
        masked = torch.where(real, scores, _NONE)
        floor = masked.topk(most, dim=1).values[:, -1:].clamp(max=heads.score_thresh)
        real = real & (scores >= floor)
        kept = only_the_best(apart(boxes, real, labels), scores, real, threshold=heads.nms_thresh)
        scores, places = torch.where(kept, scores, _NONE).topk(most, dim=1)
        return _rows(boxes, places), labels.gather(1, places), scores

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """(N, D, M, M) of the things' own classes."""
        detector: Any = self.network.detector
        heads = detector.roi_heads
        logits = heads.mask_predictor(heads.mask_head(self._pooled(heads.mask_roi_pool, levels, boxes)))
        place = (labels.reshape(-1, 1, 1, 1) + 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, place)[:, 0].sigmoid().unflatten(0, labels.shape)

    def _pooled(self, pooling: Any, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """What ``pooling`` makes of ``boxes`` (N, B, 4): (N * B, channels, side, side)."""
        strides = [self._first_stride * 2**level for level in range(len(levels))]
        level = level_of(boxes.flatten(0, 1), pooling, strides)
        return pool(levels, boxes, level, strides=strides, side=pooling.output_size, samples=pooling.sampling_ratio)


class TwoStageDecoder:
    """That of Faster and Mask R-CNN."""

    def __init__(self, header: Header) -> None:
        named = inspect.signature(FasterRCNN).parameters["box_score_thresh"].default
        self._least = max(header.model_options.get("box_score_thresh", named), _NONE)
        self._names = OUTPUTS[header.model_options["head"]]

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels."""
        return common_canvas(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """The things that score enough, with masks in the picture's own size."""
        found = []
        for place, size in enumerate(sizes):
            things = things_of([output[place] for output in outputs], self._names, least=self._least)
            if MASKS in things:
                things["masks"] = paste_masks_in_image(things.pop(MASKS)[:, None], things["boxes"], size)
            found.append(things)
        return found


def things_of(outputs: Sequence[Tensor], names: Sequence[str], *, least: float = _NONE) -> dict[str, Tensor]:
    """One picture's things by name, those that score more than ``least``; masks_in_boxes are (K, M, M)."""
    found = dict(zip(names, outputs, strict=True))
    enough = found["scores"] > least
    return {name: output[enough] for name, output in found.items()}


def of_any_score(network: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    """What ``things_of`` gives, by the network in PyTorch's own way, for one picture (3, H, W)."""
    assert isinstance(network, Detector)
    detector: Any = network.detector
    heads = detector.eval().roi_heads
    least, heads.score_thresh = heads.score_thresh, _NONE
    try:
        pictures, _ = detector.transform([picture])
        maps = detector.backbone(pictures.tensors)
        proposals, _ = detector.rpn(pictures, maps)
        (found,), _ = heads(maps, proposals, pictures.image_sizes)
    finally:
        heads.score_thresh = least
    found["labels"] = found["labels"] - network.first_label
    if "masks" in found:
        found[MASKS] = found.pop("masks")[:, 0]
    return found


def _most_above(score: float, classes: int) -> int:
    """How many classes of one box can score more: all of them together have 1."""
    return classes if score <= 0 else min(classes, math.ceil(1 / score))


def _no_smaller(boxes: Tensor, side_px: float) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= side_px).all(dim=-1)


def _rows(boxes: Tensor, places: Tensor) -> Tensor:
    return boxes.gather(1, places[..., None].expand(-1, -1, 4))
