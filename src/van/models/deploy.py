"""The deploy rewrite: the same network with everything folded that is only needed in training.

In evaluation BatchNorm is y = a·x + b per channel. It folds into the 1x1 or patch convolution beside
it, and layer scale into the convolution before it. The attention unit's inner shortcut carries its
BatchNorm along, so what is left of norm1, that shortcut and layer_scale_1 is one factor per channel:

    x + s·(proj_2(g) + a·x + b)  =  (1 + s·a)·x + [s·proj_2](g) + s·b

Shapes: every module maps (N, C, H, W) as the one it replaces.
"""

import copy

import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.frozen import FrozenConv2d
from van.models.layers import Block, OverlapPatchEmbed
from van.ops import lka_pair


class FusedBlock(nn.Module):
    """A ``Block`` in evaluation, without norms, layer scales and stochastic parts.

    ``shortcut`` (C, 1, 1) is the factor on the input that the attention unit adds its answer to.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, feed_forward = block.attn, block.mlp
        scale, shift = affine(block.norm1)
        self.proj_1 = with_input_affine(attention.proj_1, scale, shift)
        self.spatial_gating_unit = attention.spatial_gating_unit
        self.spatial_gating_unit.conv1 = FrozenConv2d.of(self.spatial_gating_unit.conv1)
        self.proj_2 = with_output_affine(attention.proj_2, block.layer_scale_1, block.layer_scale_1 * shift)
        self.register_buffer("shortcut", (1 + block.layer_scale_1 * scale)[:, None, None])
        self.fc1 = with_input_affine(feed_forward.fc1, *affine(block.norm2))
        self.dwconv = feed_forward.dwconv
        self.fc2 = with_output_affine(feed_forward.fc2, block.layer_scale_2, torch.zeros_like(block.layer_scale_2))

    def forward(self, x: Tensor) -> Tensor:
        gated, unit = self.proj_1(x, gelu=True), self.spatial_gating_unit
        gated = unit.conv1(lka_pair(gated, *unit.depthwise_kernels()), times=gated)
        x = self.proj_2(gated, plus=x * self.shortcut)
        return self.fc2(self.dwconv(self.fc1(x)), plus=x)


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for use: BatchNorm and layer scale folded, stochastic parts dropped, nothing to train.

    Works on a VAN and on anything that holds its blocks, such as a ``features_only`` model. The answers are
    those of ``model`` up to rounding. Fusing twice changes nothing.

    Raises:
        UsageError: the model is in training mode.
        ShapeError: it holds no part of a VAN.
    """
    parts = _parts(model)
    if not parts:
        raise ShapeError(f"{type(model).__name__} holds no VAN blocks; wanted a VAN, or a model built on one")
    if any(part.training for part in (model, *parts)):
        raise UsageError("fuse() folds the running statistics, and the model is in training mode; call .eval() first")
    with torch.no_grad():
        fused = _fused(copy.deepcopy(model))
    return fused.requires_grad_(False).eval()


def can_fuse(model: nn.Module) -> bool:
    """Whether ``model`` is a VAN, or holds parts of one."""
    return bool(_parts(model))


def _parts(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, Block | OverlapPatchEmbed | FusedBlock)]


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What BatchNorm does in evaluation: the factor and the summand (C,) of each channel."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ShapeError(f"cannot fold {norm}; wanted a BatchNorm2d with running statistics")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def with_output_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> FrozenConv2d:
    """``scale · conv(x) + shift`` as one convolution."""
    bias = shift if conv.bias is None else conv.bias * scale + shift
    return FrozenConv2d.of(conv, conv.weight * scale[:, None, None, None], bias)


def with_input_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> FrozenConv2d:
    """``conv(scale · x + shift)`` as one convolution; exact for 1x1 only, where no padding mixes in."""
    if conv.kernel_size != (1, 1) or conv.padding != (0, 0):
        raise ShapeError(f"cannot fold the input of a {conv.kernel_size} convolution; wanted 1x1 without padding")
    added = conv.weight[:, :, 0, 0] @ shift
    bias = added if conv.bias is None else conv.bias + added
    return FrozenConv2d.of(conv, conv.weight * scale[None, :, None, None], bias)


def _fused(module: nn.Module) -> nn.Module:
    if isinstance(module, Block):
        return FusedBlock(module)
    if isinstance(module, OverlapPatchEmbed) and not isinstance(module.norm, nn.Identity):
        module.proj = with_output_affine(module.proj, *affine(module.norm))
        module.norm = nn.Identity()
        return module
    for name, child in module.named_children():
        setattr(module, name, _fused(child))
    return module
