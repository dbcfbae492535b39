"""The theoretical and the effective receptive field of one cell of a network.

The theoretical field is the region that can influence the cell, the effective field the influence of each pixel.
Shapes: images (H, W) pixels; ``effective`` (H, W), its sum is 1. Pixels are counted from the top left corner of the
image, and a span may reach over its edge, into the padding.
Sources: Araujo et al. 2019, "Computing receptive fields of convolutional neural networks" (Distill);
Luo et al. 2016, arXiv:1701.04128.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from van.errors import ShapeError

FRACTIONS = (0.5, 0.9, 0.99)
"""Fractions of the effective field for which ``to_dict`` has the size of the square that contains them."""

THRESHOLD = 1 - 0.9545
"""Pixels above this fraction of the maximum count as area: what a Gaussian has outside two standard deviations."""


class Span(NamedTuple):
    """The pixels of the field along one axis, both ends inclusive; infinite where the field is unbounded."""

    first: float
    last: float

    @property
    def length(self) -> float:
        """Number of pixels."""
        return self.last - self.first + 1

    @property
    def center(self) -> float:
        """Center of the span; NaN if it is unbounded."""
        return (self.first + self.last) / 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReceptiveField:
    """The receptive field of the center cell of a layer.

    Args:
        network, layer: their names.
        image_size: height and width of the image.
        map_size: height and width of the layer's feature map.
        cell: row and column of the cell.
        rows, columns: the theoretical field.
        method: "traced" from kernels, strides, dilations and paddings, and so independent of the image; or "probed"
            with images of this size, at whose edge it ends.
        effective: the effective field: the mean absolute gradient of the cell by each pixel.

    Raises:
        ShapeError: ``effective`` does not have the image's size, or is not nonnegative with a positive sum.
    """

    network: str
    layer: str
    image_size: tuple[int, int]
    map_size: tuple[int, int]
    cell: tuple[int, int]
    rows: Span
    columns: Span
    method: Literal["traced", "probed"]
    effective: np.ndarray

    def __post_init__(self) -> None:
        if self.effective.shape != self.image_size:
            raise ShapeError(
                f"effective: expected {self.image_size}, the image's height and width, got {self.effective.shape}"
            )
        if not (self.effective >= 0).all() or not 0 < self.effective.sum() < math.inf:
            total = self.effective.sum()
            raise ShapeError(f"effective: expected nonnegative numbers with a positive sum, got a sum of {total:g}")

    @property
    def unbounded(self) -> bool:
        """Whether the theoretical field contains images of any size."""
        return math.isinf(self.rows.length) or math.isinf(self.columns.length)

    @property
    def larger_than_image(self) -> bool:
        """Whether the theoretical field is longer than this image along at least one axis."""
        return self.rows.length > self.image_size[0] or self.columns.length > self.image_size[1]

    @property
    def covers_image(self) -> bool:
        """Whether the theoretical field contains every pixel of this image."""
        spans = zip((self.rows, self.columns), self.image_size, strict=True)
        return all(span.first <= 0 and span.last >= length - 1 for span, length in spans)

    @property
    def theoretical_text(self) -> str:
        """The size of the theoretical field as text."""
        if self.unbounded:
            return "theoretical: unbounded"
        if self.method == "probed" and self.covers_image:
            return "theoretical: whole image"
        height, width = self.rows.length, self.columns.length
        text = f"theoretical: {width:.0f} px" if height == width else f"theoretical: {width:.0f} x {height:.0f} px"
        return f"{text} > image" if self.larger_than_image else text

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the center of the squares of ``effective_size``.

        It is the center of a traced theoretical field, else the center of the cell's own area of the image.
        """
        nominal = [
            (at + 0.5) * length / count - 0.5
            for at, length, count in zip(self.cell, self.image_size, self.map_size, strict=True)
        ]
        traced = [span.center if self.method == "traced" else math.nan for span in (self.rows, self.columns)]
        row, column = (center if math.isfinite(center) else own for center, own in zip(traced, nominal, strict=True))
        return row, column

    def effective_size(self, fraction: float) -> float:
        """Return the side, in pixels, of the smallest centered square with ``fraction`` of the effective field.

        Where the center is not the image's, a large square may reach over an edge.
        """
        row, column = self.center
        down, right = (
            np.abs(np.arange(length) - at) for length, at in zip(self.image_size, (row, column), strict=True)
        )
        distances = np.maximum(down[:, None], right[None, :]).ravel()
        order = np.argsort(distances, kind="stable")
        cumulative = np.cumsum(self.effective.ravel()[order], dtype=np.float64)
        place = int(np.searchsorted(cumulative, fraction * cumulative[-1] * (1 - 1e-9)))
        return float(2 * distances[order][place] + 1)

    def effective_area(self, threshold: float = THRESHOLD) -> float:
        """Return the fraction of the image's pixels above ``threshold`` times the maximum of the effective field."""
        return float((self.effective > threshold * self.effective.max()).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values; unbounded lengths are None, and the box is None then."""
        box = (self.columns.first, self.rows.first, self.columns.last + 1, self.rows.last + 1)
        return {
            "network": self.network,
            "layer": self.layer,
            "image_size": list(self.image_size),
            "map_size": list(self.map_size),
            "cell": list(self.cell),
            "theoretical": {
                "height": _finite(self.rows.length),
                "width": _finite(self.columns.length),
                "box": None if self.unbounded else [int(edge) for edge in box],
                "method": self.method,
                "unbounded": self.unbounded,
                "covers_image": self.covers_image,
            },
            "effective": {
                "size_px": {f"{fraction:g}": self.effective_size(fraction) for fraction in FRACTIONS},
                "area": {"threshold": round(THRESHOLD, 4), "fraction": self.effective_area()},
            },
        }


def _finite(length: float) -> int | None:
    return int(length) if math.isfinite(length) else None
