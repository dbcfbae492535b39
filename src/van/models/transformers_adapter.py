"""The adapter between VAN and transformers' detectors and segmenters: the backbone, configurations and losses.

transformers is optional and slow to import, so it is imported only where a network is created.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from van.errors import MissingExtra, UsageError
from van.models.registry import VARIANTS
from van.models.van import VAN


class VanBackbone(nn.Module):
    """A VAN with the interface of transformers' backbones: it returns the normalized maps of chosen stages.

    Args:
        van: the backbone.
        levels: indices of the stages, from 0.
    """

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
    """Import transformers; ``purpose`` is what needs it, for the error message.

    Raises:
        MissingExtra: transformers is not installed, or scipy, whose assignment solver the losses use.
    """
    for package in ("transformers", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "transformers", purpose)
    return importlib.import_module("transformers")


def create_backbone(name: str, *, drop_path_rate: float) -> VAN:
    """Create an untrained VAN of that name without a classifier.

    Raises:
        UsageError: there is no VAN of that name.
    """
    if name not in VARIANTS:
        raise UsageError(f"backbone: expected one of {', '.join(VARIANTS)}, got {name!r}")
    backbone = timm.create_model(name, num_classes=0, drop_path_rate=drop_path_rate)
    assert isinstance(backbone, VAN)
    return backbone


def check_targets(images: Sequence[Tensor], targets: Sequence[Any] | None) -> Sequence[Any]:
    """Return the targets after a check that there is one for each image.

    Raises:
        UsageError: there are no targets, or another number of them.
    """
    if targets is None or len(targets) != len(images):
        got = "None" if targets is None else len(targets)
        raise UsageError(f"targets: expected one for each of the {len(images)} images in training, got {got}")
    return targets


def check_sizes(sizes: dict[str, int], *, channels: int) -> None:
    """Check the sizes of a transformer, given by argument name.

    Raises:
        UsageError: one is less than 1, or the channels are no multiple of 64.
    """
    for argument, size in sizes.items():
        if size < 1:
            raise UsageError(f"{argument}: expected at least 1, got {size}")
    # group norms have 32 groups, and a group needs two values even where the map has shrunk to one pixel
    if channels < 64 or channels % 64:
        raise UsageError(f"channels: expected a multiple of 64, got {channels}")


def create_config(config_class: Any, options: dict[str, Any]) -> Any:
    """Create a configuration of transformers, which on its own ignores unknown option names silently.

    Raises:
        UsageError: an option is unknown.
    """
    if unknown := [option for option in options if not hasattr(config_class, option)]:
        raise UsageError(
            f"{config_class.model_type}: unknown option {', '.join(unknown)}; see transformers' {config_class.__name__}"
        )
    return config_class(**options)


def sum_losses_by_type(losses: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """Sum transformers' losses ``loss_TYPE``, ``loss_TYPE_aux_3``, ... by type, and weight each sum."""
    sums: dict[str, Tensor] = {}
    for loss_type, weight in weights.items():
        values = [value for name, value in losses.items() if name.startswith(f"loss_{loss_type}")]
        if values:
            sums[loss_type] = weight * torch.stack(values).sum()
    return sums
