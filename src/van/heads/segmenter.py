"""Semantic segmentation with VAN: networks with the names of mmsegmentation's modules, so that its checkpoints load.

Shapes: images (N, 3, H, W), or a list of (3, H, W) of different sizes; level l of the backbone
(N, C_l, H / 2^(l+2), W / 2^(l+2)), rounded up; logits (N, classes, H/4, W/4) from a head, (N, classes, H, W)
from the network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.van import VAN
from van.errors import ShapeError
from van.heads.network import HeadNetwork, Size, predict_by_padded_size, sizes_of


class ConvNormAct(nn.Module):
    """A convolution of stride 1 without bias, BatchNorm and ReLU, with mmsegmentation's names ``conv`` and ``bn``."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` bilinearly to the rows and columns of ``like``, corners not aligned."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class _Conv(nn.Module):
    """A convolution that keeps the size, under the name ``conv`` that mmsegmentation gives it."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Module):
    """A neck (Lin et al. 2017, arXiv:1612.03144): every level in one number of channels, coarser levels added to it."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(_Conv(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, maps, strict=True)]
        for index in reversed(range(len(levels) - 1)):
            size = levels[index].shape[2:]
            levels[index] = levels[index] + F.interpolate(levels[index + 1], size=size, mode="nearest")
        return [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=True)]


class SegmentationHead(nn.Module):
    """The last layers of every head: dropout of channels and a 1x1 convolution to the classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(0.1)

    def classify(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W)."""
        return self.conv_seg(self.dropout(x))


class SemanticFpnHead(SegmentationHead):
    """Every one of four levels is convolved and upsampled to the first one's size, and the sum classified."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int) -> None:
        super().__init__(channels, num_classes)
        self.scale_heads = nn.ModuleList()
        for level in range(4):
            steps: list[nn.Module] = []
            for step in range(max(1, level)):
                steps.append(ConvNormAct(in_channels if step == 0 else channels, channels, 3))
                if level > 0:
                    steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scale_heads.append(nn.Sequential(*steps))

    def forward(self, maps: list[Tensor]) -> Tensor:
        merged, *others = (head(level) for head, level in zip(self.scale_heads, maps, strict=True))
        for other in others:
            merged = merged + resize_like(other, like=merged)
        return self.classify(merged)


class UPerHead(SegmentationHead):
    """Pyramid pooling of the last level to 1, 2, 3 and 6 pixels a side, then a feature pyramid."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int) -> None:
        super().__init__(channels, num_classes)
        *lower, last = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(last, channels, 1)) for scale in (1, 2, 3, 6)
        )
        self.bottleneck = ConvNormAct(last + 4 * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(c, channels, 1) for c in lower)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in lower)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        *lower, last = maps
        pooled = [resize_like(module(last), like=last) for module in self.psp_modules]
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, lower, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for index in reversed(range(len(lower))):
            levels[index] = levels[index] + resize_like(levels[index + 1], like=levels[index])
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        first, *others = [*smooth, levels[-1]]
        merged = torch.cat([first, *(resize_like(other, like=first) for other in others)], dim=1)
        return self.classify(self.fpn_bottleneck(merged))


class AuxiliaryHead(SegmentationHead):
    """One convolution on stage 3, used in training only."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int) -> None:
        super().__init__(channels, num_classes)
        self.convs = nn.Sequential(ConvNormAct(in_channels, channels, 3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.classify(self.convs(maps[2]))


class SegmentationOutput(NamedTuple):
    """Logits (N, classes, H, W), and in training those of the auxiliary head, or None without one."""

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(HeadNetwork):
    """VAN with a segmentation head.

    In evaluation it returns logits (N, classes, H, W), or a list of (classes, H, W) for a list of images; in training
    a ``SegmentationOutput``, and images in a list must have one size.

    Args:
        backbone: a VAN; its classifier is removed.
        decode_head: maps levels to logits at the size of the first.
        neck: maps the four levels of the backbone to those that ``decode_head`` takes; unchanged if None.
        auxiliary_head: a second head on the backbone's levels, for training only.
    """

    def __init__(
        self, backbone: VAN, *, decode_head: SegmentationHead, neck: nn.Module | None = None,
        auxiliary_head: SegmentationHead | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone = backbone
        self.num_classes = decode_head.num_classes
        self.neck: nn.Module = neck or nn.Identity()
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        heads = {"decode_head": decode_head, "auxiliary_head": auxiliary_head}
        self.class_layers = tuple(f"{name}.conv_seg" for name, head in heads.items() if head is not None)

    def forward_head(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (N, classes, H/4, W/4), rounded up, and the backbone's feature maps."""
        maps = self.backbone.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.decode_head(self.neck(maps)), maps

    def forward(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor] | SegmentationOutput:
        if isinstance(x, list) and not self.training:
            return predict_by_padded_size(x, lambda sizes: sizes[0], self._predict_batch)
        if isinstance(x, list):
            if len(set(sizes_of(x))) != 1:
                shown = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(set(sizes_of(x)))) or "none"
                raise ShapeError(f"images: expected one size in training, got {shown}; crop or pad them")
            x = torch.stack(x)
        logits, maps = self.forward_head(x)
        logits = resize_like(logits, like=x)
        if not self.training:
            return logits
        auxiliary = None if self.auxiliary_head is None else resize_like(self.auxiliary_head(maps), like=x)
        return SegmentationOutput(logits, auxiliary)

    def _predict_batch(self, images: list[Tensor], size: Size) -> Tensor:
        return F.interpolate(self.forward_head(torch.stack(images))[0], size, mode="bilinear", align_corners=False)
