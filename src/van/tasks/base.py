"""The base of a task: collating samples, the loss, the metric, and decoding outputs into predictions.

A dataset returns samples: mappings with ``name`` and either the keys that its task reads (``image``
and ``target``, and ``original_size`` if predictions have pixel coordinates) or ``unreadable``, the
reason why the image cannot be read. The loader adds ``valid`` (False for padding) and ``skipped``
(unreadable samples that this one replaces). A training loop depends on nothing else of a task::

    for batch in DataLoader(dataset, batch_size=8, collate_fn=task.collate):
        task.loss(model, batch.to(device)).backward()
    metric = task.metric()
    metric.update(model(batch.images), batch)
    metric.compute()["metrics"]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from van.errors import ShapeError

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
        moved = {name: _move(getattr(self, name), device) for name in ("images", "targets", "valid")}
        return dataclasses.replace(self, **moved)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each image."""
        return tuple(image_meta.name for image_meta in self.image_metas)

    def __len__(self) -> int:
        return len(self.image_metas)


class Metric:
    """An accumulating metric whose result does not depend on the number of processes."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch in pixels of the images' files, without the images that are not ``valid``.

        Raises:
            ShapeError: an output is not finite, or has another shape.
        """
        rows = zip(outputs, batch.targets, batch.image_metas, batch.valid.tolist(), strict=True)
        for output, target, image_meta, valid in rows:
            if valid:
                self.add(output, target, image_meta)

    def add(self, output: Any, target: Any, image_meta: ImageMeta) -> None:
        """Add one image."""
        raise NotImplementedError

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``, floats by name, and further details by name.

        The detail ``per_class`` maps each class name to a dictionary of floats, in the order of table columns.
        """
        raise NotImplementedError

    def to(self, device: torch.device) -> Self:
        """Move the state to ``device``, unless it stays on the CPU, and return the metric."""
        return self


class Task:
    """A task: classification, detection, instance, semantic or panoptic segmentation.

    ``monitor`` names the metric (higher is better) that selects the best checkpoint; ``options`` are plain values
    that rebuild the task from a checkpoint together with ``class_names``.
    """

    name: str
    monitor: str
    class_names: tuple[str, ...]
    options: Mapping[str, Any]

    def stack(self, images: Sequence[Tensor]) -> Any:
        """Combine images (3, H, W) into the network's input: a list, whose images the network groups or pads."""
        return list(images)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Collate samples into a batch; it has fewer images than samples if some are unreadable."""
        readable = [sample for sample in samples if "unreadable" not in sample]
        return Batch(
            images=self.stack([sample["image"] for sample in readable]),
            targets=[sample["target"] for sample in readable],
            image_metas=tuple(
                ImageMeta(sample["name"], sample.get("original_size", (0, 0)), tuple(sample["image"].shape[1:]))
                for sample in readable
            ),
            valid=torch.tensor([sample.get("valid", True) for sample in readable], dtype=torch.bool),
            unreadable=unreadable_of(samples),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar loss, including batch augmentation such as mixup."""
        raise NotImplementedError

    def metric(self) -> Metric:
        """Return a new metric without counts."""
        raise NotImplementedError

    def decode(self, outputs: Any, image_metas: Sequence[ImageMeta]) -> Sequence[Any]:
        """Return the prediction (see ``van.predictions``) of each image in pixels of its file.

        Raises:
            ShapeError: an output is not finite, or has another shape.
        """
        return [self.decode_image(output, image_meta) for output, image_meta in zip(outputs, image_metas, strict=True)]

    def decode_image(self, output: Any, image_meta: ImageMeta) -> Any:
        """Return the prediction of one image."""
        raise NotImplementedError


def unreadable_of(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """Return the names and reasons of all unreadable images of these samples, without padding and duplicates."""
    unreadable: list[tuple[str, str]] = []
    for sample in samples:
        if sample.get("valid", True):
            own = [(sample["name"], sample["unreadable"])] if "unreadable" in sample else []
            unreadable += sample.get("skipped") or own
    return tuple(dict.fromkeys(unreadable))


def check_finite(values: Tensor, quantity: str, image_name: str) -> None:
    """Check that a network's outputs are finite; otherwise they would decode to no object, or to the first class.

    Raises:
        ShapeError: one of the values of this ``quantity`` (in the plural) is NaN or infinite.
    """
    # the sum is NaN or infinite if any value is, and takes a fraction of the time of isfinite() on every value;
    # values in a network's usual range do not overflow in it
    if not bool(values.sum(dtype=torch.float32).isfinite()):
        raise ShapeError(f"{image_name}: expected finite {quantity}, got NaN or infinity; check the network's weights")


def all_gather(items: list[Any]) -> list[Any]:
    """Return the items of all processes in the order of their ranks, so that a metric counts those of each."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(items)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, items)
    return [item for from_rank in gathered for item in from_rank]


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.to(device, non_blocking=True, memory_format=layout)
    if isinstance(value, dict):
        return {key: _move(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_move(inner, device) for inner in value])
    return value
