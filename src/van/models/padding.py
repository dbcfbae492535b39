"""Batching of images of different sizes by zero padding.

Shapes: images (..., H, W); a size is rows and columns; images are padded at the bottom and on the right.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def stack_padded(images: Sequence[Tensor], padded_size: Size) -> Tensor:
    """Pad images (..., H, W) with zeros to ``padded_size`` and stack them to (N, ..., rows, columns)."""
    rows, columns = padded_size
    return torch.stack([F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2])) for x in images])


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    """Return rows and columns of each image."""
    return [(image.shape[-2], image.shape[-1]) for image in images]


def group_by_padded_size(sizes: Sequence[Size], padded_size: Callable[[Sequence[Size]], Size]) -> dict[Size, list[int]]:
    """Group images by the padded size that each would have alone.

    Args:
        sizes: rows and columns of each image.
        padded_size: maps the sizes of a batch to its padded size.

    Returns:
        The indices of the images, by padded size.
    """
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(padded_size([size]), []).append(index)
    return groups


def round_up(number: int, multiple: int) -> int:
    """Round ``number`` up to a multiple of ``multiple``."""
    return math.ceil(number / multiple) * multiple


def common_padded_size(sizes: Sequence[Size], *, multiple: int = 32) -> Size:
    """Return the smallest size that contains images of these sizes and whose sides are multiples of ``multiple``."""
    rows, columns = (round_up(max(sides), multiple) for sides in zip(*sizes, strict=True))
    return rows, columns
