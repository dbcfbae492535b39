"""What is known of the receptive field of one cell of a network: what it can read, and what it does read.

Shapes: pictures of (rows, columns) pixels; ``heat`` is (rows, columns), its sum is 1. Pixels are counted from the
top left corner of the picture, and a span may reach over its edge: there the network reads the padding.
Sources: Araujo et al. 2019, "Computing receptive fields of convolutional neural networks" (Distill);
Luo et al. 2016, arXiv:1701.04128.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from van.errors import ShapeError

SHARES = (0.5, 0.9, 0.99)
"""How much of the effective field the squares hold that are written down."""

THRESHOLD = 1 - 0.9545
"""A pixel counts whose value is above this share of the largest: what a Gaussian has outside two deviations."""


class Span(NamedTuple):
    """The pixels that are read along one axis, ``first`` and ``last`` among them; infinite where nothing ends them."""

    first: float
    last: float

    @property
    def length(self) -> float:
        """How many they are."""
        return self.last - self.first + 1

    @property
    def middle(self) -> float:
        """Where they are centred; NaN if nothing ends them."""
        return (self.first + self.last) / 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReceptiveField:
    """The field of the middle cell of a layer.

    Args:
        network, layer: their names.
        size: rows and columns of the picture.
        cells: rows and columns of the layer's map.
        cell: row and column of the cell.
        rows, columns: what the cell can read, the theoretical field.
        how: "traced" from kernels, strides, dilations and paddings, so that it does not depend on the picture;
            "probed" for one picture of this size, at whose edge it ends.
        heat: what the cell does read, the effective field: the mean size of its gradient by each pixel.

    Raises:
        ShapeError: ``heat`` is not of the picture's size, or not of numbers from 0 with a positive sum.
    """

    network: str
    layer: str
    size: tuple[int, int]
    cells: tuple[int, int]
    cell: tuple[int, int]
    rows: Span
    columns: Span
    how: Literal["traced", "probed"]
    heat: np.ndarray

    def __post_init__(self) -> None:
        if self.heat.shape != self.size:
            raise ShapeError(f"heat is {self.heat.shape}; wanted {self.size}, the picture's rows and columns")
        if not (self.heat >= 0).all() or not 0 < self.heat.sum() < math.inf:
            raise ShapeError(f"heat adds up to {self.heat.sum():g}; wanted numbers from 0 with a positive sum")

    @property
    def unbounded(self) -> bool:
        """Whether it reads every pixel of a picture of any size."""
        return math.isinf(self.rows.length) or math.isinf(self.columns.length)

    @property
    def larger_than_picture(self) -> bool:
        """Whether more could be read, along one axis at least, than this picture has."""
        return self.rows.length > self.size[0] or self.columns.length > self.size[1]

    @property
    def fills_picture(self) -> bool:
        """Whether every pixel of this picture can be read."""
        spans = zip((self.rows, self.columns), self.size, strict=True)
        return all(span.first <= 0 and span.last >= length - 1 for span, length in spans)

    @property
    def readable(self) -> str:
        """What the cell can read, in words."""
        if self.unbounded:
            return "can read a picture of any size"
        if self.how == "probed" and self.fills_picture:
            return "can read all of the picture"
        high, wide = self.rows.length, self.columns.length
        text = f"can read {wide:.0f} px" if high == wide else f"can read {wide:.0f} x {high:.0f} px"
        return f"{text} > picture" if self.larger_than_picture else text

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column around which the squares of ``side`` lie.

        It is the middle of what a traced cell can read, and else the middle of the cell's own share of the picture.
        """
        nominal = [
            (at + 0.5) * length / count - 0.5
            for at, length, count in zip(self.cell, self.size, self.cells, strict=True)
        ]
        traced = [span.middle if self.how == "traced" else math.nan for span in (self.rows, self.columns)]
        row, column = (mid if math.isfinite(mid) else own for mid, own in zip(traced, nominal, strict=True))
        return row, column

    def side(self, share: float) -> float:
        """Side, in pixels, of the smallest square around the centre that holds ``share`` of the effective field.

        Where the centre is not the picture's, a square that holds nearly all may reach over an edge.
        """
        row, column = self.centre
        down, right = (np.abs(np.arange(length) - at) for length, at in zip(self.size, (row, column), strict=True))
        distances = np.maximum(down[:, None], right[None, :]).ravel()
        order = np.argsort(distances, kind="stable")
        held = np.cumsum(self.heat.ravel()[order], dtype=np.float64)
        place = int(np.searchsorted(held, share * held[-1] * (1 - 1e-9)))
        return float(2 * distances[order][place] + 1)

    def area(self, threshold: float = THRESHOLD) -> float:
        """The share of the picture's pixels whose value is above ``threshold`` of the largest."""
        return float((self.heat > threshold * self.heat.max()).mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a length that nothing ends is None, and so is the box then."""
        box = (self.columns.first, self.rows.first, self.columns.last + 1, self.rows.last + 1)
        return {
            "network": self.network,
            "layer": self.layer,
            "picture": list(self.size),
            "cells": list(self.cells),
            "cell": list(self.cell),
            "theoretical": {
                "rows": _finite(self.rows.length),
                "columns": _finite(self.columns.length),
                "box": None if self.unbounded else [int(edge) for edge in box],
                "how": self.how,
                "unbounded": self.unbounded,
                "fills_picture": self.fills_picture,
            },
            "effective": {
                "side_px": {f"{share:g}": self.side(share) for share in SHARES},
                "area": {"above": round(THRESHOLD, 4), "share": self.area()},
            },
        }


def _finite(length: float) -> int | None:
    return int(length) if math.isfinite(length) else None
