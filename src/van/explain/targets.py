"""What is to be explained: a class of a picture, a class's region, or one found thing, as a score to be derived.

Shapes: rectangles are left, top, right, bottom in pixels of the original picture.
Sources: for regions Seg-Grad-CAM, Vinogradova et al. 2020, arXiv:2002.11434.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from van.errors import UsageError
from van.pictures import Window
from van.results import Boxes, Classes, Masks
from van.tasks.base import Frame

LEAST_IOU = 0.1
"""A given box must share at least so much with a found one."""


class Target(NamedTuple):
    """One score: its class, how sure the network is, the scalar itself, and the box that it is about, if any."""

    index: int
    certainty: float | None
    score: Tensor
    box: Window | None = None


def class_indices(labels: Sequence[str], classes: Sequence[str | int]) -> list[int]:
    """The place of each class that is asked for, by name or by number.

    Raises:
        UsageError: there is no such class; names that are near are listed.
    """
    places = {label.casefold(): place for place, label in reversed(list(enumerate(labels)))}
    found = []
    for wanted in classes:
        place = wanted if isinstance(wanted, int) else places.get(wanted.casefold())
        if place is None and isinstance(wanted, str):
            # ImageNet's names are lists of synonyms: "tench, Tinca tinca"
            parts = [p for label, p in places.items() if wanted.casefold() in map(str.strip, label.split(","))]
            place = min(parts) if parts else int(wanted) if wanted.isdecimal() else None
        if place is None or not 0 <= place < len(labels):
            raise UsageError(f"there is no class {wanted!r}; known: {_listed(labels, str(wanted))}")
        found.append(place)
    return found


def of_classes(
    logits: Tensor, answers: Sequence[Classes], wanted: Sequence[int] | None, top: int
) -> list[list[Target]]:
    """For each picture the classes asked for, or the ``top`` most probable ones.

    Args:
        logits: (N, K).
    """
    found = []
    for row, answer in zip(logits, answers, strict=True):
        places = wanted if wanted is not None else [ranked.index for ranked in answer.top(top)]
        found.append([Target(place, answer.probabilities[place], row[place]) for place in places])
    return found


def of_regions(maps: Tensor, answer: Masks, wanted: Sequence[int] | None, top: int) -> list[Target]:
    """The sum of a class's map over the region that it has in the answer; over the whole picture where it has none.

    Args:
        maps: (K, h, w), the score of each class in each place.
        wanted: classes; the ``top`` that fill most of the picture if None.
    """
    owner = maps.argmax(dim=0)
    pixels = answer.ids.size
    shares = dict.fromkeys(range(len(answer.labels)), 0)
    for region in answer.regions:
        shares[region.index] += int((answer.ids == region.id).sum())
    if wanted is None:
        wanted = [index for index in sorted(shares, key=lambda i: -shares[i])[:top] if shares[index]]
    found = []
    for index in wanted:
        within = owner == index
        score = maps[index][within].sum() if within.any() else maps[index].sum()
        found.append(Target(index, shares[index] / pixels, score))
    return found


def of_boxes(
    found: Mapping[str, Tensor], answer: Boxes, frame: Frame, wanted: Sequence[int] | None, top: int, box: Window | None
) -> list[Target]:
    """The scores of found things: the one nearest to ``box``, the best of each class, or the ``top`` best.

    Args:
        found: boxes (K, 4) in pixels of the picture that the network saw, labels (K,), scores (K,).
        answer: those sure enough to be an answer.

    Raises:
        UsageError: no found thing lies at ``box``.
    """
    rows, columns = (own / seen for own, seen in zip(frame.size, frame.seen, strict=True))
    boxes = found["boxes"].detach().float().cpu() * torch.tensor([columns, rows, columns, rows])
    labels, scores = found["labels"].tolist(), found["scores"].detach().float().tolist()
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if box is not None:
        near = [place for place in order if wanted is None or labels[place] in wanted]
        chosen = [_nearest(boxes, near, box, frame.name)]
    elif wanted is not None:
        chosen = [place for index in wanted for place in [p for p in order if labels[p] == index][:top]]
    else:
        chosen = order[: min(top, len(answer.found))]
    found_things = []
    for place in chosen:
        left, top_side, right, bottom = boxes[place].tolist()
        corners = (left, top_side, right, bottom)
        found_things.append(Target(labels[place], scores[place], found["scores"][place], corners))
    return found_things


def class_maps(output: Any) -> Tensor:
    """The score of each class in each place, (K, h, w), of one picture's segmentation, semantic or panoptic.

    Of the latter it is Mask2Former's own: the sum over queries of class probability times mask probability.
    """
    if isinstance(output, Tensor):
        return output.float()
    classes = output["class_logits"].float().softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", classes, output["mask_logits"].float().sigmoid())


def _nearest(boxes: Tensor, order: Sequence[int], box: Window, name: str) -> int:
    if order:
        overlaps = box_iou(torch.tensor([box]), boxes[list(order)])[0]
        best = int(overlaps.argmax())
        if overlaps[best] >= LEAST_IOU:
            return order[best]
    raise UsageError(
        f"nothing is found in {name} at the box {', '.join(f'{side:g}' for side in box)} (left, top, right, bottom); "
        "van predict tells what is found where"
    )


def _listed(labels: Sequence[str], wanted: str) -> str:
    """All labels if they are few, else those that look like the wanted one, and how many there are."""
    import difflib

    if len(labels) <= 20:
        return ", ".join(labels)
    names = [name.strip() for label in labels for name in label.split(",")]
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
    return f"{', '.join([*near, '...'])} ({len(labels):,} in all)"
