"""Placement of labels, so that they hide neither each other nor small objects.

Shapes: rectangles are left, top, right, bottom in pixels, right and bottom exclusive; maps are (H, W).
"""

import numpy as np

from van.visualization.drawing import Rectangle

_MAX_HIDDEN = 0.5
"""Fraction of a label that may lie on other labels."""
_MIN_INSIDE = 0.6
"""Fraction of a label that must lie on its region."""


def place_label_box(
    label: tuple[int, int], box: Rectangle, bounds: tuple[int, int], occupied: np.ndarray, boxes: np.ndarray
) -> tuple[int, int] | None:
    """Return a position for a label: beside or just within its box, clear of other labels and small boxes if possible.

    Args:
        label, bounds: width and height of the label and of the image.
        box: the box that the label belongs to.
        occupied: (N, 4) rectangles of labels already placed.
        boxes: (M, 4) rectangles that should not be covered.

    Returns:
        The upper left corner, or None if the image is too small or most of the label would cover others.
    """
    width, height = label
    if width > bounds[0] or height > bounds[1]:
        return None
    x1, y1, x2, y2 = box
    rows = (y1 - height, y1, y2, y2 - height)
    columns = (x1, x2 - width, (x1 + x2 - width) // 2)
    corners = [(column, row) for column in columns for row in rows]
    corners += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height), (x2, y2), (x2, y1 - height)]
    corners = [(min(max(x, 0), bounds[0] - width), min(max(y, 0), bounds[1] - height)) for x, y in corners]
    rectangles = np.array([(x, y, x + width, y + height) for x, y in corners])
    on_labels = _intersections(rectangles, occupied).sum(1) / (width * height)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1)
    on_boxes = (_intersections(rectangles, boxes) / areas).sum(1)
    # Covering a label is worse than covering a box; the last term prefers earlier candidates among equal ones.
    best = int(np.argmin(8 * on_labels + on_boxes + 0.02 * np.arange(len(corners))))
    return corners[best] if on_labels[best] < _MAX_HIDDEN else None


def place_in_region(region: np.ndarray, free: np.ndarray, rows: int, columns: int) -> tuple[int, int] | None:
    """Return a position for a label in a region: far from its edge, near its center.

    Args:
        region, free: (H, W) bool: the region that the label belongs to, and the pixels without another label.
        rows, columns: size of the label.

    Returns:
        The label's upper left row and column, or None if the region is too small for it.
    """
    if rows > region.shape[0] or columns > region.shape[1]:
        return None
    inside, blocked = (_window_sums(values, rows, columns) for values in (region, ~free))
    top, left = rows // 2, columns // 2
    distance = distance_to_edge(region, horizontal_step=rows / columns)[
        top : top + inside.shape[0], left : left + inside.shape[1]
    ]
    distance = np.where((blocked == 0) & (inside >= _MIN_INSIDE * rows * columns), distance, 0)
    if not distance.any():
        return None
    down, right = np.nonzero(distance >= 0.9 * distance.max())
    middle = [np.mean(places) for places in np.nonzero(region)]
    best = np.argmin((down + top - middle[0]) ** 2 + (right + left - middle[1]) ** 2)
    return int(down[best]), int(right[best])


def distance_to_edge(region: np.ndarray, *, horizontal_step: float = 1.0) -> np.ndarray:
    """Return the city-block distance of each pixel to the nearest pixel outside the region; 0 outside.

    Pixels beyond the border are outside. A vertical step counts 1, a horizontal one ``horizontal_step``.
    """
    distance = np.pad(np.where(region, np.inf, 0.0), 1)
    for lines, step in ((distance, 1.0), (distance.T, horizontal_step)):  # nearest within a column, then over columns
        for line in range(1, len(lines)):
            np.minimum(lines[line], lines[line - 1] + step, out=lines[line])
        for line in range(len(lines) - 2, -1, -1):
            np.minimum(lines[line], lines[line + 1] + step, out=lines[line])
    return distance[1:-1, 1:-1]


def _window_sums(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the sum of ``values`` over each rectangle of that size, by its upper left corner (integral image)."""
    total = np.pad(values.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]


def _intersections(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection areas (N, M) of rectangles (N, 4) and (M, 4) in pixels."""
    starts = np.maximum(some[:, None, :2], others[None, :, :2])
    ends = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return (ends - starts).clip(0).prod(2)
