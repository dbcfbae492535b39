"""What tasks share that look at whole pictures: batches are lists, because sizes differ; answers must be numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from van.errors import ShapeError
from van.tasks.base import Batch, Frame, Sample, unreadable_of


class WholePictures:
    """Puts samples together without stacking them; a network groups or pads as it likes."""

    def stack(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """The pictures (3, rows, columns), each of its own size."""
        return list(pictures)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """The readable samples: pictures and targets as lists."""
        read = [sample for sample in samples if "unreadable" not in sample]
        return Batch(
            pictures=self.stack([sample["picture"] for sample in read]),
            targets=[sample["target"] for sample in read],
            frames=tuple(Frame(one["name"], one["size"], tuple(one["picture"].shape[1:])) for one in read),
            valid=torch.tensor([sample.get("valid", True) for sample in read], dtype=torch.bool),
            unreadable=unreadable_of(samples),
        )


def want_finite(values: Tensor, what: str, name: str) -> None:
    """Refuse answers that are no numbers: they would be read as "nothing there", or as the first class.

    Args:
        values: of any shape; those that lie in a network's range do not overflow when added up.
        what: what they are, in the plural.
        name: the picture's.

    Raises:
        ShapeError: one is NaN or infinite.
    """
    if not bool(values.sum(dtype=torch.float32).isfinite()):  # many times faster than to ask each of them
        raise ShapeError(f"the {what} for {name} are not all finite; wanted numbers, so look at the weights")
