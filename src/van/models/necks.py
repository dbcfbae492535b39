"""The neck between backbone and head: the feature pyramid.

Shapes: level l of the backbone (N, C_l, H_l, W_l), each about half as large as the one before; the pyramid's
levels (N, D, H_l, W_l). Source: Lin et al. 2017, "Feature Pyramid Networks", arXiv:1612.03144.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class _Conv(nn.Module):
    """A convolution that keeps the size, under the name ``conv`` that mmsegmentation gives it."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Module):
    """A feature pyramid network: every level in ``out_channels`` channels, with all coarser levels added top-down."""

    def __init__(self, in_channels: tuple[int, ...], *, out_channels: int = 256) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.lateral_convs = nn.ModuleList(_Conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(_Conv(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, maps, strict=True)]
        for index in reversed(range(len(levels) - 1)):
            size = levels[index].shape[2:]
            levels[index] = levels[index] + F.interpolate(levels[index + 1], size=size, mode="nearest")
        return [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=True)]
