"""The map-style dataset of classification: labeled images, read on access."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from van.errors import ImageError
from van.images import read_image, to_rgb

if TYPE_CHECKING:
    from torch import Tensor


class Item(NamedTuple):
    """One labeled image: its path, or the image itself; its class index; its name in messages."""

    source: Path | Image.Image
    target: int
    name: str


class ImageDataset:
    """Labeled images and a transform.

    Args:
        items: the images and their class indices.
        transform: maps an RGB image to a tensor (3, H, W): a ``CenterCropPreprocess`` or a training augmentation.
    """

    def __init__(self, items: Sequence[Item], transform: "Callable[[Image.Image], Tensor]") -> None:
        self.items = list(items)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image``, ``target`` and ``name``; or ``name`` and the reason why it is ``unreadable``."""
        item = self.items[index]
        try:
            image = to_rgb(item.source) if isinstance(item.source, Image.Image) else read_image(item.source)
        except ImageError as error:
            return {"name": item.name, "unreadable": error.reason}
        return {"image": self.transform(image), "target": item.target, "name": item.name}
