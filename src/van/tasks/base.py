"""The protocol between a task and everything that runs one.

A data set yields samples: mappings with ``name`` and either the keys its task wants (``picture``
and ``target`` for classification) or ``unreadable``, the reason why there is no picture. The loader
adds ``valid`` (False for padding) and ``passed_over`` (unreadable samples that this one replaces).
The engine moves batches, calls the loss and the meter, and knows nothing else about a task.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Sample = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples put together.

    Args:
        pictures: what the network reads; (N, 3, H, W) for classification.
        targets: what the loss and the meter compare with.
        names: one for each sample, for messages.
        valid: (N,) bool; False marks padding that no metric may count.
        unreadable: names and reasons of samples that had no picture.
    """

    pictures: Any
    targets: Any
    names: tuple[str, ...]
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

    def __len__(self) -> int:
        return len(self.names)


def unreadable_of(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """Names and reasons of all that could not be read for these samples, padding left out."""
    found: list[tuple[str, str]] = []
    for sample in samples:
        if sample.get("valid", True):
            own = [(sample["name"], sample["unreadable"])] if "unreadable" in sample else []
            found += sample.get("passed_over") or own
    return tuple(dict.fromkeys(found))


class Meter(Protocol):
    """Metrics of an evaluation in progress; exact over several processes.

    Every torchmetrics ``MetricCollection`` fits, with ``update`` and ``compute`` as below.
    """

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count one batch; samples that are not ``valid`` do not count."""
        ...

    def compute(self) -> dict[str, Any]:
        """``metrics``: floats by name, fractions where they are shares; and details by name."""
        ...

    def to(self, device: torch.device) -> "Meter":
        """The meter with its counts on ``device``."""
        ...


class Task(Protocol):
    """One kind of job. ``headline`` names the metric (higher is better) that picks the best checkpoint."""

    name: str
    headline: str
    labels: tuple[str, ...]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Put samples together; a batch may hold fewer pictures than samples, where some were unreadable."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar to minimise, batch augmentation included."""
        ...

    def meter(self) -> Meter:
        """A fresh meter."""
        ...

    def decode(self, outputs: Any, names: Sequence[str]) -> Sequence[Any]:
        """The network's outputs as ``van.results``, one for each name."""
        ...


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.to(device, non_blocking=True, memory_format=layout)
    if isinstance(value, dict):
        return {key: _move(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_move(inner, device) for inner in value)
    return value
