"""What transformers' detectors and segmenters on VAN have in common: the VAN inside, their options, their losses.

transformers is optional and slow to start, so it is imported where a network is made.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from van.errors import MissingExtra, UsageError
from van.models.catalogue import VARIANTS
from van.models.van import VAN


class VanLevels(nn.Module):
    """A VAN that answers as transformers' backbones do: with the normalised maps of some of its stages."""

    def __init__(self, van: VAN, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.van = van
        self.levels = list(levels)

    def forward(self, pixel_values: Tensor) -> Any:
        from transformers.modeling_outputs import BackboneOutput

        maps: Any = self.van.forward_intermediates(
            pixel_values, indices=self.levels, norm=True, intermediates_only=True
        )
        return BackboneOutput(feature_maps=tuple(maps))


def import_transformers(purpose: str) -> Any:
    """The package, which is imported only where it is used: it is optional, and slow to start.

    Raises:
        MissingExtra: transformers, or scipy, whose matching the losses use, is not installed.
    """
    for package in ("transformers", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "transformers", purpose)
    return importlib.import_module("transformers")


def create_backbone(name: str, *, drop_path_rate: float) -> VAN:
    """A fresh VAN of that name without its classifier.

    Raises:
        UsageError: there is no VAN of that name.
    """
    if name not in VARIANTS:
        raise UsageError(f"there is no {name!r} to build on; known: {', '.join(VARIANTS)}")
    backbone = timm.create_model(name, num_classes=0, drop_path_rate=drop_path_rate)
    assert isinstance(backbone, VAN)
    return backbone


def want_targets(pictures: Sequence[Tensor], targets: Sequence[Any] | None) -> Sequence[Any]:
    """The targets, one for each picture.

    Raises:
        UsageError: there are none, or another number of them.
    """
    if targets is None or len(targets) != len(pictures):
        seen = "None" if targets is None else f"{len(targets)} of them"
        raise UsageError(f"targets is {seen} in training; wanted one for each of the {len(pictures)} pictures")
    return targets


def want_numbers(numbers: dict[str, int], *, channels: int) -> None:
    """Check sizes of a transformer by name.

    Raises:
        UsageError: one is less than 1, or the channels are no multiple of 64.
    """
    for argument, number in numbers.items():
        if number < 1:
            raise UsageError(f"{argument} is {number}; wanted at least 1")
    # they are normalised in 32 groups, and a group needs two values even where the map has shrunk to one pixel
    if channels < 64 or channels % 64:
        raise UsageError(f"channels is {channels}; wanted a multiple of 64")


def create_configuration(kind: Any, options: dict[str, Any]) -> Any:
    """A configuration of that kind; transformers on its own takes names that it does not know in silence.

    Raises:
        UsageError: it has no such option.
    """
    if unknown := [option for option in options if not hasattr(kind, option)]:
        raise UsageError(f"{kind.model_type} has no option {', '.join(unknown)}; see transformers' {kind.__name__}")
    return kind(**options)


def sums_by_kind(losses: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """What transformers calls ``loss_KIND``, ``loss_KIND_aux_3``, ...: weighted and added up by kind."""
    sums: dict[str, Tensor] = {}
    for kind, weight in weights.items():
        values = [value for name, value in losses.items() if name.startswith(f"loss_{kind}")]
        if values:
            sums[kind] = weight * torch.stack(values).sum()
    return sums
