"""Verification of an exported file against the network in PyTorch, from image to prediction.

The session preprocesses an image by the header of the file, the network by the checkpoint: a difference in the
preprocessing is detected, and so are changed weights.
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
from torch import Tensor
from torchvision.ops import box_iou

from van.checkpoint import atomic_path
from van.errors import CheckpointError, UsageError
from van.export.formats import Format
from van.export.header import Precision
from van.export.session import Session
from van.export.writing import ExportOptions, with_image_size
from van.heads.network import common_padded_size, sizes_of, stack_padded
from van.heads.registry import find_export_part
from van.model import Model
from van.ops import use_backend

TOLERANCES: dict[Precision, float] = {
    "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.3, "int8+bfloat16": 0.3,
}  # fmt: skip
"""Maximum absolute difference, as a fraction of the largest output. The order of summation costs float32 about 1e-6 of
it; float16 has 11 bits of significand and bfloat16 8, and a network of fifty layers rounds about a hundred times; int8
differed by 0.04 (a trained VAN-B2) to 0.18 (random weights), so there the agreement is the stricter criterion."""
MIN_AGREEMENT = 0.9
"""Fraction of equal predictions in every precision; with outputs within the tolerance only near ties differ."""
_MIN_IOU = 0.9
_MAX_MASK_DIFF = 0.25
"""Mean difference of probabilities in a box: a slightly larger box may be pooled from another pyramid level."""
_MIN_RELATIVE_SCORE = 0.5
"""Detections with at least this fraction of the image's best score must have a match in the other prediction."""

Comparison = tuple[float, float, float]
"""Maximum absolute difference, the same relative to the largest output, and agreement."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The differences between a session and PyTorch.

    Args:
        max_abs_diff: maximum absolute difference of logits; of scores, for other detectors than one-stage ones.
        relative_diff: the same as a fraction of PyTorch's largest output; for boxes, of the image's longer side; for
            masks, the mean difference inside the boxes.
        agreement: fraction of images (their best class), of pixels, of mask queries, or of matched detections, with
            the same class.
        class_names_match: whether the file has the checkpoint's class names.
        num_images: number of compared images.
    """

    max_abs_diff: float
    relative_diff: float
    agreement: float
    class_names_match: bool
    num_images: int

    def is_within(self, tolerance: float) -> bool:
        """Return whether the file predicts what the network does, up to a relative difference of ``tolerance``."""
        return self.class_names_match and self.relative_diff <= tolerance and self.agreement >= MIN_AGREEMENT

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return dataclasses.asdict(self)


def verify(session: Session, loaded: Model, images: Sequence[Image.Image]) -> Verification:
    """Compare the session's outputs with those of the unfused network in PyTorch in float32.

    Args:
        session: on the exported file.
        loaded: the exported network, at its exported image size (``van.export.writing.with_image_size``).
        images: of sizes that the file accepts.

    Raises:
        ShapeError: the file does not accept an image of this size.
        UsageError: there are no images.
    """
    if not images:
        raise UsageError("verification images: expected at least 1, got 0")
    compare = {"classify": _compare_logits, "segment": _compare_maps, "panoptic": _compare_queries}.get(
        loaded.task, _compare_detections
    )
    rows = []
    for image in images:
        with torch.inference_mode(), use_backend("reference"):
            rows.append(compare(session, loaded, session.header.preprocess(image), loaded.preprocess(image)))
    differences, relatives, agreements = zip(*rows, strict=True)
    return Verification(
        max_abs_diff=max(differences),
        relative_diff=max(relatives),
        agreement=sum(agreements) / len(agreements),
        class_names_match=session.header.class_names == loaded.class_names,
        num_images=len(images),
    )


def write_verified(
    loaded: Model,
    path: Path,
    format_: Format,
    *,
    options: ExportOptions,
    images: Sequence[Image.Image],
    tolerance: float | None = None,
) -> Verification:
    """Write a temporary file, verify it against PyTorch, and move it to ``path`` if it passes.

    Args:
        loaded: the network to export.
        path: of the file, with the format's suffix.
        format_: one of ``van.export.formats.FORMATS``.
        options: of the export.
        images: for the comparison.
        tolerance: of the relative difference; that of the file's precision if None.

    Raises:
        CheckpointError: ``path`` cannot be written, or the verification failed; an existing file is unchanged.
        UsageError: the network cannot be exported, or ``path`` has another suffix.
    """
    if not path.name.lower().endswith(format_.suffix):
        raise UsageError(f"--out: expected a name ending in {format_.suffix} for {format_.name}, got {path}")
    loaded = with_image_size(loaded, options.image_size)
    options = dataclasses.replace(options, image_size=None)
    for companion in format_.all_files(path)[1:]:
        if companion.exists() and not companion.is_file():
            raise CheckpointError(f"cannot write {companion}: it is not a regular file; choose another path")
    with atomic_path(path) as temporary:
        format_.write(loaded, temporary, options=options)
        session = format_.open(temporary)
        verification = verify(session, loaded, images)
        max_diff = TOLERANCES[session.header.precision] if tolerance is None else tolerance
        session.close()
        if not verification.is_within(max_diff):
            raise CheckpointError(_failure_message(verification, max_diff, path))
        target = path.resolve()
        # Companions first: if the move of the main file fails, its old version is rejected by its checksum.
        for source, destination in zip(format_.all_files(temporary)[1:], format_.all_files(target)[1:], strict=True):
            shutil.move(source, destination)
    return verification


def synthetic_images(count: int, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Return color patches with noise, from a fixed seed, for a verification without images.

    Args:
        count: number of images.
        size: rows and columns of all images; different sizes if None.
    """
    random = np.random.default_rng(0)
    images = []
    for place in range(count):
        rows, columns = size or (240 + 37 * (place % 3), 320 - 41 * (place % 4))
        patches = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((columns, rows))
        noise = random.normal(0, 20, (rows, columns, 3))
        images.append(Image.fromarray((np.asarray(patches) + noise).clip(0, 255).astype(np.uint8)))
    return images


def _failure_message(verification: Verification, tolerance: float, path: Path) -> str:
    class_names = "" if verification.class_names_match else "; the class names differ"
    return (
        f"{path}: not written: the export differs from PyTorch on {verification.num_images} images: maximum absolute "
        f"difference, relative to the largest output: expected at most {tolerance:g}, got "
        f"{verification.relative_diff:.2g}; equal predictions: expected at least {MIN_AGREEMENT:.0%}, got "
        f"{verification.agreement:.1%}{class_names}. Give images from the domain of the training data with --images, "
        "leave out --half or --int8, or raise --tolerance."
    )


def _compare_logits(session: Session, loaded: Model, ours: Tensor, theirs: Tensor) -> Comparison:
    """Compare classification logits; ``ours`` is the image preprocessed by the header, ``theirs`` by the checkpoint."""
    outputs, expected = session(ours[None]), loaded.network.eval()(theirs[None])
    difference, relative = _difference(outputs, expected)
    # Class names are compared, not indices, because the file's names may be in another order.
    same = session.header.class_names[int(outputs.argmax())] == loaded.class_names[int(expected.argmax())]
    return difference, relative, float(same)


def _compare_maps(session: Session, loaded: Model, ours: Tensor, theirs: Tensor) -> Comparison:
    (outputs,), (expected,) = session([ours]), loaded.network.eval()([theirs])
    difference, relative = _difference(outputs, expected)
    if outputs.shape != expected.shape:
        return difference, relative, 0.0
    return difference, relative, (outputs.argmax(0) == expected.argmax(0)).float().mean().item()


def _compare_queries(session: Session, loaded: Model, ours: Tensor, theirs: Tensor) -> Comparison:
    (outputs,), (expected,) = session([ours]), loaded.network.eval()([theirs])
    differences, relatives = zip(*(_difference(outputs[name], expected[name]) for name in expected), strict=True)
    same = outputs["class_logits"].argmax(-1) == expected["class_logits"].argmax(-1)
    return max(differences), max(relatives), same.float().mean().item()


def _compare_detections(session: Session, loaded: Model, ours: Tensor, theirs: Tensor) -> Comparison:
    (detections,), (expected,) = session([ours]), loaded.network.eval()([theirs])
    longer_side = max(theirs.shape[1:])
    difference, relative, agreement = match_detections(detections, expected, longer_side)
    # An image may have no detections above the threshold; the raw outputs are then still compared.
    part = find_export_part(loaded.options)
    assert part is not None
    padded_size = common_padded_size(sizes_of([ours]))
    if part.compare_outputs:
        heads = part.extract(loaded.network)
        if theirs.shape != ours.shape:
            return math.inf, math.inf, 0.0
        outputs = session.run(stack_padded([ours], padded_size))
        pairs = zip(outputs, heads(stack_padded([theirs], padded_size)), strict=True)
        differences = [_difference(output, reference) for output, reference in pairs]
        difference = max(absolute for absolute, _ in differences)
        relative = max(share for _, share in differences)
    if part.unfiltered is not None:
        outputs = session.run(stack_padded([ours], padded_size), sizes_of([ours]))
        named = {name: output[0] for name, output in zip(part.outputs, outputs, strict=True)}
        filled = named["scores"] >= 0  # the other slots are empty
        detections = {name: output[filled] for name, output in named.items()}
        expected = part.unfiltered(loaded.network, theirs)
        unfiltered = match_detections(detections, expected, longer_side, both_ways=False)
        difference, relative = max(difference, unfiltered[0]), max(relative, unfiltered[1])
        agreement = min(agreement, unfiltered[2])
    return difference, relative, agreement


def _difference(outputs: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the maximum absolute difference, also relative to the largest output; infinite for non-finite values."""
    if outputs.shape != expected.shape:
        return math.inf, math.inf
    difference = (outputs.double().cpu() - expected.double().cpu()).abs().max().item()
    if not math.isfinite(difference):
        return math.inf, math.inf
    return difference, difference / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)


def match_detections(
    detections: dict[str, Tensor], expected: dict[str, Tensor], longer_side: int, *, both_ways: bool = True
) -> Comparison:
    """Match two predictions of one image by class and IoU, and compare the matched detections.

    Detections with a high score are matched to any of the other prediction, in both directions or, without
    ``both_ways``, only from ``detections`` to ``expected``. ROI masks are compared too, where there are any.

    Returns:
        The maximum absolute difference of scores, the maximum relative difference of scores, boxes and masks, and the
        fraction of detections with a match.
    """
    score_diffs, relative_diffs, matched, total = [0.0], [0.0], 0, 0
    for ours, theirs in ((detections, expected), (expected, detections))[: 2 if both_ways else 1]:
        if not len(ours["scores"]):
            continue
        relevant = ours["scores"] >= _MIN_RELATIVE_SCORE * ours["scores"].max()
        total += int(relevant.sum())
        if not len(theirs["scores"]):
            continue
        same_class = ours["labels"][relevant][:, None] == theirs["labels"][None]
        overlap = torch.where(same_class, box_iou(ours["boxes"][relevant], theirs["boxes"]), 0.0)
        best_iou, index = overlap.max(dim=1)
        is_match = best_iou >= _MIN_IOU
        if "roi_masks" in ours and "roi_masks" in theirs:
            mask_diffs = (ours["roi_masks"][relevant] - theirs["roi_masks"][index]).abs().mean(dim=(1, 2))
            is_match = is_match & (mask_diffs <= _MAX_MASK_DIFF)
            relative_diffs += [mask_diffs[is_match].mean().item()] if is_match.any() else []
        matched += int(is_match.sum())
        if is_match.any():
            score_diff = (ours["scores"][relevant] - theirs["scores"][index])[is_match].abs().max().item()
            box_diff = (ours["boxes"][relevant] - theirs["boxes"][index])[is_match].abs().max().item()
            score_diffs.append(score_diff)
            relative_diffs.append(max(score_diff, box_diff / longer_side))
    return max(score_diffs), max(relative_diffs), matched / total if total else 1.0
