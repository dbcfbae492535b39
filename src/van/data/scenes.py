"""Digit scenes: real handwritten digits at random sizes, places and overlaps on textured ground, made by seed.

The embedded set of detection and segmentation. Scenes to learn from show digits that are learnt, held-out ones
show held-out digits (``van.data.digits``). A later digit covers an earlier one; what is left to see of a digit
is its mask, and one that is nearly covered is not there.

Shapes: pictures (S, S, 3) and masks (S, S), rows from the top; boxes x1, y1, x2, y2 in pixels, the last
column and row included (so x2 - x1 is the width).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from van.data.digits import load_digits
from van.data.pictures import Item
from van.errors import UsageError

_LEAST_VISIBLE = 0.35
"""Share of a digit's pixels that must be seen."""
_INK = 0.45
"""Share of a pixel's ink from which on it belongs to the digit."""
MOST_DIGITS = 6
"""In a scene, where nothing else is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """One digit of a scene: its class from 0 and what is seen of it."""

    label: int
    mask: np.ndarray
    """(S, S) bool."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture and the things in it, the nearest last; their masks do not overlap."""

    picture: Image.Image
    things: tuple[Thing, ...]

    def semantic_map(self) -> np.ndarray:
        """(S, S) uint8: 0 where there is ground, else the class plus one."""
        seen = np.zeros(self.picture.size[::-1], np.uint8)
        for thing in self.things:
            seen[thing.mask] = thing.label + 1
        return seen


def digit_scenes(
    part: str, *, count: int, size_px: int = 128, seed: int = 0, most_digits: int = MOST_DIGITS
) -> Iterator[Scene]:
    """``count`` scenes of ``part``, ``train`` or ``val``; scene i is the same whatever ``count`` is.

    Each has 1 to ``most_digits`` digits, of which others may hide some; with 1 each shows exactly one.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: there is no such part, or a number is too small.
    """
    if part not in ("train", "val"):
        raise UsageError(f"part is {part!r}; wanted train or val")
    if count < 1 or size_px < 32:
        raise UsageError(f"count is {count}, size_px {size_px}; wanted at least 1 and at least 32")
    if most_digits < 1:
        raise UsageError(f"most_digits is {most_digits}; wanted at least 1")
    split = load_digits()
    digits = split.train if part == "train" else split.validation
    for number in range(count):
        random = np.random.default_rng([seed, part == "val", number])
        scene = _scene(digits, size_px, most_digits, random)
        while most_digits == 1 and not scene.things:  # of a digit 4 pixels wide no pixel may be dark enough
            scene = _scene(digits, size_px, most_digits, random)
        yield scene


def _scene(digits: Sequence[Item], size_px: int, most_digits: int, random: np.random.Generator) -> Scene:
    canvas = _ground(size_px, random)
    things: list[tuple[Thing, int]] = []
    for _ in range(random.integers(1, most_digits + 1)):
        digit = digits[int(random.integers(len(digits)))]
        ink = _placed(digit, size_px, random)
        mask = ink > _INK
        if not mask.any():
            continue
        colour = _colour_unlike(canvas[mask].mean(0), random)
        canvas = canvas + ink[..., None] * (colour - canvas)
        things = [(dataclasses.replace(thing, mask=thing.mask & ~mask), whole) for thing, whole in things]
        things.append((Thing(label=digit.target, mask=mask), int(mask.sum())))
    seen = tuple(thing for thing, whole in things if thing.mask.sum() >= _LEAST_VISIBLE * whole)
    return Scene(picture=Image.fromarray(np.rint(canvas * 255).astype(np.uint8)), things=seen)


def _ground(size_px: int, random: np.random.Generator) -> np.ndarray:
    """(S, S, 3) in 0..1: soft clouds of two colours, and grain."""
    two = random.uniform(0.1, 0.9, (2, 3))
    cells = int(random.integers(3, 12))
    clouds = Image.fromarray(random.uniform(0, 1, (cells, cells)).astype(np.float32))
    share = np.asarray(clouds.resize((size_px, size_px), Image.Resampling.BICUBIC))[..., None].clip(0, 1)
    grain = random.normal(0, 0.03, (size_px, size_px, 1))
    return (two[0] + share * (two[1] - two[0]) + grain).clip(0, 1)


def _placed(digit: Item, size_px: int, random: np.random.Generator) -> np.ndarray:
    """(S, S) in 0..1: the ink of a digit, enlarged, turned a little, somewhere within the scene."""
    side = round(size_px * float(np.exp(random.uniform(np.log(0.14), np.log(0.5)))))
    assert isinstance(digit.source, Image.Image)
    grey = digit.source.convert("L").resize((side, side), Image.Resampling.BICUBIC)
    grey = grey.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR)
    left, top = (int(random.integers(0, size_px - side + 1)) for _ in range(2))
    ink = np.zeros((size_px, size_px))
    ink[top : top + side, left : left + side] = np.asarray(grey) / 255.0
    return ink


def _colour_unlike(ground: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A colour whose brightness differs from the ground's enough to be read."""
    while True:
        colour = random.uniform(0, 1, 3)
        if abs(colour.mean() - ground.mean()) > 0.25:
            return colour
