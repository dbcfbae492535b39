"""Size and decoding memory of an image file, read from its header before anything is decoded.

The bytes per pixel were measured for every mode and format that can be read, as the growth of the resident memory of a
process while ``van.images.read_image`` and ``tobytes`` ran. Pillow stores RGB in four bytes per pixel; beside the
decoded image it holds the copy after EXIF rotation, the white background of transparent images, the floats of 16- and
32-bit grayscale, and the bytes that are sent to the worker. ``tests/serving/test_decoding.py`` measures them again.
"""

import io
import logging
import warnings
from typing import NamedTuple

from PIL import Image

from van.images import FORMATS, read_image, silence_decoders

_OPAQUE_FORMATS = ("JPEG", "BMP", "PPM")
"""Formats whose header determines the mode; in the others, transparency may follow later in the file."""
_OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK")
_OPAQUE_BYTES, _ANY_BYTES, _DEEP_BYTES = 13, 21, 16
"""Bytes per pixel. Measured: up to 12.0 for opaque 8-bit modes, 20.1 for transparent modes, and 14 for 16- and 32-bit
grayscale, which also holds one strip at a time as floats: up to 33 bytes for each pixel of the strip."""
_STRIP_PIXELS, _STRIP_BYTES = 1 << 20, 36
_BUFFERED_FORMATS = ("WEBP", "AVIF")
_BUFFERED_BYTES = 14
"""Additional bytes per pixel: these decoders hold a whole image of their own; measured: up to 12.1."""


class ImageHeader(NamedTuple):
    """Width and height of an image, and the peak memory of decoding it, without the bytes of the file."""

    width: int
    height: int
    peak_bytes: int


def quiet_pillow() -> None:
    """Silence the warnings and logs of Pillow: the client gets the error, and nothing it sends reaches the log."""
    silence_decoders()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image_header(data: bytes, name: str) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        ImageError: the file is not a readable image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return ImageHeader(*file.size, _peak_bytes(file))
    except Exception:  # decoders raise nearly anything; read_image raises the ImageError with the reason
        read_image(data, name=name, untrusted=True)
        raise


def _peak_bytes(file: Image.Image) -> int:
    pixels = file.width * file.height
    if file.mode.startswith(("I", "F")):
        return _DEEP_BYTES * pixels + _STRIP_BYTES * min(pixels, _STRIP_PIXELS)
    is_opaque = file.format in _OPAQUE_FORMATS and file.mode in _OPAQUE_MODES
    buffered = _BUFFERED_BYTES if file.format in _BUFFERED_FORMATS else 0
    return ((_OPAQUE_BYTES if is_opaque else _ANY_BYTES) + buffered) * pixels
