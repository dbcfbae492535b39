"""The map-style dataset of classification: labeled images, read on access."""

from collections.abc import Callable
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

    A sample is a mapping of ``image``, ``target`` and ``name``, which ``van.tasks.ClassificationTask`` collates.

    Args:
        items: a sequence of ``Item``, or of pairs of an image and its class index, such as torchvision's datasets.
        transform: maps an RGB image to a tensor (3, H, W): a ``CenterCropPreprocess`` or a training augmentation.
    """

    def __init__(self, items: Any, transform: "Callable[[Image.Image], Tensor]") -> None:
        self.items = items
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample; that of a damaged file has ``name`` and the reason why it is ``unreadable``."""
        source, target, *names = self.items[index]
        name = names[0] if names else f"image {index}"
        try:
            image = to_rgb(source) if isinstance(source, Image.Image) else read_image(source)
        except ImageError as error:
            return {"name": name, "unreadable": error.reason}
        return {"image": self.transform(image), "target": target, "name": name}
