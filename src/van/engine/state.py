"""All that must be the same again for a resumed run to end with the same bits.

Weights, moving average, optimiser, the place in the run, and every random generator of every
process become tensors and plain values of one checkpoint file; no pickle is involved.
The schedule and the order of samples follow from the place in the run.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from van.errors import CheckpointError

_ON_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)
_ON_ALL = StateDictOptions(full_state_dict=True)


@dataclasses.dataclass
class Progress:
    """The place in a run. ``update`` counts optimiser steps from the start, ``best`` is the best headline so far."""

    update: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_update: int = 0


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model, whole and on the CPU, under its plain name; only the first process has them."""
    whole: Any = get_model_state_dict(model, options=_ON_FIRST)
    return dict(whole)


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Undo ``model_state``."""
    set_model_state_dict(model, dict(state), options=_ON_ALL)


def optimiser_tensors(model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by ``parameter/moment``; only the first process has them."""
    state: Any = get_optimizer_state_dict(model, optimiser, options=_ON_FIRST).get("state", {})
    return {f"{name}/{moment}": value for name, moments in state.items() for moment, value in moments.items()}


def load_optimiser_tensors(model: nn.Module, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo ``optimiser_tensors``; learning rates are left to the schedule."""
    whole = get_optimizer_state_dict(model, optimiser, options=_ON_ALL)
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, moment = key.rsplit("/", 1)
        state.setdefault(name, {})[moment] = tensor
    restored: Any = {"state": state, "param_groups": whole["param_groups"]}
    set_optimizer_state_dict(model, optimiser, restored, options=_ON_ALL)


def generator_tensors(device: torch.device) -> dict[str, Tensor]:
    """The random generators of every process, by ``rank/generator``."""
    legacy: Any = np.random.get_state()
    _, keys, place, has_gauss, gauss = legacy
    python_version, python_keys, python_gauss = random.getstate()
    mine = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.append(keys.astype(np.int64), [place, has_gauss]),
        "numpy_gauss": np.array([gauss]),
        "python": np.array([python_version, *python_keys], dtype=np.int64),
        "python_gauss": np.array([np.nan if python_gauss is None else python_gauss]),
    }
    if device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(device).numpy()
    ranks = gather_object([mine])
    return {f"{rank}/{key}": torch.from_numpy(v) for rank, states in enumerate(ranks) for key, v in states.items()}


def load_generator_tensors(tensors: Mapping[str, Tensor], *, rank: int, world: int, device: torch.device) -> None:
    """Undo ``generator_tensors``.

    Raises:
        CheckpointError: the run was saved by another number of processes.
    """
    saved = 1 + max(int(key.split("/")[0]) for key in tensors)
    if saved != world:
        raise CheckpointError(
            f"the run was saved by {saved} processes, not {world}; resume it with --nproc-per-node {saved}"
        )
    mine = {key.split("/")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{rank}/")}
    torch.set_rng_state(mine["torch"])
    numbers = mine["numpy"].tolist()
    keys = np.array(numbers[:-2], dtype=np.uint32)
    np.random.set_state(("MT19937", keys, numbers[-2], numbers[-1], mine["numpy_gauss"].item()))
    python_gauss = mine["python_gauss"].item()
    version, *python_keys = mine["python"].tolist()
    random.setstate((version, tuple(python_keys), None if np.isnan(python_gauss) else python_gauss))
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix/``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that ``prefixed`` put under ``prefix/``."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
