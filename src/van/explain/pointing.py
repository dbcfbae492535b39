"""Whether a map points at what is marked: the pointing game, and the share of its mass that lies there.

Both compare a map on the picture's own pixels with boxes or masks of the class. The game looks at the single highest
place, the share at all of the map, so that it varies less from picture to picture.

Shapes: maps (rows, columns), NaN where the network did not look, which counts as nothing; regions (rows, columns)
bool; boxes (K, 4) left, top, right, bottom and masks (K, rows, columns) bool, in pixels of the picture.
Sources: the game, Zhang et al. 2018 (Excitation Backprop), arXiv:1608.00507, section 4.1; the share, Wang et al. 2020
(Score-CAM), arXiv:1910.01279, section 4.3.
"""

import math

import numpy as np

from van.errors import ShapeError


def region_of(size: tuple[int, int], *, boxes: np.ndarray | None = None, masks: np.ndarray | None = None) -> np.ndarray:
    """(rows, columns) bool: the pixels that any mask holds or any box touches.

    Raises:
        ShapeError: boxes or masks have other shapes, or a box is empty or not finite.
    """
    region = np.zeros(size, bool)
    if masks is not None:
        masks = np.asarray(masks)
        if masks.ndim != 3 or masks.shape[1:] != size or masks.dtype != bool:
            raise ShapeError(f"masks are {masks.shape} of {masks.dtype}; wanted (K, {size[0]}, {size[1]}) of bool")
        region |= masks.any(axis=0)
    if boxes is not None:
        boxes = np.asarray(boxes, float)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ShapeError(f"boxes are {boxes.shape}; wanted (K, 4): left, top, right, bottom")
        for left, top, right, bottom in boxes.tolist():
            if not (left < right and top < bottom and math.isfinite(left + top + right + bottom)):
                raise ShapeError(f"a box is {(left, top, right, bottom)}; wanted left < right and top < bottom")
            rows = slice(max(0, math.floor(top)), max(0, math.ceil(bottom)))
            region[rows, max(0, math.floor(left)) : max(0, math.ceil(right))] = True
    return region


def pointing_game(values: np.ndarray, region: np.ndarray, *, tolerance_px: float = 15.0) -> float:
    """Whether the highest place of a map lies in the region or near it: 1 or 0.

    Where several pixels are equally high, the share of them that do: what choosing one of them blindly would win. So a
    flat map wins what chance wins, the share of the seen pixels that lie in the region or near it.

    Args:
        values: (rows, columns), NaN where the network did not look.
        region: (rows, columns) bool.
        tolerance_px: how far from the region's nearest pixel still counts. 15 in the paper, on pictures of some
            500 x 375 pixels.

    Raises:
        ShapeError: see ``seen_values``; or the tolerance is no number from 0.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise ShapeError(f"tolerance_px is {tolerance_px!r}; wanted a number, at least 0")
    seen = seen_values(values, region)
    highest = seen & (values == values[seen].max())
    return float(_widened(region, tolerance_px)[highest].mean())


def energy_share(values: np.ndarray, region: np.ndarray) -> float:
    """The share of a map's positive mass that lies in the region, 0 to 1.

    A map without any gets what a flat one gets: the share of the seen pixels that lie in the region.

    Raises:
        ShapeError: see ``seen_values``.
    """
    seen = seen_values(values, region)
    mass = np.where(seen, values, 0.0).clip(min=0.0).astype(np.float64)
    highest = mass.max()
    if highest == 0:
        return float(region[seen].mean())
    mass /= highest  # sums of very large or very small numbers would leave the range
    return min(1.0, float(mass[region].sum() / mass.sum()))


def seen_values(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: where a map says something.

    Raises:
        ShapeError: the map and the region have other shapes, an infinity is in the map, it says nothing at all, or no
            pixel of the region is seen.
    """
    if values.ndim != 2 or values.shape != region.shape or region.dtype != bool:
        raise ShapeError(
            f"the map is {values.shape}, the region {region.shape} of {region.dtype}; "
            "wanted both as (rows, columns) of the picture, the region of bool"
        )
    seen = ~np.isnan(values)
    if np.isinf(values).any() or not seen.any():
        raise ShapeError("the map is infinite somewhere, or NaN everywhere; wanted finite numbers where it was seen")
    if not (region & seen).any():
        raise ShapeError("no pixel of the region is seen in the map; leave out pictures without the class")
    return seen


def _widened(region: np.ndarray, by_px: float) -> np.ndarray:
    """The pixels whose middles are at most ``by_px`` from the middle of one of the region."""
    rows, columns = region.shape
    reach = min(math.floor(by_px), rows - 1)
    widened = np.zeros_like(region)
    before = np.zeros((rows, columns + 1), np.int64)
    np.cumsum(region, axis=1, out=before[:, 1:])
    for down in range(-reach, reach + 1):
        across = min(math.floor(math.sqrt(by_px**2 - down**2)), columns)
        first = np.maximum(np.arange(columns) - across, 0)
        last = np.minimum(np.arange(columns) + across + 1, columns)
        touched = before[:, last] > before[:, first]
        source, target = slice(max(0, down), rows + min(0, down)), slice(max(0, -down), rows + min(0, -down))
        widened[target] |= touched[source]
    return widened
