"""Gathering of metric states over processes, so that metrics do not depend on the number of processes."""

from typing import Any

import torch.distributed as distributed
from torch import Tensor


def all_gather(items: list[Any]) -> list[Any]:
    """Return the items of all processes in the order of their ranks; a copy of ``items`` in a single process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(items)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, items)
    return [item for from_rank in gathered for item in from_rank]


def to_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detach the tensors and copy them to the CPU, so that metric states take no device memory."""
    return {name: value.detach().cpu() for name, value in values.items()}
