"""Where labels go, so that they hide neither each other nor what they are about.

Shapes: rectangles are left, top, right, bottom in pixels, the last column and row left out; maps are (rows, columns).
"""

import numpy as np

from van.results.drawing import Rectangle

_MOST_HIDDEN = 0.5
"""Share of a label that may lie on others."""
_LEAST_WITHIN = 0.6
"""Share of a label that must lie on the region it names."""


def place_chip(
    chip: tuple[int, int], box: Rectangle, bounds: tuple[int, int], taken: np.ndarray, boxes: np.ndarray
) -> tuple[int, int] | None:
    """Where a chip goes: beside or just within its box, off other chips and small boxes where there is such a place.

    Args:
        chip, bounds: width and height of the chip and of the picture.
        box: what the chip is about.
        taken: (N, 4) rectangles of chips that are there.
        boxes: (M, 4) rectangles that are better not covered.

    Returns:
        Its upper left corner, or None if the picture is too small or most of the chip would cover others.
    """
    width, height = chip
    if width > bounds[0] or height > bounds[1]:
        return None
    x1, y1, x2, y2 = box
    rows = (y1 - height, y1, y2, y2 - height)
    columns = (x1, x2 - width, (x1 + x2 - width) // 2)
    corners = [(column, row) for column in columns for row in rows]
    corners += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height), (x2, y2), (x2, y1 - height)]
    corners = [(min(max(x, 0), bounds[0] - width), min(max(y, 0), bounds[1] - height)) for x, y in corners]
    rectangles = np.array([(x, y, x + width, y + height) for x, y in corners])
    on_chips = _shared(rectangles, taken).sum(1) / (width * height)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1)
    on_boxes = (_shared(rectangles, boxes) / areas).sum(1)
    best = int(np.argmin(8 * on_chips + on_boxes + 0.02 * np.arange(len(corners))))
    return corners[best] if on_chips[best] < _MOST_HIDDEN else None


def room_within(region: np.ndarray, free: np.ndarray, rows: int, columns: int) -> tuple[int, int] | None:
    """Where in a region a label goes: deep within it, near its middle.

    Args:
        region, free: bool maps: what the label names, and where no other label is.
        rows, columns: size of the label.

    Returns:
        The label's upper left row and column, or None if the region is too small for it.
    """
    if rows > region.shape[0] or columns > region.shape[1]:
        return None
    within, blocked = (_sums(values, rows, columns) for values in (region, ~free))
    top, left = rows // 2, columns // 2
    depth = depth_within(region, across=rows / columns)[top : top + within.shape[0], left : left + within.shape[1]]
    depth = np.where((blocked == 0) & (within >= _LEAST_WITHIN * rows * columns), depth, 0)
    if not depth.any():
        return None
    down, right = np.nonzero(depth >= 0.9 * depth.max())
    middle = [np.mean(places) for places in np.nonzero(region)]
    best = np.argmin((down + top - middle[0]) ** 2 + (right + left - middle[1]) ** 2)
    return int(down[best]), int(right[best])


def depth_within(region: np.ndarray, *, across: float = 1.0) -> np.ndarray:
    """Steps from each pixel of a map to the nearest outside, which is also beyond its border; 0 outside.

    A step is 1 down or up and ``across`` to either side.
    """
    depth = np.pad(np.where(region, np.inf, 0.0), 1)
    for lines, step in ((depth, 1.0), (depth.T, across)):  # what is nearest in a column, then over all columns
        for number in range(1, len(lines)):
            np.minimum(lines[number], lines[number - 1] + step, out=lines[number])
        for number in range(len(lines) - 2, -1, -1):
            np.minimum(lines[number], lines[number + 1] + step, out=lines[number])
    return depth[1:-1, 1:-1]


def _sums(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The sum of ``values`` over each rectangle of that size, by its upper left corner."""
    total = np.pad(values.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) pixels that rectangles (N, 4) and (M, 4) have in common."""
    starts = np.maximum(some[:, None, :2], others[None, :, :2])
    ends = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return (ends - starts).clip(0).prod(2)
