"""Targets of an explanation: the differentiable score of a class, of a class's region, or of a detection.

Shapes: rectangles are left, top, right, bottom in pixels of the original image.
Source: for regions, Seg-Grad-CAM, Vinogradova et al. 2020, arXiv:2002.11434.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from van.errors import UsageError
from van.images import Box
from van.predictions import Classification, Detections, Segmentation
from van.tasks.base import ImageMeta

MIN_IOU = 0.1
"""Minimum IoU of a given box and the detection that it selects."""


class Target(NamedTuple):
    """A score to be differentiated: class index, the confidence to show, the scalar, and the box of a detection."""

    index: int
    confidence: float | None
    score: Tensor
    box: Box | None = None


def resolve_class_indices(class_names: Sequence[str], classes: Sequence[str | int]) -> list[int]:
    """Return the index of each class, given by name or by index.

    Raises:
        UsageError: there is no such class; similar names are listed.
    """
    known = {label.casefold(): index for index, label in reversed(list(enumerate(class_names)))}
    indices = []
    for name in classes:
        index = name if isinstance(name, int) else known.get(name.casefold())
        if index is None and isinstance(name, str):
            # ImageNet's names are lists of synonyms: "tench, Tinca tinca"
            matches = [i for label, i in known.items() if name.casefold() in map(str.strip, label.split(","))]
            index = min(matches) if matches else int(name) if name.isdecimal() else None
        if index is None or not 0 <= index < len(class_names):
            raise UsageError(f"classes: expected {_known_names(class_names, str(name))}, got {name!r}")
        indices.append(index)
    return indices


def classification_targets(
    logits: Tensor, predictions: Sequence[Classification], classes: Sequence[int] | None, top: int
) -> list[list[Target]]:
    """Return the given classes of each image, or its ``top`` ones if None.

    Args:
        logits: (N, K).
    """
    targets = []
    for row, prediction in zip(logits, predictions, strict=True):
        indices = classes if classes is not None else [ranked.index for ranked in prediction.top(top)]
        targets.append([Target(index, prediction.scores[index], row[index]) for index in indices])
    return targets


def segmentation_targets(
    maps: Tensor, prediction: Segmentation, classes: Sequence[int] | None, top: int
) -> list[Target]:
    """Return the sum of each class's scores over its predicted region, or over the image if it has none.

    Args:
        maps: (K, h, w), the score of each class at each position.
        classes: class indices; the ``top`` largest ones if None.
    """
    best_class = maps.argmax(dim=0)
    pixels = prediction.segment_ids.size
    areas = dict.fromkeys(range(len(prediction.class_names)), 0)
    for segment in prediction.segments:
        areas[segment.index] += int((prediction.segment_ids == segment.id).sum())
    if classes is None:
        classes = [index for index in sorted(areas, key=lambda i: -areas[i])[:top] if areas[index]]
    targets = []
    for index in classes:
        region = best_class == index
        score = maps[index][region].sum() if region.any() else maps[index].sum()
        targets.append(Target(index, areas[index] / pixels, score))
    return targets


def detection_targets(
    output: Mapping[str, Tensor],
    prediction: Detections,
    image_meta: ImageMeta,
    classes: Sequence[int] | None,
    top: int,
    box: Box | None,
) -> list[Target]:
    """Return scores of detections: the one that matches ``box`` best, the ``top`` of each class, or the ``top`` of all.

    Args:
        output: boxes (K, 4) in pixels of the network's input, labels (K,), scores (K,).
        prediction: the detections above the score threshold.

    Raises:
        UsageError: no detection overlaps ``box``.
    """
    vertical, horizontal = (
        original / resized for original, resized in zip(image_meta.original_size, image_meta.input_size, strict=True)
    )
    boxes = output["boxes"].detach().float().cpu() * torch.tensor([horizontal, vertical, horizontal, vertical])
    labels, scores = output["labels"].tolist(), output["scores"].detach().float().tolist()
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if box is not None:
        candidates = [place for place in order if classes is None or labels[place] in classes]
        selected = [_best_match(boxes, candidates, box, image_meta.name)]
    elif classes is not None:
        selected = [place for index in classes for place in [p for p in order if labels[p] == index][:top]]
    else:
        selected = order[: min(top, len(prediction))]
    targets = []
    for place in selected:
        left, top_side, right, bottom = boxes[place].tolist()
        corners = (left, top_side, right, bottom)
        targets.append(Target(labels[place], scores[place], output["scores"][place], corners))
    return targets


def class_score_maps(output: Any) -> Tensor:
    """Return the score of each class at each position, (K, h, w), of a semantic or panoptic segmentation.

    Panoptic scores follow Mask2Former: the sum over queries of class probability times mask probability.
    """
    if isinstance(output, Tensor):
        return output.float()
    classes = output["class_logits"].float().softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", classes, output["mask_logits"].float().sigmoid())


def _best_match(boxes: Tensor, order: Sequence[int], box: Box, name: str) -> int:
    """Return the index of the detection with the highest IoU to ``box``."""
    if order:
        overlaps = box_iou(torch.tensor([box]), boxes[list(order)])[0]
        best = int(overlaps.argmax())
        if overlaps[best] >= MIN_IOU:
            return order[best]
    raise UsageError(
        f"{name}: no detection has an IoU of {MIN_IOU} or more with box {', '.join(f'{side:g}' for side in box)} "
        "(left, top, right, bottom); list the detections with van predict"
    )


def _known_names(class_names: Sequence[str], name: str) -> str:
    """Return all class names if they are at most 20, else those similar to ``name`` and their number."""
    import difflib

    if len(class_names) <= 20:
        return f"one of {', '.join(class_names)}"
    names = [synonym.strip() for label in class_names for synonym in label.split(",")]
    similar = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"one of {len(class_names):,} classes ({', '.join([*similar, '...'])})"
