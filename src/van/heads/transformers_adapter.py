"""The adapter between VAN and transformers' detectors and segmenters: the backbone, configurations and losses.

transformers is optional and slow to import, so it is imported only where a network is created.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from van.backbones.van import VAN
from van.errors import MissingExtra, UsageError


class VanBackbone(nn.Module):
    """A VAN with the interface of transformers' backbones: it returns the normalized maps of the stages ``levels``."""

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


def check_sizes(sizes: Mapping[str, int], *, channels: int) -> None:
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


def create_network(
    backbone: VAN, title: str, config_name: str, class_name: str, *, levels: tuple[int, ...], fields: Mapping[str, Any]
) -> Any:
    """Create a network of transformers with the channels of ``backbone``, untrained.

    Its own backbone is one of the same variant, which the caller replaces by a ``VanBackbone``.

    Args:
        backbone: a VAN of timm with the variant's dims.
        title: of the head, for the error message without transformers.
        config_name, class_name: of transformers.
        levels: indices of the backbone's stages.
        fields: of the configuration, which on its own ignores unknown ones silently.

    Raises:
        MissingExtra: transformers is not installed, or scipy, whose assignment solver the losses use.
        UsageError: a field is unknown.
    """
    for package in ("transformers", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "transformers", title)
    transformers: Any = importlib.import_module("transformers")
    config_class: Any = getattr(transformers, config_name)
    if unknown := [field for field in fields if not hasattr(config_class, field)]:
        raise UsageError(
            f"{config_class.model_type}: unknown option {', '.join(unknown)}; see transformers' {config_name}"
        )
    configuration = config_class(**fields)
    # set afterwards, because Mask2Former's warns about every backbone but Swin
    configuration.backbone_config = transformers.TimmBackboneConfig(
        backbone=backbone.pretrained_cfg["architecture"],  # pyrefly: ignore[not-callable, bad-index]
        out_indices=list(levels),
    )
    return getattr(transformers, class_name)(configuration)


def sum_losses_by_type(losses: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Sum transformers' losses ``loss_TYPE``, ``loss_TYPE_aux_3``, ... by type, and weight each sum."""
    sums: dict[str, Tensor] = {}
    for loss_type, weight in weights.items():
        values = [value for name, value in losses.items() if name.startswith(f"loss_{loss_type}")]
        if values:
            sums[loss_type] = weight * torch.stack(values).sum()
    return sums
