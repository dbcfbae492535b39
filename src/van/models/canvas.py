"""Pictures of different sizes, seen together on one canvas.

Shapes: pictures (..., H, W); a size is rows and columns; smaller pictures are filled up at the bottom and on the right.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def stack_padded(pictures: Sequence[Tensor], canvas: Size) -> Tensor:
    """Pictures (..., H, W) filled up with zeros, at the bottom and on the right, to one (N, ..., rows, columns)."""
    rows, columns = canvas
    return torch.stack([F.pad(p, (0, columns - p.shape[-1], 0, rows - p.shape[-2])) for p in pictures])


def sizes_of(pictures: Sequence[Tensor]) -> list[Size]:
    """Rows and columns of each."""
    return [(picture.shape[-2], picture.shape[-1]) for picture in pictures]


def group_by_canvas(sizes: Sequence[Size], canvas: Callable[[Sequence[Size]], Size]) -> dict[Size, list[int]]:
    """Places of the pictures that have the same canvas when seen alone."""
    groups: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(canvas([size]), []).append(place)
    return groups


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is no less."""
    return math.ceil(number / multiple) * multiple


def common_canvas(sizes: Sequence[Size], *, multiple: int = 32) -> Size:
    """The smallest canvas that holds pictures of these sizes and whose sides are multiples."""
    rows, columns = (round_up(max(sides), multiple) for sides in zip(*sizes, strict=True))
    return rows, columns
