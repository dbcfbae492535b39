"""The answer of a classifier for one picture."""

import dataclasses
import heapq
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.pictures import to_rgb
from van.results.drawing import font, shortened

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
        order = heapq.nsmallest(k, range(len(self.labels)), key=lambda index: -self.probabilities[index])
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
        letters = font(font_px)
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
            room_px = width - draw.textlength(percent, font=letters) - 4 * edge_px
            label = shortened(ranked.label, room_px, letters)
            draw.text((edge_px, middle), label, fill="black", font=letters, anchor="lm")
            draw.text((width - edge_px, middle), percent, fill="black", font=letters, anchor="rm")
        return sheet
