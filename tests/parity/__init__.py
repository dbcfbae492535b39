"""Weights by rule, and what the released network answers to them in float64."""

import json
from pathlib import Path

import torch
from torch import Tensor

from parity import fill

_HERE = Path(__file__).parent
SMALL = (1, 3, 97, 131)


def recorded(name: str) -> dict:
    """What ``official_keys_b0``, ``hf_keys_b0``, ``mmpretrain_keys_b0`` or ``official`` holds."""
    content = json.loads((_HERE / f"{name}.json").read_text())
    return content["van_b0"] if name == "official_keys_b0" else content


def filled(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A value for every official name; floats as ``dtype``."""
    tensors = {name: torch.from_numpy(fill.value(name, tuple(shape))) for name, shape in shapes.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def filled_b0(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every tensor of the released van_b0, by its official name."""
    return filled(recorded("official_keys_b0"), dtype)


def image(shape: tuple[int, ...] = SMALL) -> Tensor:
    """A normalized image, float64."""
    return torch.from_numpy(fill.picture(shape)).double()


def distance_from_recorded(model_name: str, logits: Tensor, shape: tuple[int, ...] = SMALL) -> float:
    """The largest difference from the recorded logits of ``image(shape)``."""
    expected = recorded("official")[model_name]["x".join(map(str, shape))]
    difference = logits[:, :8].double() - torch.tensor(expected["logits_first8"], dtype=torch.float64)
    assert logits.argmax(1).tolist() == expected["argmax"]
    return difference.abs().max().item()
