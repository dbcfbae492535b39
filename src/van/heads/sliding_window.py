"""Semantic segmentation of large images by a sliding window, and multi-scale test-time augmentation.

Shapes: an image (3, H, W), normalized, on the network's device; a network in evaluation mode that maps (1, 3, H, W)
to logits (1, classes, H, W); a label map (rows, columns) of class indices, int32.
Source of the multi-scale mean: mmsegmentation's test-time augmentation, which the paper's metrics were measured with.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_STRIDE_PX = 32
"""The stride of VAN's last stage: tiles that start at its multiples share the feature grid of the whole image."""
_MAX_BYTES = 256 * 2**20

Size = tuple[int, int]


def upsample_argmax(logits: Tensor, *sizes: Size, max_bytes: int = _MAX_BYTES) -> Tensor:
    """Resize logits bilinearly, corners not aligned, and return the class of the largest at each pixel.

    A few classes are resized at a time, so that all resized logits (classes, rows, columns) never exist in memory.

    Args:
        logits: (classes, h, w).
        sizes: rows and columns of each resize in turn; the last is the map's.
        max_bytes: the most memory for resized logits; one class at a time is the minimum.

    Returns:
        (rows, columns), int32: for finite logits exactly the argmax of all resized logits, the first of equal ones.

    Raises:
        ShapeError: there is no size, or one without pixels.
    """
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ShapeError(f"sizes: expected at least one, of at least 1x1 pixels, got {sizes}")
    rows, columns = sizes[-1]
    bytes_per_class = sum(height * width for height, width in sizes) * logits.element_size()
    classes_per_chunk = max(1, max_bytes // bytes_per_class)
    best = logits.new_full((rows, columns), -math.inf)
    labels = torch.zeros(rows, columns, dtype=torch.int32, device=logits.device)
    for first in range(0, len(logits), classes_per_chunk):
        chunk = logits[None, first : first + classes_per_chunk]
        for size in sizes:
            if chunk.shape[2:] != size:
                chunk = F.interpolate(chunk, size=size, mode="bilinear", align_corners=False)
        for label, values in enumerate(chunk[0], start=first):
            labels.masked_fill_(values > best, label)
            torch.maximum(best, values, out=best)
    return labels


def sliding_window_label_map(
    network: nn.Module, image: Tensor, *, tile_size: int = 512, overlap: float = 1 / 3
) -> Tensor:
    """Return the most probable class of each pixel of a large image, by sliding-window inference.

    Where tiles overlap their probabilities are averaged, with weights that fall linearly towards the edge of a tile.
    The memory is that of one row of tiles, (classes, tile_size, W), and a third of it again: image rows that no later
    tile covers are finished at once. ``overlap`` is the minimum fraction of ``tile_size`` that neighboring tiles share.

    Raises:
        UsageError: the network is in training mode, or an argument is out of range.
    """
    if tile_size < 1:
        raise UsageError(f"tile_size: expected at least 1, got {tile_size}")
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap: expected at least 0 and below 1, got {overlap}")
    height, width = image.shape[1:]
    rows, columns = (_tile_spans(side, tile_size, overlap) for side in (height, width))
    labels = torch.empty(height, width, dtype=torch.int32, device=image.device)
    strip: Tensor | None = None
    with torch.inference_mode():
        for index, (top, tile_rows, row_weights) in enumerate(rows):
            for left, tile_columns, column_weights in columns:
                tile = image[:, top : top + tile_rows, left : left + tile_columns]
                probabilities = _image_logits(network, tile).softmax(0)
                if strip is None:
                    strip = probabilities.new_zeros((len(probabilities), tile_rows, width))
                probabilities *= torch.outer(row_weights, column_weights).to(probabilities)
                strip[:, :, left : left + tile_columns] += probabilities
            assert strip is not None
            next_top = rows[index + 1][0] if index + 1 < len(rows) else height
            done = next_top - top
            labels[top:next_top] = strip[:, :done].argmax(0)
            # the rows that the next row of tiles covers, too, move to the top
            kept = strip[:, done:].clone()
            strip[:, : kept.shape[1]] = kept
            strip[:, kept.shape[1] :] = 0
    return labels


def multi_scale_logits(
    network: nn.Module, image: Tensor, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> Tensor:
    """Return logits (classes, H, W) of the mean probabilities over several scales of the image and their mirror images.

    Each scale's logits are resized to the image's size before the softmax; with ``flip`` each scale is flipped, too.

    Raises:
        UsageError: the network is in training mode, there are no scales, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise UsageError(f"scales: expected at least one, all positive, got {tuple(scales)}")
    size = image.shape[1:]
    total: Tensor | None = None
    with torch.inference_mode():
        for scale in scales:
            scaled_size = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(image[None], scaled_size, mode="bilinear", align_corners=False, antialias=True)[0]
            for flipped in (False, True) if flip else (False,):
                logits = _image_logits(network, scaled.flip(2) if flipped else scaled)
                probabilities = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].softmax(0)
                probabilities = probabilities.flip(2) if flipped else probabilities
                total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        mean = total / (len(scales) * (2 if flip else 1))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


class _EachImage(nn.Module):
    """A network that predicts the images (3, H, W) of a list one by one."""

    def __init__(self, network: nn.Module, predict: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.predict = network, predict

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [self.predict(self.network, image) for image in images]


def wrap_inference(network: nn.Module, *, task: str, tile_size: int = 0, multi_scale: bool = False) -> nn.Module:
    """Wrap ``network`` for inference: unchanged, with a sliding window of ``tile_size`` pixels, or at several scales.

    A wrapped network maps a list of images (3, H, W) to label maps (H, W) or logits (classes, H, W).

    Raises:
        UsageError: the task is not semantic segmentation, both are requested, or ``tile_size`` is negative.
    """
    if not tile_size and not multi_scale:
        return network
    if task != "segment":
        raise UsageError(f"--tile-size and --multi-scale: expected a network for task 'segment', got task {task!r}")
    if tile_size and multi_scale:
        raise UsageError("--tile-size and --multi-scale: expected at most one of them, got both")
    if tile_size < 0:
        raise UsageError(f"--tile-size: expected at least 1, or 0 for the whole image, got {tile_size}")
    if multi_scale:
        return _EachImage(network, multi_scale_logits)
    return _EachImage(network, functools.partial(sliding_window_label_map, tile_size=tile_size))


def _image_logits(network: nn.Module, image: Tensor) -> Tensor:
    """Return logits (classes, H, W) of one image (3, H, W), in at least float32, by a network in evaluation mode."""
    if network.training:
        raise UsageError(f"{type(network).__name__}: expected evaluation mode, got training mode; call .eval() first")
    logits = network(image[None])
    expected = tuple(image.shape[1:])
    if not isinstance(logits, Tensor) or logits.ndim != 4 or tuple(logits.shape[2:]) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"network output: expected logits (1, classes, {expected[0]}, {expected[1]}), got {got}")
    return logits[0].float() if logits.dtype in (torch.float16, torch.bfloat16) else logits[0]


def _tile_spans(side: int, tile_size: int, overlap: float) -> list[tuple[int, int, Tensor]]:
    """Return start, length and weights (length,) of the tiles along one side.

    All but the last start at multiples of 32 px if the step is large enough, and the last ends with the image.
    """
    length = min(side, tile_size)
    step = max(1, math.floor(length * (1 - overlap)))
    step = step // _STRIDE_PX * _STRIDE_PX or step
    starts = [*range(0, side - length, step), side - length]
    spans = []
    for index, start in enumerate(starts):
        weights = torch.ones(length)
        if index > 0:
            weights = torch.minimum(weights, _ramp(length, starts[index - 1] + length - start))
        if index + 1 < len(starts):
            weights = torch.minimum(weights, _ramp(length, start + length - starts[index + 1]).flip(0))
        spans.append((start, length, weights))
    return spans


def _ramp(length: int, shared: int) -> Tensor:
    """Return weights that rise linearly over the first ``shared`` pixels; a ramp and its flip add up to 1."""
    return ((torch.arange(length) + 0.5) / max(shared, 0.5)).clamp(max=1.0)
