"""A picture's size from the head of its file, before anything is decoded."""

import io
import warnings

from PIL import Image

from van.pictures import FORMATS, read_picture


def quiet_pillow() -> None:
    """Let Pillow not warn of large pictures: this process refuses them by its own limit, and says so to the client."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        PictureError: it is no picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return file.size
    except Exception:  # readers raise nearly anything; the one that says why is asked
        return read_picture(data, name=name).size
