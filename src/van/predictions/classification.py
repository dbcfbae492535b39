"""The prediction of a classifier for one image."""

import dataclasses
import heapq
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.images import to_rgb
from van.visualization.drawing import load_font, truncate_text

MAX_SCORE = 1.001
"""Scores up to this are accepted: float16 and bfloat16 softmax may round to slightly more than 1."""
_MIN_WIDTH_PX = 240


class ClassScore(NamedTuple):
    """A class, its score and its index in ``class_names``."""

    label: str
    score: float
    index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """A score for every class.

    Args:
        class_names: names of the classes.
        scores: softmax probability of each class; they sum to 1.
        name: path or other name of the image.

    Raises:
        ShapeError: the numbers of names and scores differ, or a score is not in 0..1 (NaN, for one).
    """

    class_names: tuple[str, ...]
    scores: tuple[float, ...]
    name: str = "image"

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.scores):
            raise ShapeError(
                f"scores: expected one for each of {len(self.class_names)} classes, got {len(self.scores)}"
            )
        for label, score in zip(self.class_names, self.scores, strict=True):
            if not 0 <= score <= MAX_SCORE:  # also rejects NaN, which compares as false
                raise ShapeError(f"score of class {label!r}: expected 0 to 1, got {score}; check the model's weights")

    def top(self, k: int = 5) -> list[ClassScore]:
        """Return the ``k`` classes with the highest scores, best first, or all if there are fewer; ties in class order.

        Raises:
            ShapeError: ``k`` is less than 1.
        """
        if k < 1:
            raise ShapeError(f"k: expected at least 1, got {k}")
        order = heapq.nsmallest(k, range(len(self.class_names)), key=lambda index: -self.scores[index])
        return [ClassScore(self.class_names[index], self.scores[index], index) for index in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Return the image's name and its ``k`` best classes as JSON-serializable values."""
        return {"image": self.name, "classes": [ranked._asdict() for ranked in self.top(k)]}

    def draw(self, image: Image.Image, k: int = 3) -> Image.Image:
        """Return a copy of ``image`` above a bar chart of its ``k`` best classes; small images are enlarged."""
        scale = max(1, _MIN_WIDTH_PX // max(*image.size, 1))
        upper = to_rgb(image).resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        width = max(upper.width, _MIN_WIDTH_PX)
        font_px = max(13, min(width // 24, upper.height // 6))
        font = load_font(font_px)
        row_px, edge_px = int(font_px * 1.7), font_px // 3
        best = self.top(k)
        sheet = Image.new("RGB", (width, upper.height + row_px * len(best) + edge_px), "white")
        sheet.paste(upper, ((width - upper.width) // 2, 0))
        draw = ImageDraw.Draw(sheet)
        for row, ranked in enumerate(best):
            top = upper.height + edge_px + row * row_px
            middle = top + (row_px - 3) // 2
            bar = (0, top, round((width - 1) * min(ranked.score, 1)), top + row_px - 3)
            draw.rectangle(bar, fill="#9ecae1" if row == 0 else "#deebf7")
            percent = f"{ranked.score:.1%}"
            room_px = width - draw.textlength(percent, font=font) - 4 * edge_px  # not over the percentage
            label = truncate_text(ranked.label, room_px, font)
            draw.text((edge_px, middle), label, fill="black", font=font, anchor="lm")
            draw.text((width - edge_px, middle), percent, fill="black", font=font, anchor="rm")
        return sheet
