"""The base class of tasks on whole images, whose batches are lists because image sizes differ."""

from collections.abc import Sequence

import torch
from torch import Tensor

from van.errors import ShapeError
from van.tasks.base import Batch, ImageMeta, Sample, unreadable_of


class VariableSizeTask:
    """A task that collates images into lists; the network groups or pads them."""

    def stack(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return a list of the images (3, rows, columns), each with its own size."""
        return list(images)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Collate the readable samples: images and targets as lists."""
        readable = [sample for sample in samples if "unreadable" not in sample]
        return Batch(
            images=self.stack([sample["image"] for sample in readable]),
            targets=[sample["target"] for sample in readable],
            image_metas=tuple(
                ImageMeta(sample["name"], sample["original_size"], tuple(sample["image"].shape[1:]))
                for sample in readable
            ),
            valid=torch.tensor([sample.get("valid", True) for sample in readable], dtype=torch.bool),
            unreadable=unreadable_of(samples),
        )


def check_finite(values: Tensor, quantity: str, image_name: str) -> None:
    """Check that a network's outputs are finite; otherwise they would decode to no object, or to the first class.

    Args:
        values: any shape; values in a network's usual range do not overflow in a float32 sum.
        quantity: the name of the values in the plural, for the error.
        image_name: the name of the image, for the error.

    Raises:
        ShapeError: a value is NaN or infinite.
    """
    # the sum is NaN or infinite if any value is, and takes a fraction of the time of isfinite() on every value
    if not bool(values.sum(dtype=torch.float32).isfinite()):
        raise ShapeError(f"{image_name}: expected finite {quantity}, got NaN or infinity; check the network's weights")
