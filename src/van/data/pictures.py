"""A classification data set: a list of pictures with targets, read when asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from van.errors import PictureError
from van.pictures import read_picture, to_rgb

if TYPE_CHECKING:
    from torch import Tensor


class Item(NamedTuple):
    """One labelled picture: a path, or a picture in memory; its class index; its name in messages."""

    source: Path | Image.Image
    target: int
    name: str


class PictureSet:
    """Labelled pictures through a transform.

    Args:
        items: what to read.
        transform: an RGB picture to a tensor (3, H, W): a ``Preprocess`` or a training augmentation.
    """

    def __init__(self, items: Sequence[Item], transform: "Callable[[Image.Image], Tensor]") -> None:
        self.items = list(items)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``picture``, ``target`` and ``name``; or ``name`` and the reason why it is ``unreadable``."""
        item = self.items[index]
        try:
            picture = to_rgb(item.source) if isinstance(item.source, Image.Image) else read_picture(item.source)
        except PictureError as error:
            return {"name": item.name, "unreadable": error.reason}
        return {"picture": self.transform(picture), "target": item.target, "name": item.name}
