"""Localization of maps: the pointing game and the energy-based pointing game.

Both compare a map on the image's pixels with annotated boxes or masks of the class. The pointing game uses only the
maximum of the map, the energy-based one all of it, so that it varies less from image to image.

Shapes: maps (H, W), NaN outside the network's input, which is ignored; regions (H, W) bool; boxes (K, 4) left, top,
right, bottom and masks (K, H, W) bool, in pixels of the image.
Sources: the pointing game, Zhang et al. 2018 (Excitation Backprop), arXiv:1608.00507, section 4.1; the energy-based
one, Wang et al. 2020 (Score-CAM), arXiv:1910.01279, section 4.3.
"""

import math

import numpy as np

from van.errors import ShapeError


def rasterize_region(
    size: tuple[int, int], *, boxes: np.ndarray | None = None, masks: np.ndarray | None = None
) -> np.ndarray:
    """Return the pixels that are in any mask or touched by any box, (H, W) bool.

    Raises:
        ShapeError: boxes or masks have other shapes, or a box is empty or not finite.
    """
    region = np.zeros(size, bool)
    if masks is not None:
        masks = np.asarray(masks)
        if masks.ndim != 3 or masks.shape[1:] != size or masks.dtype != bool:
            raise ShapeError(f"masks: expected bool (K, {size[0]}, {size[1]}), got {masks.dtype} {masks.shape}")
        region |= masks.any(axis=0)
    if boxes is not None:
        boxes = np.asarray(boxes, float)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ShapeError(f"boxes: expected (K, 4) as left, top, right, bottom, got {boxes.shape}")
        for left, top, right, bottom in boxes.tolist():
            if not (left < right and top < bottom and math.isfinite(left + top + right + bottom)):
                raise ShapeError(f"boxes: expected left < right and top < bottom, got {(left, top, right, bottom)}")
            rows = slice(max(0, math.floor(top)), max(0, math.ceil(bottom)))
            region[rows, max(0, math.floor(left)) : max(0, math.ceil(right))] = True
    return region


def pointing_game(values: np.ndarray, region: np.ndarray, *, tolerance_px: float = 15.0) -> float:
    """Return 1 if the maximum of a map is in the region or near it, else 0.

    If several pixels have the maximum, return the fraction of them that are: the expected result of choosing one at
    random. A constant map therefore scores as chance does.

    Args:
        values: (H, W), NaN outside the network's input.
        region: (H, W) bool.
        tolerance_px: maximum distance from the region. 15 in the paper, on images of about 500 x 375 pixels.

    Raises:
        ShapeError: see ``valid_pixels``; or the tolerance is negative or not finite.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise ShapeError(f"tolerance_px: expected a finite number, at least 0, got {tolerance_px!r}")
    valid = valid_pixels(values, region)
    peaks = valid & (values == values[valid].max())
    return float(_dilate(region, tolerance_px)[peaks].mean())


def energy_pointing_game(values: np.ndarray, region: np.ndarray) -> float:
    """Return the fraction of a map's positive values that is in the region, 0 to 1.

    A map without positive values scores as a constant one: the fraction of valid pixels that are in the region.

    Raises:
        ShapeError: see ``valid_pixels``.
    """
    valid = valid_pixels(values, region)
    mass = np.where(valid, values, 0.0).clip(min=0.0).astype(np.float64)
    maximum = mass.max()
    if maximum == 0:
        return float(region[valid].mean())
    mass /= maximum  # the sum of very large or very small numbers would overflow or underflow
    return min(1.0, float(mass[region].sum() / mass.sum()))


def valid_pixels(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return which pixels of a map are not NaN, (H, W) bool.

    Raises:
        ShapeError: map and region differ in shape, the map has infinities or only NaN, or no valid pixel is in the
            region.
    """
    if values.ndim != 2 or values.shape != region.shape or region.dtype != bool:
        raise ShapeError(
            "expected a map and a bool region of the image's (H, W), "
            f"got {values.shape} and {region.dtype} {region.shape}"
        )
    valid = ~np.isnan(values)
    if np.isinf(values).any() or not valid.any():
        raise ShapeError("values: expected finite numbers within the network's input, got infinity, or only NaN")
    if not (region & valid).any():
        raise ShapeError(
            "region: expected at least 1 pixel in the network's input, got 0; skip images without the class"
        )
    return valid


def _dilate(region: np.ndarray, radius_px: float) -> np.ndarray:
    """Dilate a region by a disk: pixels whose centers are at most ``radius_px`` from that of one of its pixels."""
    rows, columns = region.shape
    reach = min(math.floor(radius_px), rows - 1)
    dilated = np.zeros_like(region)
    counts = np.zeros((rows, columns + 1), np.int64)
    np.cumsum(region, axis=1, out=counts[:, 1:])
    for dy in range(-reach, reach + 1):
        dx = min(math.floor(math.sqrt(radius_px**2 - dy**2)), columns)
        first = np.maximum(np.arange(columns) - dx, 0)
        last = np.minimum(np.arange(columns) + dx + 1, columns)
        covered = counts[:, last] > counts[:, first]
        source, target = slice(max(0, dy), rows + min(0, dy)), slice(max(0, -dy), rows + min(0, -dy))
        dilated[target] |= covered[source]
    return dilated
