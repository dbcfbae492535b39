"""Fusion for inference: BatchNorm and layer scale are folded into the neighboring convolutions.

In evaluation BatchNorm is y = a·x + b per channel. It folds into the 1x1 or patch convolution beside it, and layer
scale into the convolution before it. The inner shortcut of the attention unit adds the normalized input, so norm1,
that shortcut and layer_scale_1 together reduce to one factor per channel:

    x + s·(proj_2(g) + a·x + b)  =  (1 + s·a)·x + [s·proj_2](g) + s·b

Shapes: every module maps (N, C, H, W) as the one it replaces.
"""

import copy

import torch
from torch import Tensor, nn

from van.backbones.layers import Block, OverlapPatchEmbed
from van.backbones.packed import PackedConv2d
from van.errors import ShapeError, UsageError
from van.ops import lka_pair


class FusedBlock(nn.Module):
    """A ``Block`` for inference, without norms, layer scales, dropout and drop path.

    ``shortcut`` (C, 1, 1) is the factor on the input to which the attention unit adds its output.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, feed_forward = block.attn, block.mlp
        scale, shift = batch_norm_affine(block.norm1)
        self.proj_1 = fold_input_affine(attention.proj_1, scale, shift)
        self.spatial_gating_unit = attention.spatial_gating_unit
        self.spatial_gating_unit.conv1 = PackedConv2d.from_conv(self.spatial_gating_unit.conv1)
        self.proj_2 = fold_output_affine(attention.proj_2, block.layer_scale_1, block.layer_scale_1 * shift)
        self.register_buffer("shortcut", (1 + block.layer_scale_1 * scale)[:, None, None])
        self.fc1 = fold_input_affine(feed_forward.fc1, *batch_norm_affine(block.norm2))
        self.dwconv = feed_forward.dwconv
        self.fc2 = fold_output_affine(feed_forward.fc2, block.layer_scale_2, torch.zeros_like(block.layer_scale_2))

    def forward(self, x: Tensor) -> Tensor:
        gated, unit = self.proj_1(x, gelu=True), self.spatial_gating_unit
        gated = unit.conv1(lka_pair(gated, *unit.depthwise_kernels()), multiplier=gated)
        x = self.proj_2(gated, residual=x * self.shortcut)
        return self.fc2(self.dwconv(self.fc1(x)), residual=x)


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: BatchNorm and layer scale folded, all parameters frozen.

    Works on any model that contains blocks of VAN, such as a ``features_only`` model. The outputs equal those of
    ``model`` up to rounding. Fusing twice changes nothing.

    Raises:
        UsageError: the model is in training mode.
        ShapeError: it contains no VAN blocks.
    """
    if not can_fuse(model):
        raise ShapeError(f"fuse(): expected a VAN or a model that contains one, got {type(model).__name__}")
    if any(module.training for module in (model, *filter(_is_fusable, model.modules()))):
        raise UsageError("fuse(): expected a model in evaluation mode, got training mode; call .eval() first")
    with torch.no_grad():
        fused = _fuse_module(copy.deepcopy(model))
    return fused.requires_grad_(False).eval()


def can_fuse(model: nn.Module) -> bool:
    """Return whether ``model`` is a VAN or contains blocks of one."""
    return any(map(_is_fusable, model.modules()))


def _is_fusable(module: nn.Module) -> bool:
    return isinstance(module, Block | OverlapPatchEmbed | FusedBlock)


def batch_norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a BatchNorm in evaluation."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ShapeError(f"norm: expected a BatchNorm2d with running statistics, got {norm}")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def fold_output_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> PackedConv2d:
    """Return ``scale · conv(x) + shift`` as one convolution."""
    bias = shift if conv.bias is None else conv.bias * scale + shift
    return PackedConv2d.from_conv(conv, conv.weight * scale[:, None, None, None], bias)


def fold_input_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> PackedConv2d:
    """Return ``conv(scale · x + shift)`` as one convolution; exact for 1x1 only, because zero padding gets no shift."""
    if conv.kernel_size != (1, 1) or conv.padding != (0, 0):
        raise ShapeError(
            f"conv: expected a 1x1 kernel without padding, got kernel {conv.kernel_size} and padding {conv.padding}"
        )
    added = conv.weight[:, :, 0, 0] @ shift
    bias = added if conv.bias is None else conv.bias + added
    return PackedConv2d.from_conv(conv, conv.weight * scale[None, :, None, None], bias)


def _fuse_module(module: nn.Module) -> nn.Module:
    if isinstance(module, Block):
        return FusedBlock(module)
    if isinstance(module, OverlapPatchEmbed) and not isinstance(module.norm, nn.Identity):
        module.proj = fold_output_affine(module.proj, *batch_norm_affine(module.norm))
        module.norm = nn.Identity()
        return module
    for name, child in module.named_children():
        setattr(module, name, _fuse_module(child))
    return module
