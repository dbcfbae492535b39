"""The training state that a resumed run restores to end with bit-identical weights.

Weights, moving average, optimizer, progress, and every random generator of every process
become tensors and plain values of one checkpoint file, without pickle.
The schedule and the order of samples follow from the progress.
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
    """The progress of a run.

    Args:
        update: number of optimizer updates since the start.
        seconds: training and evaluation time, over all resumed sessions.
        best: the best value of the monitored metric so far.
        best_update: the update at which it was reached.
    """

    update: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_update: int = 0


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's full state dict on the CPU, without wrapper prefixes; empty in all processes but the first."""
    state: Any = get_model_state_dict(model, options=_ON_FIRST)
    return dict(state)


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of ``model_state`` into the model."""
    set_model_state_dict(model, dict(state), options=_ON_ALL)


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's moments by ``parameter/moment``; empty in all processes but the first."""
    state: Any = get_optimizer_state_dict(model, optimizer, options=_ON_FIRST).get("state", {})
    return {f"{name}/{moment}": value for name, moments in state.items() for moment, value in moments.items()}


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of ``optimizer_tensors``; the schedule sets the learning rates."""
    current = get_optimizer_state_dict(model, optimizer, options=_ON_ALL)
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, moment = key.rsplit("/", 1)
        state.setdefault(name, {})[moment] = tensor
    restored: Any = {"state": state, "param_groups": current["param_groups"]}
    set_optimizer_state_dict(model, optimizer, restored, options=_ON_ALL)


def generator_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators of every process by ``rank/generator``."""
    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, gauss = legacy
    python_version, python_keys, python_gauss = random.getstate()
    own = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.append(keys.astype(np.int64), [position, has_gauss]),
        "numpy_gauss": np.array([gauss]),
        "python": np.array([python_version, *python_keys], dtype=np.int64),
        "python_gauss": np.array([np.nan if python_gauss is None else python_gauss]),
    }
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device).numpy()
    ranks = gather_object([own])
    return {f"{rank}/{key}": torch.from_numpy(v) for rank, states in enumerate(ranks) for key, v in states.items()}


def load_generator_tensors(tensors: Mapping[str, Tensor], *, rank: int, world_size: int, device: torch.device) -> None:
    """Restore the random generators of this process from the result of ``generator_tensors``.

    Raises:
        CheckpointError: the run was saved by another number of processes.
    """
    saved = 1 + max(int(key.split("/")[0]) for key in tensors)
    if saved != world_size:
        raise CheckpointError(
            f"--resume: expected {saved} processes, which saved the run, got {world_size}; "
            f"start torchrun with --nproc-per-node {saved}"
        )
    own = {key.split("/")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{rank}/")}
    torch.set_rng_state(own["torch"])
    *keys, position, has_gauss = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, own["numpy_gauss"].item()))
    python_gauss = own["python_gauss"].item()
    version, *python_keys = own["python"].tolist()
    random.setstate((version, tuple(python_keys), None if np.isnan(python_gauss) else python_gauss))
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix/`` before each name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix/``, without it."""
    prefix = f"{prefix}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
