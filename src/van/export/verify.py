"""An exported file held against the network in PyTorch, on pictures, from the file's pixels to the answer.

The session sees a picture by the rule in its own header, the network by the rule in the checkpoint: a file with
another rule answers differently, and so does one with changed weights.
"""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from van.checkpoint import atomic_path
from van.errors import CheckpointError, UsageError
from van.export import anchors, two_stage
from van.export.formats import Format
from van.export.header import Precision
from van.export.session import Session
from van.export.writing import ExportOptions, at_size
from van.models.canvas import common_canvas, sizes_of, stack_padded
from van.models.load import Loaded
from van.ops import use_backend

TOLERANCES: dict[Precision, float] = {
    "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.3, "int8+bfloat16": 0.3,
}  # fmt: skip
"""Of the largest difference, as a share of the largest output. Sums in another order cost float32 some 1e-6 of that;
float16 has 11 bits and bfloat16 8, and a network of fifty layers rounds some hundred times; int8 was seen
to differ by 0.04 (a trained VAN-B2) to 0.18 (one with random weights), and is judged by its agreement first."""
LEAST_AGREEMENT = 0.9
"""Answers that must be the same in any precision. Where outputs are within their tolerance only near ties differ."""
_SAME_IOU = 0.9
_SAME_MASK = 0.25
"""Mean difference of the probabilities in a box: a box that is a hair larger may be pooled from another level."""
_WORTH = 0.5
"""Things with at least this share of a picture's best score are looked for in the other's answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """How far a session is from PyTorch.

    Args:
        max_difference: the largest absolute one, of logits; of other detectors than those of one stage, of scores.
        relative: the same as a share of the largest output in PyTorch; of boxes, of the picture's longer side; of
            masks, the mean of all inside their boxes.
        agreement: share of pictures (their best class), of pixels, of queries for masks, or of things found by both,
            with the same name.
        same_labels: whether the file has the checkpoint's labels.
        pictures: how many were compared.
    """

    max_difference: float
    relative: float
    agreement: float
    same_labels: bool
    pictures: int

    def within(self, tolerance: float) -> bool:
        """Whether the file answers as the network does."""
        return self.same_labels and self.relative <= tolerance and self.agreement >= LEAST_AGREEMENT

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def verify(session: Session, loaded: Loaded, pictures: Sequence[Image.Image]) -> Verification:
    """Compare the session's answers with those of the network in PyTorch, in float32 and as it was trained.

    Args:
        session: on the exported file.
        loaded: what was exported, at the size it was exported for (``van.export.writing.at_size``).
        pictures: of sizes that the file takes.

    Raises:
        ShapeError: the file takes no picture of such a size.
        UsageError: there are no pictures.
    """
    if not pictures:
        raise UsageError("there are no pictures to compare answers on; wanted at least one")
    compare = {"classify": _classes, "segment": _maps, "panoptic": _queries}.get(loaded.task, _things)
    rows = []
    for picture in pictures:
        with torch.inference_mode(), use_backend("reference"):
            rows.append(compare(session, loaded, session.header.preprocess(picture), loaded.preprocess(picture)))
    differences, relatives, agreements = zip(*rows, strict=True)
    return Verification(
        max_difference=max(differences),
        relative=max(relatives),
        agreement=sum(agreements) / len(agreements),
        same_labels=session.header.labels == loaded.labels,
        pictures=len(pictures),
    )


def write_verified(
    loaded: Loaded,
    path: Path,
    format_: Format,
    *,
    options: ExportOptions,
    pictures: Sequence[Image.Image],
    tolerance: float | None = None,
) -> Verification:
    """Write a file beside its place, hold it against PyTorch there, and move it into place if it is good.

    Args:
        loaded: what to export.
        path: of the file, with the format's suffix.
        format_: one of ``van.export.formats.FORMATS``.
        options: which way.
        pictures: to compare answers on.
        tolerance: of the relative difference; that of the file's precision if None.

    Raises:
        CheckpointError: the place cannot be written, or the file does not answer as the network does; what stood
            there before still stands.
        UsageError: the network cannot be exported; or the name has another suffix.
    """
    if not path.name.lower().endswith(format_.suffix):
        raise UsageError(f"--out is {path}; wanted a name ending in {format_.suffix} for {format_.name}")
    loaded = at_size(loaded, options.size_px)
    options = dataclasses.replace(options, size_px=None)
    for beside in format_.files(path)[1:]:
        if beside.exists() and not beside.is_file():
            raise CheckpointError(f"cannot write {beside}: it is not a file that can be replaced")
    with atomic_path(path) as temporary:
        format_.write(loaded, temporary, options=options)
        session = format_.open(temporary)
        found = verify(session, loaded, pictures)
        wanted = TOLERANCES[session.header.precision] if tolerance is None else tolerance
        session.close()
        if not found.within(wanted):
            raise CheckpointError(_why(found, wanted, path))
        target = path.resolve()
        for made, place in zip(format_.files(temporary)[1:], format_.files(target)[1:], strict=True):
            shutil.move(made, place)  # first: the seal refuses the old file beside them
    return found


def made_pictures(count: int, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Pictures that show nothing, for want of others: patches of colour in noise, by a fixed seed.

    Args:
        count: how many.
        size: their rows and columns; of different sizes if None.
    """
    random = np.random.default_rng(0)
    pictures = []
    for place in range(count):
        rows, columns = size or (240 + 37 * (place % 3), 320 - 41 * (place % 4))
        patches = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((columns, rows))
        noise = random.normal(0, 20, (rows, columns, 3))
        pictures.append(Image.fromarray((np.asarray(patches) + noise).clip(0, 255).astype(np.uint8)))
    return pictures


def _why(found: Verification, tolerance: float, path: Path) -> str:
    named = "" if found.same_labels else " and other labels"
    return (
        f"{path} was not written: on {found.pictures} pictures it differs from PyTorch by {found.relative:.2g} of the "
        f"largest output, wanted at most {tolerance:g}, and agrees in {found.agreement:.1%} of the answers, wanted "
        f"{LEAST_AGREEMENT:.0%}{named}. Give pictures of the kind it was trained on with --pictures, leave out --half "
        "or --int8, or accept more with --tolerance."
    )


def _classes(session: Session, loaded: Loaded, seen: Tensor, ready: Tensor) -> tuple[float, float, float]:
    found, right = session(seen[None]), loaded.model.eval()(ready[None])
    difference, relative = _distance(found, right)
    same = _name(session.header.labels, found.argmax()) == _name(loaded.labels, right.argmax())
    return difference, relative, float(same)


def _maps(session: Session, loaded: Loaded, seen: Tensor, ready: Tensor) -> tuple[float, float, float]:
    (found,), (right,) = session([seen]), loaded.model.eval()([ready])
    difference, relative = _distance(found, right)
    if found.shape != right.shape:
        return difference, relative, 0.0
    return difference, relative, (found.argmax(0) == right.argmax(0)).float().mean().item()


def _queries(session: Session, loaded: Loaded, seen: Tensor, ready: Tensor) -> tuple[float, float, float]:
    (found,), (right,) = session([seen]), loaded.model.eval()([ready])
    differences, relatives = zip(*(_distance(found[name], right[name]) for name in right), strict=True)
    same = found["class_logits"].argmax(-1) == right["class_logits"].argmax(-1)
    return max(differences), max(relatives), same.float().mean().item()


def _things(session: Session, loaded: Loaded, seen: Tensor, ready: Tensor) -> tuple[float, float, float]:
    (found,), (right,) = session([seen]), loaded.model.eval()([ready])
    longer = max(ready.shape[1:])
    difference, relative, agreement = _matched(found, right, longer)
    if loaded.options["head"] in anchors.OUTPUTS:  # its things may be none; then the anchors still have their scores
        canvas = common_canvas(sizes_of([ready]))
        heads: nn.Module = anchors.AnchorHeads(loaded.model)
        if ready.shape != seen.shape:
            return math.inf, math.inf, 0.0
        rows = zip(session.run(stack_padded([seen], canvas)), heads(stack_padded([ready], canvas)), strict=True)
        distances = [_distance(ours, theirs) for ours, theirs in rows]
        difference = max(each for each, _ in distances)
        relative = max(each for _, each in distances)
    if loaded.options["head"] in two_stage.OUTPUTS:  # things that score too little have boxes and masks, too
        names = two_stage.OUTPUTS[loaded.options["head"]]
        size = (seen.shape[1], seen.shape[2])
        canvas = common_canvas([size])
        (outputs,) = zip(*session.run(stack_padded([seen], canvas), [size]), strict=True)
        found, right = two_stage.things_of(outputs, names), two_stage.of_any_score(loaded.model, ready)
        of_any = _matched(found, right, longer, both_ways=False)
        difference, relative = max(difference, of_any[0]), max(relative, of_any[1])
        agreement = min(agreement, of_any[2])
    return difference, relative, agreement


def _distance(found: Tensor, right: Tensor) -> tuple[float, float]:
    """The largest difference, and the same as a share of the largest output; infinite where something is no number."""
    if found.shape != right.shape:
        return math.inf, math.inf
    difference = (found.double().cpu() - right.double().cpu()).abs().max().item()
    if not math.isfinite(difference):
        return math.inf, math.inf
    return difference, difference / max(right.abs().max().item(), torch.finfo(torch.float32).tiny)


def _matched(
    found: dict[str, Tensor], right: dict[str, Tensor], longer: int, *, both_ways: bool = True
) -> tuple[float, float, float]:
    """The largest difference of scores, the same or that of boxes as a share, and the share of things with a partner.

    Each side's better things look for a partner among all of the other's; if not ``both_ways``, the found ones do.
    Masks inside the boxes are compared, too, where there are any.
    """
    scores, shares, partners, looked_for = [0.0], [0.0], 0, 0
    for ours, theirs in ((found, right), (right, found))[: 2 if both_ways else 1]:
        if not len(ours["scores"]):
            continue
        worth = ours["scores"] >= _WORTH * ours["scores"].max()
        looked_for += int(worth.sum())
        if not len(theirs["scores"]):
            continue
        same = ours["labels"][worth][:, None] == theirs["labels"][None]
        overlap = torch.where(same, box_iou(ours["boxes"][worth], theirs["boxes"]), 0.0)
        best, place = overlap.max(dim=1)
        near = best >= _SAME_IOU
        if two_stage.MASKS in ours and two_stage.MASKS in theirs:
            masks = (ours[two_stage.MASKS][worth] - theirs[two_stage.MASKS][place]).abs().mean(dim=(1, 2))
            near = near & (masks <= _SAME_MASK)
            shares += [masks[near].mean().item()] if near.any() else []
        partners += int(near.sum())
        if near.any():
            score = (ours["scores"][worth] - theirs["scores"][place])[near].abs().max().item()
            box = (ours["boxes"][worth] - theirs["boxes"][place])[near].abs().max().item()
            scores.append(score)
            shares.append(max(score, box / longer))
    return max(scores), max(shares), partners / looked_for if looked_for else 1.0


def _name(labels: Sequence[str], index: Tensor) -> str:
    return labels[int(index)]
