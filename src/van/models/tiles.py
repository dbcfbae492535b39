"""Maps of labels for pictures whose logits would not fit in memory, and the mean over several scales.

Shapes: a picture (3, H, W), normalised, where the network is; a network in evaluation that maps (1, 3, H, W) to
logits (1, classes, H, W); a map of labels (rows, columns), int32.
Source of the multi-scale mean: mmsegmentation's test-time augmentation, which the paper's figures were measured with.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.segmenters import Segmenter

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_STRIDE_PX = 32
"""Of the network's coarsest level: tiles that start at its multiples cut a picture into the same cells."""
_MAX_BYTES = 256 * 2**20

Size = tuple[int, int]


def label_map(network: nn.Module, picture: Tensor, *, size: Size, max_bytes: int = _MAX_BYTES) -> Tensor:
    """The most probable class of each pixel, at a size of its own.

    The logits (classes, rows, columns) never exist as a whole. A ``Segmenter`` is asked for its coarse ones, which
    go to the picture's size, a few classes at a time, and from there to ``size``.

    Args:
        network: see above.
        picture: (3, H, W).
        size: rows and columns of the map.
        max_bytes: for logits in work; one class at a time is the least there can be.

    Raises:
        UsageError: the network is in training mode.
    """
    _want_evaluation(network)
    with torch.inference_mode():
        if isinstance(network, Segmenter):
            coarse = network.forward_head(picture[None])[0][0]
            return upsampled_map(coarse, (picture.shape[1], picture.shape[2]), size, max_bytes=max_bytes)
        return upsampled_map(_logits(network, picture), size, max_bytes=max_bytes)


def upsampled_map(logits: Tensor, *sizes: Size, max_bytes: int = _MAX_BYTES) -> Tensor:
    """The class of the largest logit at each pixel after bilinear resizes, corners not aligned, some classes at a time.

    Args:
        logits: (classes, h, w).
        sizes: rows and columns to go through, the map's last.
        max_bytes: as in ``label_map``.

    Returns:
        (rows, columns), int32: of finite logits exactly the argmax of them all resized, the first of equal ones.
    """
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ShapeError(f"sizes are {sizes}; wanted at least one, of at least 1 x 1 pixels")
    rows, columns = sizes[-1]
    one_class = sum(height * width for height, width in sizes) * logits.element_size()
    together = max(1, max_bytes // one_class)
    best = logits.new_full((rows, columns), -math.inf)
    labels = torch.zeros(rows, columns, dtype=torch.int32, device=logits.device)
    for first in range(0, len(logits), together):
        chunk = logits[None, first : first + together]
        for size in sizes:
            if chunk.shape[2:] != size:
                chunk = F.interpolate(chunk, size=size, mode="bilinear", align_corners=False)
        for place, values in enumerate(chunk[0], start=first):
            labels.masked_fill_(values > best, place)
            torch.maximum(best, values, out=best)
    return labels


def tiled_label_map(network: nn.Module, picture: Tensor, *, tile_px: int = 512, overlap: float = 1 / 3) -> Tensor:
    """The most probable class of each pixel of a large picture, seen through a window that slides over it.

    Where windows overlap their probabilities are mixed, each fading linearly towards its edge. No more is held than
    the rows of one window, (classes, tile_px, W) and a third of that again: rows that no later window touches are
    finished at once.

    Args:
        network: see above.
        picture: (3, H, W).
        tile_px: side of the window.
        overlap: least share of the side that neighbours have in common.

    Raises:
        UsageError: the network is in training mode, or a setting is out of bounds.
    """
    _want_evaluation(network)
    if tile_px < 1 or not 0 <= overlap < 1:
        raise UsageError(f"tile_px is {tile_px} and overlap {overlap}; wanted at least 1, and at least 0 and below 1")
    height, width = picture.shape[1:]
    rows, columns = (_spans(side, tile_px, overlap) for side in (height, width))
    labels = torch.empty(height, width, dtype=torch.int32, device=picture.device)
    strip: Tensor | None = None
    with torch.inference_mode():
        for place, (top, tile_rows, fade_rows) in enumerate(rows):
            for left, tile_columns, fade_columns in columns:
                tile = picture[:, top : top + tile_rows, left : left + tile_columns]
                found = _logits(network, tile).softmax(0)
                if strip is None:
                    strip = found.new_zeros((len(found), tile_rows, width))
                found *= torch.outer(fade_rows, fade_columns).to(found)
                strip[:, :, left : left + tile_columns] += found
            assert strip is not None
            following = rows[place + 1][0] if place + 1 < len(rows) else height
            done = following - top
            labels[top:following] = strip[:, :done].argmax(0)
            strip = _moved_up(strip, done)
    return labels


def multi_scale_logits(
    network: nn.Module, picture: Tensor, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> Tensor:
    """(classes, H, W) logits whose probabilities are the mean over several sizes of the picture, and their mirrors.

    Each scale's logits are brought to the picture's size before they become probabilities.

    Args:
        network: see above.
        picture: (3, H, W).
        scales: of its sides.
        flip: see each from right to left, too.

    Raises:
        UsageError: the network is in training mode, or there is no scale, or one that is not positive.
    """
    _want_evaluation(network)
    if not scales or min(scales) <= 0:
        raise UsageError(f"scales is {tuple(scales)}; wanted at least one, and positive ones")
    size = picture.shape[1:]
    total: Tensor | None = None
    with torch.inference_mode():
        for scale in scales:
            seen = [max(1, round(side * scale)) for side in size]
            resized = F.interpolate(picture[None], size=seen, mode="bilinear", align_corners=False, antialias=True)[0]
            for mirrored in (False, True) if flip else (False,):
                logits = _logits(network, resized.flip(2) if mirrored else resized)
                found = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0)
                found = found.flip(2) if mirrored else found
                total = found if total is None else total.add_(found)
        assert total is not None
        mean = total / (len(scales) * (2 if flip else 1))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


class Tiled(nn.Module):
    """A network seen through a sliding window: pictures (3, H, W) of any size to maps (H, W); see ``tiled_label_map``.

    Args:
        network: see above.
        tile_px: side of the window.
    """

    def __init__(self, network: nn.Module, *, tile_px: int) -> None:
        super().__init__()
        self.network, self.tile_px = network, tile_px

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        return [tiled_label_map(self.network, picture, tile_px=self.tile_px) for picture in pictures]


class MultiScale(nn.Module):
    """A network's mean over scales and mirrors: pictures (3, H, W) to logits; see ``multi_scale_logits``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        return [multi_scale_logits(self.network, picture) for picture in pictures]


def in_view(network: nn.Module, *, task: str, tile_px: int = 0, multi_scale: bool = False) -> nn.Module:
    """``network`` as it is to look at pictures: whole, through a window of ``tile_px``, or at several scales.

    Raises:
        UsageError: the task gives no map of labels, or both are asked for.
    """
    if not tile_px and not multi_scale:
        return network
    if task != "segment":
        raise UsageError(f"--tile-px and --multi-scale are for semantic segmentation; this network's task is {task}")
    if tile_px and multi_scale:
        raise UsageError("--tile-px and --multi-scale exclude each other; choose one")
    if tile_px < 0:
        raise UsageError(f"--tile-px is {tile_px}; wanted at least 1, or 0 for the whole picture")
    return Tiled(network, tile_px=tile_px) if tile_px else MultiScale(network)


def _logits(network: nn.Module, picture: Tensor) -> Tensor:
    """(classes, H, W) of one picture (3, H, W), in float32 at least."""
    logits = network(picture[None])
    wanted = tuple(picture.shape[1:])
    if not isinstance(logits, Tensor) or logits.ndim != 4 or tuple(logits.shape[2:]) != wanted:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"the network gives {seen}; wanted logits (1, classes, {wanted[0]}, {wanted[1]})")
    return logits[0].float() if logits.dtype in (torch.float16, torch.bfloat16) else logits[0]


def _want_evaluation(network: nn.Module) -> None:
    if network.training:
        raise UsageError(f"{type(network).__name__} is in training mode; call .eval() first")


def _spans(side: int, tile_px: int, overlap: float) -> list[tuple[int, int, Tensor]]:
    """Where the windows start along one side, how long they are, and how they fade at both ends.

    All but the last start at multiples of 32 px where they are large enough, and the last ends with the picture.
    """
    length = min(side, tile_px)
    step = max(1, math.floor(length * (1 - overlap)))
    step = step // _STRIDE_PX * _STRIDE_PX or step
    starts = [*range(0, side - length, step), side - length]
    spans = []
    for place, start in enumerate(starts):
        fade = torch.ones(length)
        if place > 0:
            fade = torch.minimum(fade, _ramp(length, starts[place - 1] + length - start))
        if place + 1 < len(starts):
            fade = torch.minimum(fade, _ramp(length, start + length - starts[place + 1]).flip(0))
        spans.append((start, length, fade))
    return spans


def _ramp(length: int, shared: int) -> Tensor:
    """A rise over the first ``shared`` pixels; with its mirror image it makes 1."""
    return ((torch.arange(length) + 0.5) / max(shared, 0.5)).clamp(max=1.0)


def _moved_up(strip: Tensor, done: int) -> Tensor:
    """The strip for the next row of windows: what it shares with this one on top, zeros below."""
    kept = strip[:, done:].clone()
    strip[:, : kept.shape[1]] = kept
    strip[:, kept.shape[1] :] = 0
    return strip
