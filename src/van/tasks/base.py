"""The protocol between a task and everything that runs one.

A data set yields samples: mappings with ``name`` and either the keys its task wants (``picture``
and ``target``, and ``size`` where answers lie in the picture) or ``unreadable``, the reason why there
is no picture. The loader adds ``valid`` (False for padding) and ``passed_over`` (unreadable samples
that this one replaces). The engine moves batches, calls the loss and the meter, and knows nothing
else about a task.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Sample = Mapping[str, Any]


class Frame(NamedTuple):
    """A picture's name and its sizes, (rows, columns): its own, and the one that the network sees.

    Boxes and masks of an answer are carried from the second to the first.
    """

    name: str
    size: tuple[int, int] = (0, 0)
    seen: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples put together.

    Args:
        pictures: what the network reads; (N, 3, H, W) for classification, a list where sizes differ.
        targets: what the loss and the meter compare with.
        frames: one for each sample.
        valid: (N,) bool; False marks padding that no metric may count.
        unreadable: names and reasons of samples that had no picture.
    """

    pictures: Any
    targets: Any
    frames: tuple[Frame, ...]
    valid: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, pictures in channels_last."""
        moved = {
            field.name: _move(getattr(self, field.name), device)
            for field in dataclasses.fields(self)
            if field.name in ("pictures", "targets", "valid")
        }
        return dataclasses.replace(self, **moved)

    @property
    def names(self) -> tuple[str, ...]:
        """One for each sample, for messages."""
        return tuple(frame.name for frame in self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def unreadable_of(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """Names and reasons of all that could not be read for these samples, padding left out."""
    found: list[tuple[str, str]] = []
    for sample in samples:
        if sample.get("valid", True):
            own = [(sample["name"], sample["unreadable"])] if "unreadable" in sample else []
            found += sample.get("passed_over") or own
    return tuple(dict.fromkeys(found))


class Meter(Protocol):
    """Metrics of an evaluation in progress; exact over several processes."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count one batch; samples that are not ``valid`` do not count."""
        ...

    def compute(self) -> dict[str, Any]:
        """``metrics``: floats by name, fractions where they are shares; and details by name.

        Of the details ``per_class`` is a dictionary of such floats for each label, in the order of a table.
        """
        ...

    def to(self, device: torch.device) -> "Meter":
        """The meter with its counts on ``device``."""
        ...


class Task(Protocol):
    """One kind of job.

    ``headline`` names the metric (higher is better) that picks the best checkpoint; ``options`` are plain values
    that, with the labels, make the task again from a checkpoint.
    """

    name: str
    headline: str
    labels: tuple[str, ...]
    options: Mapping[str, Any]

    def stack(self, pictures: Sequence[Tensor]) -> Any:
        """Pictures (3, H, W) as the network reads several of them."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Put samples together; a batch may hold fewer pictures than samples, where some were unreadable."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar to minimise, batch augmentation included."""
        ...

    def meter(self) -> Meter:
        """A fresh meter."""
        ...

    def decode(self, outputs: Any, frames: Sequence[Frame]) -> Sequence[Any]:
        """The network's outputs as ``van.results``, one for each frame."""
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
