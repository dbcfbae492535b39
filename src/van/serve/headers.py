"""What the head of a picture's file tells before anything is decoded: its size, and the memory that reading it takes.

The bytes a pixel were measured, for every mode and format that is read, as the growth of a process's resident memory
while ``van.pictures.read_picture`` and ``tobytes`` ran. Pillow keeps three colours in four bytes; beside the decoded
picture there are its upright copy, what lies on white where something is transparent, the floats of deep greys, and
the bytes that go to the worker. ``tests/serve/test_decoding.py`` measures them again.
"""

import io
import logging
import warnings
from typing import NamedTuple

from PIL import Image

from van.pictures import FORMATS, quiet_decoders, read_picture

_PLAIN_FORMATS = ("JPEG", "BMP", "PPM")
"""Of these the mode tells all; in the others something transparent may come after what is read of the head."""
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK")
_PLAIN, _ANY, _DEEP = 13, 21, 16
"""Bytes a pixel. Measured were up to 12.0 of opaque modes of 8 bits, 20.1 of
transparent ones, and 14 of deep greys, of which a strip at a time is held in floats as well: up to 33 bytes for each of
its pixels."""
_STRIP_PIXELS, _STRIP = 1 << 20, 36
_WHOLE_FORMATS = ("WEBP", "AVIF")
_WHOLE = 14
"""Bytes a pixel on top: their decoders hold a whole picture of their own; measured were up to 12.1."""


class Head(NamedTuple):
    """Width and height of a picture, and the bytes held while it is read, those of its file left out."""

    width: int
    height: int
    peak_bytes: int


def quiet_pillow() -> None:
    """Let Pillow warn and log of nothing: what is refused is said to the client, who writes nothing in the log."""
    quiet_decoders()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_head(data: bytes, name: str) -> Head:
    """The head of a file.

    Raises:
        PictureError: it is no picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return Head(*file.size, _peak_bytes(file))
    except Exception:  # readers raise nearly anything; the one that says why is asked
        read_picture(data, name=name)
        raise


def _peak_bytes(file: Image.Image) -> int:
    pixels = file.width * file.height
    if file.mode.startswith(("I", "F")):
        return _DEEP * pixels + _STRIP * min(pixels, _STRIP_PIXELS)
    plain = file.format in _PLAIN_FORMATS and file.mode in _PLAIN_MODES
    return ((_PLAIN if plain else _ANY) + (_WHOLE if file.format in _WHOLE_FORMATS else 0)) * pixels
