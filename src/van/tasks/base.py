"""The protocol of a task: collating samples, the loss, the metric, and decoding outputs into predictions.

A dataset returns samples: mappings with ``name`` and either the keys that its task reads (``image``
and ``target``, and ``original_size`` if predictions have pixel coordinates) or ``unreadable``, the
reason why the image cannot be read. The loader adds ``valid`` (False for padding) and ``skipped``
(unreadable samples that this one replaces). The training loop moves batches and calls the loss and
the metric; it depends on nothing else of a task.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Sample = Mapping[str, Any]


class ImageMeta(NamedTuple):
    """An image's name, the size of its file and the size of the network's input, each (rows, columns).

    Boxes and masks of a prediction are resized from ``input_size`` to ``original_size``.
    """

    name: str
    original_size: tuple[int, int] = (0, 0)
    input_size: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of collated samples.

    Args:
        images: the network's input: (N, 3, H, W) for classification, a list of (3, h, w) for the other tasks.
        targets: the ground truth for the loss and the metric.
        image_metas: name and sizes of each image.
        valid: (N,) bool; False for padding, which metrics must not count.
        unreadable: names and reasons of samples whose image cannot be read.
    """

    images: Any
    targets: Any
    image_metas: tuple[ImageMeta, ...]
    valid: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device, images in channels_last."""
        moved = {
            field.name: _move(getattr(self, field.name), device)
            for field in dataclasses.fields(self)
            if field.name in ("images", "targets", "valid")
        }
        return dataclasses.replace(self, **moved)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each image."""
        return tuple(image_meta.name for image_meta in self.image_metas)

    def __len__(self) -> int:
        return len(self.image_metas)


def unreadable_of(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """Return the names and reasons of all unreadable images of these samples, without padding and duplicates."""
    unreadable: list[tuple[str, str]] = []
    for sample in samples:
        if sample.get("valid", True):
            own = [(sample["name"], sample["unreadable"])] if "unreadable" in sample else []
            unreadable += sample.get("skipped") or own
    return tuple(dict.fromkeys(unreadable))


class Metric(Protocol):
    """An accumulating metric whose result does not depend on the number of processes."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch; samples that are not ``valid`` are ignored."""
        ...

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``, floats by name, and further details by name.

        The detail ``per_class`` maps each class name to a dictionary of floats, in the order of table columns.
        """
        ...

    def to(self, device: torch.device) -> "Metric":
        """Move the state to ``device`` and return the metric."""
        ...


class Task(Protocol):
    """A task: classification, detection, instance, semantic or panoptic segmentation.

    ``monitor`` names the metric (higher is better) that selects the best checkpoint; ``options`` are plain values
    that rebuild the task from a checkpoint together with ``class_names``.
    """

    name: str
    monitor: str
    class_names: tuple[str, ...]
    options: Mapping[str, Any]

    def stack(self, images: Sequence[Tensor]) -> Any:
        """Combine images (3, H, W) into the network's input."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Collate samples into a batch; it has fewer images than samples if some are unreadable."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar loss, including batch augmentation such as mixup."""
        ...

    def metric(self) -> Metric:
        """Return a new metric without counts."""
        ...

    def decode(self, outputs: Any, image_metas: Sequence[ImageMeta]) -> Sequence[Any]:
        """Return the prediction (see ``van.predictions``) of each image from the network's outputs."""
        ...


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.to(device, non_blocking=True, memory_format=layout)
    if isinstance(value, dict):
        return {key: _move(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_move(inner, device) for inner in value])
    return value
