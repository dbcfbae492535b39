"""A heatmap: the attribution of each part of an image to a prediction, and its drawing over the image.

Shapes: values (h, w) at the resolution of the layer; on the image (H, W); rectangles are left, top, right, bottom in
pixels of the image, from its upper left corner. Colors: matplotlib's inferno, whose lightness grows evenly for every
reader. The opacity of the overlay is proportional to the attribution, so that the image stays visible where there is
none; the color bar shows color and opacity over a checkerboard.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.images import Box
from van.visualization.drawing import (
    box_to_rectangle,
    class_color,
    draw_box,
    drawing_style,
    load_font,
    truncate_text,
    upscale_small_image,
)

_MIN_PANEL_PX = 300
_MAX_OPACITY = 0.75
"""Opacity of the overlay at the maximum of the map; it is 0 where the map is 0."""
_SATURATION = 0.4
"""Fraction of the image's saturation that is kept: in full it could be taken for colors of the map."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_OUTSIDE_CONTRAST = 0.45
"""Fraction of the contrast that is kept outside the crop, which the network has no input from."""
_CHECKERBOARD = (144, 192)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Heatmap:
    """The attribution of each part of an image to one class or detection.

    Args:
        values: (h, w) float32, unnormalized, at the resolution of the layer.
        extent: the rectangle that the values fill; it reaches over the image's edges where the network pads.
        crop_box: the rectangle that was the network's input.
        image_size: height and width of the image.
        method, layer: the attribution method and the layer that it was applied to.
        label: name of the class.
        score: the network's score of the class or detection; None where there is none.
        box: the detection's box, if the map is about a detection.
        index: the class's index in ``class_names``; it selects the color of the box.
        name: path or other name of the image.

    Raises:
        ShapeError: the values are not a finite (h, w) map, or a rectangle is empty.
    """

    values: np.ndarray
    extent: Box
    crop_box: Box
    image_size: tuple[int, int]
    method: str
    layer: str
    label: str
    score: float | None = None
    box: Box | None = None
    index: int = 0
    name: str = "image"

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or 0 in self.values.shape:
            raise ShapeError(f"values: expected (rows, columns), each at least 1, got {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ShapeError(f"{self.name}: values: expected finite numbers, got NaN or infinity; check the weights")
        for field in ("extent", "crop_box"):
            left, top, right, bottom = getattr(self, field)
            if not (left < right and top < bottom):
                raise ShapeError(f"{field}: expected left < right and top < bottom, got {(left, top, right, bottom)}")

    @property
    def max_value(self) -> float:
        """The maximum of the map, which the brightest color stands for."""
        return float(self.values.max())

    @property
    def is_constant(self) -> bool:
        """Whether all values are equal, so that the map distinguishes no parts."""
        return bool(self.values.max() == self.values.min())

    def to_image_size(self, *, scale: int = 1) -> np.ndarray:
        """Return the map for each pixel of the image, enlarged ``scale`` times: (H, W) float32, NaN outside the crop.

        Interpolation is bilinear between the centers of cells and constant beyond the outermost ones.
        """
        height, width = self.image_size
        left, top, right, bottom = self.crop_box
        rows, row_inside = _cell_positions(
            height * scale, scale, self.extent[1::2], self.values.shape[0], (top, bottom)
        )
        columns, column_inside = _cell_positions(
            width * scale, scale, self.extent[::2], self.values.shape[1], (left, right)
        )
        values = _interpolate(_interpolate(self.values.astype(np.float32), rows, axis=0), columns, axis=1)
        values[~row_inside] = np.nan
        values[:, ~column_inside] = np.nan
        return values

    def peak(self) -> tuple[int, int]:
        """Return row and column of the pixel with the maximum, the first of equal ones."""
        row, column = np.unravel_index(int(np.nanargmax(self.to_image_size())), self.image_size)
        return int(row), int(column)

    def resized(self, max_size: int) -> "Heatmap":
        """Return the map for a copy of the image whose longer side has at most ``max_size`` pixels."""
        factor = min(1.0, max_size / max(self.image_size))
        height, width = (max(1, round(side * factor)) for side in self.image_size)
        vertical, horizontal = height / self.image_size[0], width / self.image_size[1]

        def resize(window: Box) -> Box:
            left, top, right, bottom = window
            return left * horizontal, top * vertical, right * horizontal, bottom * vertical

        return dataclasses.replace(
            self,
            extent=resize(self.extent),
            crop_box=resize(self.crop_box),
            image_size=(height, width),
            box=None if self.box is None else resize(self.box),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values, those of the map row by row."""
        plain: dict[str, Any] = {key: getattr(self, key) for key in ("label", "score", "method", "layer")}
        plain |= {"extent": list(self.extent), "crop_box": list(self.crop_box), "values": self.values.tolist()}
        return plain if self.box is None else {**plain, "box": list(self.box)}

    def draw(self, image: Image.Image, *, legend: bool = True) -> Image.Image:
        """Return a copy of ``image`` under the map, above a legend with a color bar; small images are enlarged.

        The opacity grows with the value. Pixels outside the crop are paler, beyond a line. The scale starts at 0, so
        that a constant map has a single color.

        Args:
            legend: whether to add class, method, layer and color bar below the image.

        Raises:
            ShapeError: the image's size is not that of the map.
        """
        pixels, scale = upscale_small_image(image, self.image_size)
        intensity = self.to_image_size(scale=scale) / (self.max_value if self.max_value > 0 else 1.0)
        sheet = Image.fromarray(_overlay(pixels, intensity))
        _, line_px = drawing_style(*sheet.size)
        draw = ImageDraw.Draw(sheet)
        if self._is_cropped:
            rectangle = _clip_to_image(self.crop_box, self.image_size, scale)
            draw_box(draw, rectangle, (255, 255, 255), max(1, line_px // 2))
        if self.box is not None:
            rectangle = box_to_rectangle([side * scale for side in self.box], sheet.size, line_px)
            draw_box(draw, rectangle, class_color(self.index), line_px)
        return _add_color_bar(sheet, self._legend_lines(), self.max_value) if legend else sheet

    @property
    def _is_cropped(self) -> bool:
        left, top, right, bottom = self.crop_box
        return left > 0.5 or top > 0.5 or right < self.image_size[1] - 0.5 or bottom < self.image_size[0] - 0.5

    def _legend_lines(self) -> list[str]:
        score = "" if self.score is None else f" {self.score:.1%}"
        return [self.label + score, f"attribution: {self.method}, {self.layer}" + (" (constant)" * self.is_constant)]


@functools.lru_cache(maxsize=1)
def heatmap_colormap() -> np.ndarray:
    """Return the color of each level from 0 to the maximum, (256, 3) uint8."""
    import matplotlib  # imported here: it takes 0.3 s, which only drawing needs

    return np.rint(255 * matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


def _cell_positions(
    pixels: int, scale: int, extent: tuple[float, ...], cells: int, crop: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's position along one axis, in cells from the first's center, and if it is in the crop."""
    centers = (np.arange(pixels) + 0.5) / scale
    positions = (centers - extent[0]) / (extent[1] - extent[0]) * cells - 0.5
    inside = (centers > crop[0]) & (centers < crop[1])
    if not inside.any():  # a crop narrower than a pixel
        inside[np.abs(centers - sum(crop) / 2).argmin()] = True
    return positions.clip(0, cells - 1), inside


def _interpolate(values: np.ndarray, positions: np.ndarray, *, axis: int) -> np.ndarray:
    """Interpolate ``values`` linearly at ``positions`` along an axis."""
    before = np.floor(positions).astype(int)
    after = np.minimum(before + 1, values.shape[axis] - 1)
    weight = (positions - before).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight
    return values.take(before, axis) * (1 - weight) + values.take(after, axis) * weight


def _apply_colormap(background: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Draw levels (H, W) in 0..1 over a background (H, W, 3) with opacity in proportion to the level."""
    colors = heatmap_colormap()[np.rint(255 * level).astype(np.uint8)].astype(np.float32)
    opacity = (_MAX_OPACITY * level).astype(np.float32)[..., None]
    return background * (1 - opacity) + colors * opacity


def _overlay(pixels: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """Draw intensities (H, W) over pixels (H, W, 3) uint8; pixels are paler where the intensity is NaN."""
    inside = np.isfinite(intensity)
    gray = (pixels @ _LUMA)[..., None]
    desaturated = gray + _SATURATION * (pixels - gray)
    overlay = _apply_colormap(desaturated, np.nan_to_num(intensity).clip(0, 1))
    pale = 255 - (255 - pixels.astype(np.float32)) * _OUTSIDE_CONTRAST
    return np.rint(np.where(inside[..., None], overlay, pale)).astype(np.uint8)


def _clip_to_image(window: Box, size: tuple[int, int], scale: int) -> tuple[int, int, int, int]:
    """Return the part of a window within the image, in pixels of the drawing."""
    left, top, right, bottom = window
    x1, y1 = max(0, round(left * scale)), max(0, round(top * scale))
    x2, y2 = min(size[1] * scale, round(right * scale)), min(size[0] * scale, round(bottom * scale))
    return x1, y1, max(x2, x1 + 2), max(y2, y1 + 2)


def _color_bar(width: int, height: int) -> Image.Image:
    """Return all colors from 0 to the maximum over a checkerboard, which shows their opacity."""
    square = max(2, height // 2)
    rows, columns = np.mgrid[:height, :width] // square
    board = np.array(_CHECKERBOARD, np.float32)[(rows + columns) % 2]
    level = np.linspace(0, 1, width)[None].repeat(height, axis=0)
    return Image.fromarray(np.rint(_apply_colormap(board[..., None].repeat(3, axis=2), level)).astype(np.uint8))


def _add_color_bar(image: Image.Image, lines: list[str], max_value: float) -> Image.Image:
    """Return the image above lines of text and a color bar from 0 to ``max_value``."""
    font_px, _ = drawing_style(*image.size)
    font, row_px, gap = load_font(font_px), round(1.5 * font_px), font_px // 2
    width = max(image.width, _MIN_PANEL_PX)
    sheet = Image.new("RGB", (width, image.height + gap + (len(lines) + 1) * row_px), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = image.height + gap // 2
    for row, line in enumerate(lines):
        text = truncate_text(line, width - 2 * gap, font)
        draw.text((gap, top + (row + 0.5) * row_px), text, fill="black", font=font, anchor="lm")
    middle = top + (len(lines) + 0.5) * row_px
    low, high = "0", f"{max_value:.3g}"
    left = gap + round(font.getlength(low)) + gap
    right = width - gap - round(font.getlength(high)) - gap
    sheet.paste(_color_bar(right - left, max(1, font_px)), (left, round(middle - font_px / 2)))
    draw.text((gap, middle), low, fill="black", font=font, anchor="lm")
    draw.text((width - gap, middle), high, fill="black", font=font, anchor="rm")
    return sheet
