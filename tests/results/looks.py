"""Whether a picture still looks as it did, whatever version drew its letters.

A pinned picture is at most 240 pixels long, each the mean of what it covers, in 256 colours, with the size of what it
was made of. A picture is shrunk likewise and has to agree in three things. Its size, but for a fiftieth. What is where:
both are smoothed over nine pixels, and each pixel must then lie, in each channel, within ``TOLERANCE`` levels of what
the other has at most two pixels away. How much there is of each hue: within ``HUE_TOLERANCE``.

Why so: matplotlib 3.10.0 and 3.11.2 set the same letters and soften the same edges so differently that single pixels
of the shrunk charts differ by 112 levels; by this measure the two are at most 31 levels apart, while a class's name in
another's place is 42 off and every missing curve more than 50. A thin curve in another colour may be but 12 levels off;
of its hue, though, there is a fifth less, where the versions differ by 0.04 at most.

To pin pictures anew, look at what the tests draw, then run them with ``VAN_PIN_PICTURES=1``.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PINNED = Path(__file__).with_name("pinned")
LONG_SIDE_PX = 240
TOLERANCE = 36
HUE_TOLERANCE = 0.15
_HUES = 12
_ALMOST_GREY = 16 / 255
_LITTLE = 0.001
"""Of a hue, what is too little to be compared: the share of the picture that it would fill."""


def assert_looks_like(picture: Image.Image | Path, name: str, folder: Path) -> None:
    """Compare with ``pinned/NAME.png``, or make it where ``VAN_PIN_PICTURES`` is set; see ``compare``."""
    if isinstance(picture, Path):
        with Image.open(picture) as file:
            picture = file.convert("RGB")
    pinned = PINNED / f"{name}.png"
    if os.environ.get("VAN_PIN_PICTURES"):
        pin(picture, pinned)
    compare(picture, pinned, folder)


def compare(picture: Image.Image, pinned: Path, folder: Path) -> None:
    """Raise if ``picture`` looks different; what was seen, and where it differs, is then left in ``folder``."""
    assert pinned.is_file(), f"{pinned} is missing; look at the picture, then make it with VAN_PIN_PICTURES=1"
    with Image.open(pinned) as file:
        size, small = file.info["size"], file.convert("RGB")
    seen = shrunk(picture, small.size)
    far = differences(np.asarray(small), np.asarray(seen))
    wrong = []
    if any(
        abs(side - int(was)) > max(4, int(was) / 50) for side, was in zip(picture.size, size.split("x"), strict=True)
    ):
        wrong.append(f"it is {picture.width}x{picture.height}, was {size}")
    if (far > TOLERANCE).any():
        wrong.append(f"{(far > TOLERANCE).sum()} pixels differ, by {far.max():.0f} levels at most")
    before, now = (hues(np.asarray(one)) for one in (small, seen))
    off = abs(now - before) / (np.maximum(now, before) + _LITTLE)
    if (off > HUE_TOLERANCE).any():
        wrong.append(f"of the hue of {off.argmax() * 360 // _HUES} degrees there is another amount")
    if not wrong:
        return
    left = {"pinned": small, "shrunk": seen, "differences": Image.fromarray(np.uint8(255 * (far <= TOLERANCE)))}
    for what, part in left.items():
        part = part.resize((3 * part.width, 3 * part.height), Image.Resampling.NEAREST)
        part.save(folder / f"{pinned.stem}.{what}.png")
    picture.save(folder / f"{pinned.stem}.seen.png")
    raise AssertionError(
        f"{pinned.stem} looks different: {'; '.join(wrong)}; open {folder}/{pinned.stem}.*.png; if it is meant to be "
        "so, run the test again with VAN_PIN_PICTURES=1"
    )


def read(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) of a chart, which is a PNG, not blank, and with nothing at its edge."""
    with Image.open(path) as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    assert picture.std() > 1, "blank"
    edges = (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:])
    assert min(edge.min() for edge in edges) == 255, "something is cut off at the edge"
    return picture


def amount(picture: np.ndarray, colour: str, *, within: int = 0) -> int:
    """How many pixels have ``colour``, such as #0072b2, or are ``within`` so many levels of it."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) <= within).sum())


def pin(picture: Image.Image, path: Path) -> None:
    """Keep a small copy of ``picture`` at ``path``."""
    scale = min(1.0, LONG_SIDE_PX / max(picture.size))
    small = shrunk(picture, tuple(max(1, round(side * scale)) for side in picture.size))
    about = PngInfo()
    about.add_text("size", f"{picture.width}x{picture.height}")
    path.parent.mkdir(exist_ok=True)
    few_colours = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # 8 levels off at most
    few_colours.save(path, format="png", optimize=True, pnginfo=about)


def shrunk(picture: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """``picture`` at ``size``, each pixel the mean of what it covers."""
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BOX)


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W): how far each pixel of two pictures (H, W, 3) is from what the other has around it, in levels."""
    one, other = (_around(part.astype(np.float32), 1, np.mean) for part in (one, other))
    beyond = []
    for seen, pinned in ((one, other), (other, one)):
        beyond += [_around(pinned, 2, np.min) - seen, seen - _around(pinned, 2, np.max)]
    return np.max(beyond, axis=(0, -1)).clip(0)


def hues(pixels: np.ndarray) -> np.ndarray:
    """(12,): the share of a picture (H, W, 3) that each hue would fill if it were pure.

    Softened on a white or black ground a line has nearly as much of it as a sharp one. Each pixel counts for the two
    hues that its own lies between; what is all but grey does not count.
    """
    values = pixels / 255
    most, chroma = values.max(-1), np.ptp(values, axis=-1)
    red, green, blue = np.moveaxis(values, -1, 0)
    safe = np.where(chroma > 0, chroma, 1)
    sixths = np.where(
        most == red,
        (green - blue) / safe % 6,
        np.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    chroma = (chroma - _ALMOST_GREY).clip(0)
    place, further = np.divmod(sixths * _HUES / 6, 1)
    amounts = np.zeros(_HUES)
    np.add.at(amounts, place.astype(int) % _HUES, chroma * (1 - further))
    np.add.at(amounts, (place.astype(int) + 1) % _HUES, chroma * further)
    return amounts / chroma.size


def _around(values: np.ndarray, reach: int, what: Callable[..., np.ndarray]) -> np.ndarray:
    """The mean, least or most of what (H, W, 3) has at most ``reach`` rows and columns away from each pixel."""
    for axis in (0, 1):
        wide = np.pad(values, [(reach, reach) if side == axis else (0, 0) for side in range(3)], mode="edge")
        count = values.shape[axis]
        values = what([wide.take(range(step, step + count), axis) for step in range(2 * reach + 1)], axis=0)
    return values
