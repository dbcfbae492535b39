"""The layers of VAN: large kernel attention (LKA), the attention unit, the feed-forward network, the block.

Attribute names are those of the released checkpoints (``conv0``, ``spatial_gating_unit``, ...).
Shapes: every module maps (N, C, H, W) to the same shape unless its docstring gives another.
``dd`` are ``device`` and ``dtype``. This module does not import timm: ``LKA`` takes no longer to import than torch.
Source: Guo et al. 2022, arXiv:2202.09741, section 3.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from van.backbones.design import decompose
from van.errors import ShapeError
from van.ops import Kernel, depthwise_gelu, large_kernel_attention
from van.ops.reference import same_padding


class LKA(nn.Module):
    """Large kernel attention: ``x`` multiplied by an attention map with a large receptive field.

    The map is a ``kernel_size`` x ``kernel_size`` convolution decomposed into a depth-wise (2d-1) x (2d-1), a
    depth-wise ceil(K/d) x ceil(K/d) dilated by d, and a 1x1 convolution, all with bias.

    Args:
        channels: C.
        kernel_size: K in pixels; 21 in the paper.
        dilation: d in pixels; the one with the fewest weights if None (3 for K=21).

    Raises:
        ShapeError: a size is below 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 21,
        dilation: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.plan = plan = decompose(kernel_size, dilation=dilation, channels=channels)
        padding = same_padding(plan.dilated_size, plan.dilation)[0]
        depthwise: dict[str, Any] = {"groups": channels, **dd}
        self.conv0 = nn.Conv2d(channels, channels, plan.local_size, padding=plan.local_size // 2, **depthwise)
        self.conv_spatial = nn.Conv2d(
            channels, channels, plan.dilated_size, padding=padding, dilation=plan.dilation, **depthwise
        )
        self.conv1 = nn.Conv2d(channels, channels, 1, **dd)

    def depthwise_kernels(self) -> tuple[Kernel, Kernel]:
        """Return the local and the dilated depth-wise kernel."""
        dilated = Kernel(self.conv_spatial.weight, self.conv_spatial.bias, self.plan.dilation)
        return Kernel(self.conv0.weight, self.conv0.bias), dilated

    def forward(self, x: Tensor) -> Tensor:
        return large_kernel_attention(x, *self.depthwise_kernels(), Kernel(self.conv1.weight, self.conv1.bias))

    def extra_repr(self) -> str:
        plan = self.plan
        return f"kernel_size={plan.kernel_size}, dilation={plan.dilation}, receptive_field={plan.receptive_field}"


class Attention(nn.Module):
    """The attention unit: ``proj_2(LKA(GELU(proj_1(x)))) + x``; the released networks have this inner shortcut."""

    def __init__(self, channels: int, *, kernel_size: int = 21, dilation: int | None = None, **dd: Any) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1, **dd)
        self.activation = nn.GELU()
        self.spatial_gating_unit = LKA(channels, kernel_size=kernel_size, dilation=dilation, **dd)
        self.proj_2 = nn.Conv2d(channels, channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x)))) + x


class DepthwiseGelu(nn.Module):
    """A depth-wise 3x3 convolution and GELU; ``dwconv.dwconv`` is its name in the released checkpoints."""

    def __init__(self, channels: int, **dd: Any) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_gelu(x, Kernel(self.dwconv.weight, self.dwconv.bias))


class FeedForward(nn.Module):
    """The feed-forward network: ``fc2(GELU(DW3x3(fc1(x))))`` with ``hidden`` channels inside."""

    def __init__(self, channels: int, hidden: int, *, drop_rate: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, **dd)
        self.dwconv = DepthwiseGelu(hidden, **dd)
        self.fc2 = nn.Conv2d(hidden, channels, 1, **dd)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.dwconv(self.fc1(x)))))


class Block(nn.Module):
    """One block of VAN: attention, then feed-forward.

    Each has a BatchNorm before it and a layer scale (0.01 at the start) after it, and is added to its input.
    """

    def __init__(
        self, channels: int, *, mlp_ratio: float = 4.0, kernel_size: int = 21, dilation: int | None = None,
        drop_rate: float = 0.0, drop_path_rate: float = 0.0, layer_scale: float = 1e-2, **dd: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, **dd)
        self.attn = Attention(channels, kernel_size=kernel_size, dilation=dilation, **dd)
        self.drop_path: nn.Module = nn.Identity()
        if drop_path_rate:
            from timm.layers import DropPath  # here, because importing timm ends with van.backbones.van

            self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.BatchNorm2d(channels, **dd)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio), drop_rate=drop_rate, **dd)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), layer_scale, **dd))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), layer_scale, **dd))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class OverlapPatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution, then BatchNorm.

    (N, C, H, W) to (N, D, ceil(H/s), ceil(W/s)).
    """

    def __init__(self, channels: int, dim: int, *, patch_size: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=stride, padding=patch_size // 2, **dd)
        self.norm: nn.Module = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.proj.in_channels:
            raise ShapeError(f"x: expected (N, {self.proj.in_channels}, H, W), got {tuple(x.shape)}")
        return self.norm(self.proj(x))


def init_weights(module: nn.Module) -> None:
    """Initialize one module as the paper does: convolutions normal by fan-out per group, linears truncated normal 0.02.

    Use it with ``nn.Module.apply``; biases become zero.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
