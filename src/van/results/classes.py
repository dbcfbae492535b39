"""The answer of a classifier for one picture."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from van.errors import ShapeError
from van.pictures import to_rgb

_LEAST_WIDTH_PX = 240


class RankedClass(NamedTuple):
    """One class of an answer, with its place in the label list."""

    label: str
    probability: float
    index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """A probability for every class.

    Args:
        labels: names of the classes.
        probabilities: one for each label, adding up to 1.
        name: the picture's path or other name.

    Raises:
        ShapeError: their numbers differ, or a probability is none (NaN, for one).
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    name: str = "picture"

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.probabilities):
            raise ShapeError(f"{len(self.labels)} labels for {len(self.probabilities)} probabilities")
        for label, value in zip(self.labels, self.probabilities, strict=True):
            if not 0 <= value <= 1.001:  # rounding is forgiven, NaN is not
                raise ShapeError(f"the probability of {label!r} is {value}; wanted 0 to 1, so look at the weights")

    def top(self, k: int = 5) -> list[RankedClass]:
        """The ``k`` most probable classes, best first (all of them if there are fewer); equal ones in label order.

        Raises:
            ShapeError: ``k`` is less than 1.
        """
        if k < 1:
            raise ShapeError(f"k is {k}; wanted at least 1")
        order = sorted(range(len(self.labels)), key=lambda index: -self.probabilities[index])[:k]
        return [RankedClass(self.labels[index], self.probabilities[index], index) for index in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Plain values: the picture's name and its ``k`` best classes."""
        return {"picture": self.name, "classes": [ranked._asdict() for ranked in self.top(k)]}

    def draw(self, picture: Image.Image, k: int = 3) -> Image.Image:
        """A copy of ``picture`` above a panel with its ``k`` best classes as bars; small pictures are enlarged."""
        scale = max(1, _LEAST_WIDTH_PX // max(*picture.size, 1))
        upper = to_rgb(picture).resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        width = max(upper.width, _LEAST_WIDTH_PX)
        font_px = max(13, min(width // 24, upper.height // 6))
        font = _font(font_px)
        row_px, edge_px = int(font_px * 1.7), font_px // 3
        best = self.top(k)
        sheet = Image.new("RGB", (width, upper.height + row_px * len(best) + edge_px), "white")
        sheet.paste(upper, ((width - upper.width) // 2, 0))
        draw = ImageDraw.Draw(sheet)
        for row, ranked in enumerate(best):
            top = upper.height + edge_px + row * row_px
            middle = top + (row_px - 3) // 2
            bar = (0, top, round((width - 1) * min(ranked.probability, 1)), top + row_px - 3)
            draw.rectangle(bar, fill="#9ecae1" if row == 0 else "#deebf7")
            percent = f"{ranked.probability:.1%}"
            room_px = width - draw.textlength(percent, font=font) - 4 * edge_px
            draw.text((edge_px, middle), _shortened(ranked.label, room_px, font), fill="black", font=font, anchor="lm")
            draw.text((width - edge_px, middle), percent, fill="black", font=font, anchor="rm")
        return sheet


def one_line(text: str) -> str:
    """``text`` without what no font can draw: line breaks, control characters, halves of characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _shortened(label: str, room_px: float, font: ImageFont.FreeTypeFont) -> str:
    """As much of ``label`` as fits, found by halving."""
    label = one_line(label)
    if len(label) < room_px and font.getlength(label) <= room_px:
        return label
    fits, too_long = 0, min(len(label), int(room_px)) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if font.getlength(label[:middle] + "...") <= room_px else (fits, middle)
    return label[:fits] + "..."


@functools.lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Greek, Cyrillic, Arabic and Hebrew beside Latin letters."""
    import matplotlib  # a third of a second that only pictures need

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)
