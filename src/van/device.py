"""Where a network runs: the device of a name, and the memory layout that convolutions are fast in."""

import copy

import torch
from torch import nn

from van.errors import UsageError


def to_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model to ``device`` with its 4-d weights in channels_last, the faster layout for convolutions."""
    model.to(device)
    return model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]


def place_network(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on ``device`` in channels_last: itself if it is there, else a copy.

    A ``Model`` shares its network between callers, which may run it on different devices.
    """
    parameter = next(network.parameters(), None)
    if parameter is not None and parameter.device.type != device.type:
        network = copy.deepcopy(network)
    return to_channels_last(network, device)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name; for None or ``auto`` the GPU if PyTorch has one, else the CPU.

    Raises:
        UsageError: the name is no device, or PyTorch cannot use it on this machine.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if device in (None, "auto"):
        return torch.device(present[1] if "cuda" in present else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device: expected auto, cpu, cuda or mps, got {device!r}") from error
    if chosen.type not in present or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device: expected one that PyTorch can use here ({', '.join(present)}), got {str(device)!r}")
    return chosen
