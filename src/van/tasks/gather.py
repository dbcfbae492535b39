"""Putting together what several processes counted, so that a metric is the one that one process would find."""

from typing import Any

import torch.distributed as distributed
from torch import Tensor


def everyone(mine: list[Any]) -> list[Any]:
    """The items of all processes, those of the first process first; just ``mine`` where there is one."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(mine)
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors detached and on the CPU, where they cost no device memory while they wait."""
    return {name: value.detach().cpu() for name, value in values.items()}
